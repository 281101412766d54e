"""The error for a budget that no plan of the step meets.

raise below_minimum(problem, "1MB", 10**6, peak_of_schedule)
"""

from __future__ import annotations

from collections.abc import Callable

from checkpointing import budget as budgets
from checkpointing.decide import lowest_plan
from checkpointing.errors import BudgetError
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule


def below_minimum(
    problem: PlanningProblem, memory_budget: float | str, budget: int, peak_of: Callable[[Schedule], int]
) -> BudgetError:
    """Names the lowest peak that has a plan, the operator that sets it, and a budget to ask for."""
    lowest = lowest_plan(problem)
    order = lowest.schedule.runs[lowest.schedule.peak_position].rank
    least = peak_of(lowest.schedule)
    asked, minimum = budgets.told_apart(budget, max(least, budget + 1))
    where = " in ".join(filter(None, [problem.targets[order], problem.modules[order]]))
    return BudgetError(
        f"memory_budget={memory_budget!r} is {asked}, below the minimum of {minimum}, set by {where}: "
        f"use at least {budgets.written(max(least, budget) * 101 // 100)}",
        least,
    )
