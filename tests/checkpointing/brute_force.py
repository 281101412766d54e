"""Every plan of a small step, each carried out on the graph and judged there: no part of a planner takes part."""

import random
from functools import cache
from itertools import chain, combinations
from typing import NamedTuple

from checkpointing import CheckpointedStep, rewrite_graph_with_recomputation
from profiler import StorageAnalysis, analyse, simulate
from tests.checkpointing.steps import Case


class Judged(NamedTuple):
    peak: int  # bytes
    added: float  # seconds
    kept: frozenset[int]


def random_times(seed: int):
    """Whole milliseconds for each node, none for what only looks at memory, as on a GPU."""

    def times(analysis: StorageAnalysis) -> list[float]:
        choose = random.Random(seed)
        return [
            0.0 if node.op != "call_function" or analysis.is_view(rank) else choose.randint(1, 9) * 1e-3
            for rank, node in enumerate(analysis.nodes)
        ]

    return times


def judge(case: Case, kept: frozenset[int]) -> Judged:
    """The peak from the rewritten graph's storages, and the times of the nodes that are in it, beyond those of the
    graph in which nothing is recomputed."""
    step = rewrite_graph_with_recomputation(case.step, case.plan(kept))
    peak = simulate(analyse(step)).peak_bytes
    return Judged(peak, _seconds(case, step) - _unchanged_seconds(case), kept)


def _seconds(case: Case, step: CheckpointedStep) -> float:
    time_of = dict(zip(case.problem.names, case.problem.time, strict=True))
    return sum(time_of.get(node.meta.get("recomputed_from", node.name), 0.0) for node in step.nodes)


@cache
def _unchanged_seconds(case: Case) -> float:
    return _seconds(case, rewrite_graph_with_recomputation(case.step, case.plan(case.problem.default_kept)))


def all_plans(case: Case) -> list[Judged]:
    decisions = [*case.problem.candidates, *case.problem.keepable]
    subsets = chain.from_iterable(combinations(decisions, size) for size in range(len(decisions) + 1))
    return [judge(case, frozenset(subset)) for subset in subsets]


def cheapest(plans: list[Judged], budget: int) -> Judged | None:
    feasible = [plan for plan in plans if plan.peak <= budget]
    return min(feasible, key=lambda plan: plan.added) if feasible else None
