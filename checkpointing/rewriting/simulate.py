"""Memory of a step under a plan, found by carrying the plan out on the graph and analysing the result.

The planners follow memory by themselves (`schedule`); this is the other way to the same bytes.
"""

from checkpointing.planners.plan import Plan
from checkpointing.rewriting.proof import RECOMPUTED_FROM
from checkpointing.rewriting.rewrite import CheckpointedStep, rewrite_graph_with_recomputation
from profiler import MemoryCurve, TracedStep, analyse, simulate
from profiler.costs.memory import MeasuredMemory, default_rounding, rounded


def simulate_memory_usage(step: TracedStep, plan: Plan) -> MemoryCurve:
    """Memory against rank of `step` when it follows `plan`, with the workspaces that the profile measured."""
    return memory_of(rewrite_graph_with_recomputation(step, plan))


def memory_of(step: CheckpointedStep) -> MemoryCurve:
    """The same of a step that has been rewritten: a copy uses the workspace of its origin."""
    problem, analysis = step.plan.problem, analyse(step)
    rank_of = {name: rank for rank, name in enumerate(problem.names)}
    rounding = default_rounding(step.device)
    workspace: dict[int, int] = {}
    excess: dict[int, int] = {}
    for rank, node in enumerate(analysis.nodes):
        origin = rank_of.get(node.meta.get(RECOMPUTED_FROM, node.name))
        if origin is None:
            continue  # a generator's state, which takes no memory of the device
        copy = RECOMPUTED_FROM in node.meta
        used = problem.recompute_workspace(origin) if copy else problem.workspace[origin]
        if used:
            workspace[rank] = used
        original = sorted(problem.recompute_created(origin) if copy else problem.created[origin])
        made = sorted(analysis.created[rank])
        for new, old in zip(made, original, strict=True):
            storage = analysis.storages[new]
            if storage.device == analysis.device and not storage.owned_by_user:
                excess[new] = problem.size[old] - rounded(storage.bytes, rounding)
    return simulate(analysis, MeasuredMemory(workspace, {k: v for k, v in excess.items() if v}, problem.resident))
