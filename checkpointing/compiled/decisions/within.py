"""A plan whose peak is within a budget, with all that the allocator and the generated code add to the planner's bytes.

plan = plan_within(budget, problem, "optimal", of_plan)
margin_of(excesses)         # what to leave of the budget when there is no further try
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from checkpointing.planners import SOLVERS
from checkpointing.planners.plan import NoPlanError, Plan
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule

AIMED = 4  # plans at most for one compilation, each for as much less as the allocator's blocks took too much
MOST_LEFT = 0.8  # of a correction, at most, that the next is expected to leave
SLACK = 2**20  # bytes by which a peak varies between steps; of a small step, a thousandth

OfPlan = Callable[[Schedule], int]  # bytes at the peak of a step that runs so


def plan_within(budget: int, problem: PlanningProblem, solver: str, of_plan: OfPlan, margin: int = 0) -> Plan:
    """The plan that keeps all, if its peak is at most `budget` bytes, or the solver's. Raises NoPlanError.

    `margin` bytes of the budget are left, if there is a plan for so little.
    """
    kept = problem.default_kept | frozenset(problem.pinned)
    keeps_all = Plan(problem, solver, kept, budget_bytes=budget, bound_s=0.0)
    if margin:
        with suppress(NoPlanError):
            return _aimed(budget - margin, keeps_all, of_plan)
    return _aimed(budget, keeps_all, of_plan)


def _aimed(limit: int, plan: Plan, of_plan: OfPlan) -> Plan:
    """The last of the solver's plans may take more than `limit`."""
    aim = limit - (of_plan(plan.schedule) - plan.predicted_peak_bytes)  # what the allocator and the code add
    for _ in range(AIMED):
        peak = of_plan(plan.schedule)
        if peak <= limit:
            return plan
        if plan.planning_s:  # the solver's, whose blocks are more
            aim -= peak - limit + min(SLACK, limit // 1000)
        started = time.perf_counter()
        solved = SOLVERS[plan.solver](plan.problem, aim)
        plan = replace(solved, budget_bytes=plan.budget_bytes, planning_s=time.perf_counter() - started)
    return plan


def margin_of(excesses: Sequence[int]) -> int:
    """Bytes of the budget to leave in the last compilation, after those that took `excesses` bytes too much.

    The less a plan may take, the more does its code add: each correction leaves a part of the one before, so that all
    that are still to come are a geometric series. It is summed for twice that part, since there is no further try.
    """
    if len(excesses) < 2 or not excesses[-2]:
        return 0
    part = min(2 * excesses[-1] / excesses[-2], MOST_LEFT)
    return int(excesses[-1] * part / (1 - part))
