"""Plans that need no solver and know no budget, to compare the others with."""

from collections.abc import Callable

from checkpointing.planners.plan import Plan
from checkpointing.planners.problem import PlanningProblem

# Operators whose results are costly to recompute, as in PyTorch's selective checkpointing policies.
COSTLY = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.baddbmm.", "aten.convolution.", "aten._scaled_dot_product_")


def keep_everything(problem: PlanningProblem, budget: int | None = None) -> Plan:
    """`none`: the step as it is."""
    return Plan(problem, "none", problem.default_kept)


def keep_nothing(problem: PlanningProblem, budget: int | None = None) -> Plan:
    """`all`: every activation that may be is recomputed, each once and held from there. That frees the forward and
    fills up at the start of the backward: the peak hardly falls."""
    return Plan(problem, "all", frozenset(problem.pinned))


def keep_matmuls(problem: PlanningProblem, budget: int | None = None) -> Plan:
    """`save_matmuls`: results of matmuls, convolutions and attention are kept, all else is recomputed."""
    costly = {
        index
        for index in (*problem.candidates, *problem.keepable)
        if problem.targets[problem.writers[index][0]].startswith(COSTLY)
    }
    return Plan(problem, "save_matmuls", frozenset(costly | set(problem.pinned)))


BASELINES: dict[str, Callable[..., Plan]] = {
    "none": keep_everything,
    "all": keep_nothing,
    "save_matmuls": keep_matmuls,
}
