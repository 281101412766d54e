"""Turns a plan into a graph: the same step, with the recomputations in it.

    step = rewrite_graph_with_recomputation(step, plan)     # a new step; the given one is untouched

A copy is named after its origin, `*_recomputed`, and carries `meta["recomputed_from"]`. What is used last in the
backward is freed there, because a graph's code drops each value after its last use.
"""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from checkpointing.errors import CheckpointingError, IllegalPlanError
from checkpointing.operators.batch_norm import Substitute
from checkpointing.operators.purity import may_draw, updates_running_statistics, without_running_statistics
from checkpointing.operators.replay import generator_state, replay
from checkpointing.planners.plan import Plan
from checkpointing.rewriting.proof import RECOMPUTED_FROM, Proof, compare
from profiler import Region, TracedStep


@dataclass(kw_only=True, repr=False)
class CheckpointedStep(TracedStep):
    """A traced step that keeps and recomputes what `plan` says. `baseline` is the step as it was."""

    plan: Plan
    baseline: TracedStep

    def verify(self, batch: Any) -> Proof:
        """Run the baseline and this step from the same state and compare all that they leave; see `proof`.

        Parameters, buffers, optimizer state and random generators are put back afterwards.
        """
        return compare(self.baseline, self, batch)


def rewrite_graph_with_recomputation(step: TracedStep, plan: Plan) -> CheckpointedStep:
    """The step with every recomputation of `plan` in its graph. Raises IllegalPlanError for another graph's plan."""
    check_same_graph(step, plan)
    if step.first_graph_module is not None:
        raise CheckpointingError(
            "the first step of this optimizer differs from the others (SGD with dampening): run one eager step first"
        )
    graph, gradients = _rewrite(step, plan)
    module = fx.GraphModule(step.graph_module, graph)
    values = {field.name: getattr(step, field.name) for field in fields(TracedStep)}
    values |= {"graph_module": module, "gradients": gradients, "steps_run": 0}
    return CheckpointedStep(**values, plan=plan, baseline=step)


def check_same_graph(step: TracedStep, plan: Plan) -> None:
    """Raise IllegalPlanError unless `plan` was made for the graph of `step`."""
    names = [node.name for node in step.nodes]
    if names != plan.problem.names or [str(node.target) for node in step.nodes] != plan.problem.targets:
        raise IllegalPlanError(
            f"the plan was made for a graph of {plan.problem.count} nodes that is not this one ({len(names)} nodes): "
            "decide again for this step"
        )


def _rewrite(step: TracedStep, plan: Plan) -> tuple[fx.Graph, dict[str, fx.Node]]:
    old, new = step.nodes, fx.Graph()
    problem, schedule = plan.problem, plan.schedule
    replayed = {run.rank for run in schedule.runs if run.is_copy and may_draw(old[run.rank])}
    states: dict[int, fx.Node] = {}
    at: list[fx.Node] = []  # position → node
    original: dict[fx.Node, fx.Node] = {}
    renewed: set[fx.Node] = set()  # nodes whose values lie in copies
    for run in schedule.runs:
        node = old[run.rank]
        if run.is_copy:
            ranks = problem.recompute_inputs(run.rank)
            value_of = {old[rank]: at[position] for rank, position in zip(ranks, run.inputs, strict=True)}
            copied = _copy(new, node, value_of, problem.substitutes.get(run.rank), old, states.get(run.rank), step)
            at.append(copied)
            renewed.add(copied)
            continue
        if run.rank in replayed:
            states[run.rank] = new.call_function(generator_state, (step.device,))
            states[run.rank].meta.update(region=node.meta["region"], module=node.meta["module"])
        value_of = dict(zip(node.all_input_nodes, (at[position] for position in run.inputs), strict=True))
        made = new.node_copy(node, value_of.__getitem__)
        made.name = node.name
        aliases = set(problem.held[run.rank]) - set(problem.created[run.rank])
        if aliases and any(value_of[source] in renewed for source in node.all_input_nodes):
            made.meta["val"] = _evaluate(made, made.target, node)  # a view of a copy, and no more of the original
            renewed.add(made)
        at.append(made)
        original[node] = made
    new.lint()
    return new, {name: original[node] for name, node in step.gradients.items()}


def _copy(
    graph: fx.Graph,
    node: fx.Node,
    value_of: dict[fx.Node, fx.Node],
    substitute: Substitute | None,
    old: list[fx.Node],
    state: fx.Node | None,
    step: TracedStep,
) -> fx.Node:
    target: Any = node.target
    args = node.args
    if substitute is not None:
        target, args = substitute.target, (*(old[rank] for rank in substitute.inputs), *substitute.constants)
    elif updates_running_statistics(node):
        target, args = without_running_statistics(node)
    args = fx.node.map_arg(args, value_of.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, value_of.__getitem__)
    name = f"{node.name}_recomputed"
    made = graph.create_node("call_function", target, args, kwargs, name=name)
    made.meta = {key: value for key, value in node.meta.items() if key not in ("val", "tensor_meta")}
    made.meta |= {"region": Region.BACKWARD, RECOMPUTED_FROM: node.name}
    if "val" in node.meta:
        made.meta["val"] = _evaluate(made, target, node)
    if state is not None:
        made.args, made.target = (state, step.device, target, *made.args), replay
    return made


def _evaluate(node: fx.Node, function: Any, origin: fx.Node) -> Any:
    """The node's value on fake tensors: it shares storages exactly as the real one will."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    fakes = [leaf for leaf in pytree.tree_leaves((args, kwargs, origin.meta["val"])) if isinstance(leaf, FakeTensor)]
    mode = fakes[0].fake_mode if fakes else nullcontext()  # a number taken out of a tuple has none
    with mode, torch.no_grad():
        return function(*args, **kwargs)
