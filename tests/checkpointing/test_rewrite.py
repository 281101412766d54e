"""What the rewritten graph looks like: which copies there are, where they stand, what they hold."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from checkpointing import (
    CheckpointedStep,
    IllegalPlanError,
    Plan,
    extract_recomputation_subgraphs,
    rewrite_graph_with_recomputation,
    simulate_memory_usage,
)
from checkpointing.operators.replay import replay
from profiler import Region, analyse
from profiler.costs.storage import written
from profiler.graph.step import running
from tests.checkpointing.steps import TINY, Case, everything, momentum, small_case, tiny_case


def copies(step: CheckpointedStep) -> list[fx.Node]:
    return [node for node in step.nodes if "recomputed_from" in node.meta]


def rewritten(case: Case, kept: Any = ()) -> CheckpointedStep:
    return rewrite_graph_with_recomputation(case.step, case.plan(kept))


def half_kept(case: Case) -> list[int]:
    return case.problem.candidates[::2]


@pytest.fixture(params=TINY)
def case(request: pytest.FixtureRequest) -> Case:
    return tiny_case(request.param)


def test_copies_carry_their_origin_in_name_and_meta(case: Case) -> None:
    step = rewritten(case)
    step.graph.lint()
    names = {node.name for node in case.step.nodes}
    assert copies(step)
    for node in copies(step):
        assert node.meta["recomputed_from"] in names
        assert node.name.startswith(f"{node.meta['recomputed_from']}_recomputed")
        assert node.meta["region"] is Region.BACKWARD
    others = [node.name for node in step.nodes if "recomputed_from" not in node.meta]
    assert set(others) - {n.name for n in step.nodes if n.name.startswith("generator_state")} <= names


def test_copies_stand_just_before_what_needs_them(case: Case) -> None:
    """Between a copy and its first use there are only other copies, of the same recomputation."""
    nodes = rewritten(case, half_kept(case)).nodes
    rank_of = {node: rank for rank, node in enumerate(nodes)}
    backward = [rank for rank, node in enumerate(nodes) if node.meta["region"] is Region.BACKWARD]
    original = [rank for rank in backward if "recomputed_from" not in nodes[rank].meta]
    groups = 0
    for rank, node in enumerate(nodes):
        if "recomputed_from" not in node.meta:
            continue
        assert rank > original[0]
        groups += "recomputed_from" not in nodes[rank - 1].meta
        end = next(following for following in original if following > rank)  # the node that they are made for
        needed = {node}
        for copied in nodes[rank:end]:  # what is made of the copy before that node runs
            if needed & set(copied.all_input_nodes):
                needed.add(copied)
        uses_memory = [
            user
            for made in needed
            for user in made.users
            if "recomputed_from" not in user.meta and rank_of[user] >= end
        ]
        taken_out = node.target is operator.getitem  # all results of a node are taken out together
        assert uses_memory or taken_out or any(written(made) for made in needed), node
    assert groups > 3  # block by block


def test_nothing_is_copied_that_nobody_needs(case: Case) -> None:
    for node in copies(rewritten(case)):
        function, args = (node.args[2], node.args[3:]) if node.target is replay else (node.target, node.args)
        schema = getattr(function, "_schema", None)
        assert node.users or (schema is not None and schema.is_mutable and args), node


def test_a_value_is_freed_in_the_forward_unless_it_is_kept(case: Case) -> None:
    problem, step = case.problem, rewritten(case)
    analysis = analyse(step)
    last_forward = max(r for r, n in enumerate(step.nodes) if n.meta["region"] in (Region.FORWARD, Region.LOSS))
    given_up = {problem.names[problem.writers[i][0]] for i in step.plan.recomputed if problem.size[i]}
    for rank in range(last_forward):
        if step.nodes[rank].name in given_up and len(analysis.created[rank]) == 1:
            assert analysis.storages[analysis.created[rank][0]].last <= last_forward, step.nodes[rank]


def test_views_of_a_copy_never_hold_the_original(case: Case) -> None:
    step = rewritten(case)
    analysis = analyse(step)
    made_by_copies = {i for r, n in enumerate(step.nodes) if "recomputed_from" in n.meta for i in analysis.created[r]}
    pinned = {case.problem.storage_names[i] for i in case.problem.pinned} | {
        case.problem.names[case.problem.writers[i][0]] for i in case.problem.pinned if case.problem.writers[i]
    }
    views = 0
    for rank, node in enumerate(step.nodes):
        if "recomputed_from" in node.meta and analysis.is_view(rank):
            views += 1
            for index in analysis.held[rank]:
                storage = analysis.storages[index]
                assert index in made_by_copies or storage.owned_by_user or storage.name in pinned, node
    assert views


def test_simulated_memory_is_the_rewritten_graphs(case: Case) -> None:
    plan = case.plan(half_kept(case))
    assert simulate_memory_usage(case.step, plan).peak_bytes == plan.predicted_peak_bytes


def test_batch_norm_updates_its_statistics_once() -> None:
    case = tiny_case("tiny_resnet152")
    step = rewritten(case)
    again = [n for n in copies(step) if "batch_norm" in str(n.target)]
    assert again
    assert all(node.args[3] is None and node.args[4] is None for node in again)
    case.check_steps(step)  # running statistics are among the buffers
    tracked = [value for name, value in everything(case.model, case.optimizer).items() if "tracked" in name]
    assert tracked
    assert all(int(value) == 3 for value in tracked)


class Masks(nn.Module):
    """Dropout with an activation that shows the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.dropout(self.first(x).tanh(), 0.5)).tanh()


def small(model: nn.Module) -> Case:
    torch.manual_seed(3)
    return Case(model, lambda m, x: m(x).square().mean(), (torch.randn(16, 8),), momentum)


def values_of(step: Any, batch: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            found[n.name] = value.clone() if isinstance(value, Tensor) else value
            return value

    with running():
        Keep(step.graph_module, garbage_collect_values=False).run(*step.arguments(batch))
    return found


def test_the_mask_of_a_dropout_is_the_same_mask() -> None:
    case = small(Masks())
    step = rewritten(case)
    drawn = [n for n in copies(step) if n.target is replay]
    assert len(drawn) == 1
    found = values_of(step, case.batch)
    mask, again = found[drawn[0].meta["recomputed_from"]], found[drawn[0].name]
    assert 0 < int((mask != 0).sum()) < mask.numel()
    assert torch.equal(mask, again)
    before = torch.get_rng_state()
    values_of(step, case.batch)
    after_one = torch.get_rng_state()
    torch.set_rng_state(before)
    values_of(case.step, case.batch)
    assert torch.equal(torch.get_rng_state(), after_one)  # the second run draws nothing


@pytest.mark.parametrize(
    "make", [lambda: tiny_case("tiny_bert"), lambda: small_case(5, 10), lambda: small_case(11, 10)]
)
def test_recomputation_subgraphs_give_the_activations_bits(make: Callable[[], Case]) -> None:
    case = make()
    case.restore()
    plan = case.plan(half_kept(case))
    found = extract_recomputation_subgraphs(case.step.graph, plan)
    problem = case.problem
    assert set(found) == {problem.storage_names[i] for i in plan.recomputed}
    real: dict[str, Any] = {}
    final: dict[str, Any] = {}
    start = problem.backward_start

    class Keep(fx.Interpreter):
        """Values of the forward as they were made, and as they are when it ends."""

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            rank = case.analysis.rank_of[n]
            if rank < start:
                real[n.name] = value
            if rank == start - 1:
                final.update({k: v.clone() if isinstance(v, Tensor) else v for k, v in real.items()})
            return value

    with running():
        Keep(case.step.graph_module, garbage_collect_values=False).run(*case.step.arguments(case.batch))
    case.restore()
    checked = 0
    for name, graph in found.items():
        random = (n for n in graph.nodes if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()))
        if any(True for _ in random):
            continue  # draws anew: the rewritten step replays it
        inputs = [str(node.target) for node in graph.find_nodes(op="placeholder")]
        module = fx.GraphModule(nn.Module(), graph)
        arguments = [final[key].clone() if isinstance(final[key], Tensor) else final[key] for key in inputs]
        with torch.no_grad():
            value = module(*arguments)
        if isinstance(value, Tensor):
            assert torch.equal(value, final[name]), name
            checked += 1
    assert checked > 2


def test_a_plan_for_another_graph_is_refused() -> None:
    plan = tiny_case("tiny_gpt2").plan(())
    for use in (rewrite_graph_with_recomputation, simulate_memory_usage):
        with pytest.raises(IllegalPlanError, match=r"not this one .* decide again for this step"):
            use(tiny_case("tiny_bert").step, plan)
    with pytest.raises(IllegalPlanError, match="made for another graph: decide again"):
        extract_recomputation_subgraphs(tiny_case("tiny_bert").step.graph, plan)


def test_a_plan_that_recomputes_what_may_not_be_is_refused() -> None:
    case = next(c for c in (small_case(s, 12) for s in range(60)) if set(c.problem.pinned) & set(c.problem.activations))
    problem = case.problem
    index = next(i for i in problem.activations if i in problem.pinned)
    with pytest.raises(IllegalPlanError) as caught:
        Plan(problem, "by hand", frozenset(problem.activations) - {index})
    message = str(caught.value)
    assert message.startswith(f"{problem.storage_names[index]} may not be recomputed: it ")
    assert problem.pinned[index] in message
    assert message.endswith("plan it as CHECKPOINT")
