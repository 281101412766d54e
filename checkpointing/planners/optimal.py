"""The plan of least added time under a memory budget, by mixed-integer programming (HiGHS), with a proof of how near.

`program` states the problem. Its solution is judged by the exact schedule; where that is above the budget, because
the program sees memory only once a stage, the excess is withheld from the stage and the program solved again. The
bound comes from a linear program that allows more than any plan can do. For a step of few values that program, in whole
numbers, proposes plan after plan from below, until the best of them cannot be beaten: then the plan is the optimum.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from checkpointing.planners.greedy import plan_greedy
from checkpointing.planners.milp import Program, Solution
from checkpointing.planners.milp_values import NEGLIGIBLE, Values, find_values
from checkpointing.planners.plan import NoPlanError, Plan
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule, make_schedule

GAP = 0.005
SMALL = 40  # values up to which every one counts and the program has no window
WINDOWS = (16, 48)  # stages, narrow first
ROUNDS = 6
NOTHING = 1e-9  # seconds: HiGHS is no more exact than that


@dataclass(frozen=True)
class Optimum:
    """The best schedule found (None: none meets the budget), what it keeps, and a bound on the added seconds."""

    schedule: Schedule | None
    kept: frozenset[int]
    bound_s: float | None
    note: str


def plan_optimal(problem: PlanningProblem, budget: int) -> Plan:
    """The plan of least added time under `budget` bytes: the program's, or greedy's where that adds less.

    Greedy may make a copy more than once, which the program does not consider. Raises NoPlanError if neither has one.
    """
    found = optimal(problem, budget)
    plans: list[Plan] = []
    if found.schedule is not None:
        plans.append(Plan(problem, "optimal", found.kept, {}, budget, note=found.note))
    try:
        greedys = plan_greedy(problem, budget)
        reason = f"{found.note}; " if found.schedule is None and found.note else ""
        repeats = ", which makes a copy more than once" if greedys.fresh else ""
        plans.append(replace(greedys, solver="optimal", note=f"{reason}this plan is greedy's{repeats}"))
    except NoPlanError:
        if not plans:
            raise
    best = min(plans, key=lambda plan: plan.predicted_added_s)
    bound = None if found.bound_s is None else max(0.0, min(found.bound_s, best.predicted_added_s))
    return replace(best, bound_s=bound)


def optimal(problem: PlanningProblem, budget: int) -> Optimum:
    """Minimise the added time under `budget` bytes within about `problem.solving_s` seconds."""
    seconds = problem.solving_s
    deadline = time.perf_counter() + seconds
    small = len(problem.candidates) + len(problem.keepable) <= SMALL
    values = find_values(problem, 0.0 if small else NEGLIGIBLE)
    always = frozenset(problem.activations) - frozenset(values.of) | frozenset(problem.pinned)
    if not values.of:  # there is nothing to decide
        schedule = make_schedule(problem, always)
        return Optimum(schedule if schedule.peak <= budget else None, always, schedule.added_seconds, "")
    if small:
        return _exact(problem, values, budget, always, deadline)
    bound = _bound(problem, values, budget)
    if bound is None:
        return Optimum(None, always, None, "no plan that makes each copy once meets the budget")
    best: tuple[Schedule, frozenset[int]] | None = None
    for window in WINDOWS:
        left = deadline - time.perf_counter()
        if best is not None and (_near(best[0], bound) or left < seconds / 3):
            break
        found = _search(problem, values, budget, always, window, GAP, left)
        if found is not None and (best is None or found[0].added_seconds < best[0].added_seconds):
            best = found
    if best is None:
        return Optimum(None, always, bound, "the program found no plan")
    best = _keep_more(problem, values, budget, best, time.perf_counter() + seconds / 10)
    if not _near(best[0], bound):  # is the plan not good, or the bound weak?
        bound = max(bound, _bound(problem, values, budget, deadline - time.perf_counter()) or bound)
    return Optimum(best[0], best[1], min(bound, best[0].added_seconds), "")


def _exact(problem: PlanningProblem, values: Values, budget: int, always: frozenset[int], deadline: float) -> Optimum:
    """The best of all: choices in the order of what the program says they cost at least, until none can be better."""
    best: tuple[Schedule, frozenset[int]] | None = None
    excluded: list[frozenset[int]] = []
    bound, complete = -np.inf, False
    while time.perf_counter() < deadline and not complete:
        program = Program(problem, values, budget, len(values.of), restricted=False, excluded=excluded)
        solution = program.solve(max(1.0, deadline - time.perf_counter()), 0.0)
        bound = max(bound, solution.bound)
        complete = solution.status == "infeasible" or (best is not None and bound >= best[0].added_seconds - NOTHING)
        if complete or solution.share is None:
            break
        kept = always | solution.kept
        excluded.append(solution.kept)
        schedule = make_schedule(problem, kept)
        if schedule.peak <= budget and (best is None or schedule.added_seconds < best[0].added_seconds):
            best = (schedule, kept)
    if best is None:
        return Optimum(
            None,
            always,
            None,
            "no plan that makes each copy once meets the budget" if complete else "no plan was found in time",
        )
    return Optimum(best[0], best[1], min(bound, best[0].added_seconds), "")


def _near(schedule: Schedule, bound: float) -> bool:
    return schedule.added_seconds <= bound + 2 * GAP * abs(bound)


def _keep_more(
    problem: PlanningProblem, values: Values, budget: int, best: tuple[Schedule, frozenset[int]], deadline: float
) -> tuple[Schedule, frozenset[int]]:
    """Keep what there is still room for, most time first: the program is a little too careful where stages are long."""
    again = [value for value in values.of.values() if value.is_activation and value.index not in best[1]]
    for value in sorted(again, key=lambda v: -sum(problem.recompute_time[rank] for rank in v.nodes)):
        if time.perf_counter() > deadline:
            break
        kept = best[1] | {value.index}
        schedule = make_schedule(problem, kept)
        if schedule.added_seconds < best[0].added_seconds and schedule.peak <= budget:
            best = (schedule, kept)
    return best


def _bound(problem: PlanningProblem, values: Values, budget: int, seconds: float | None = None) -> float | None:
    """Seconds that every plan adds at the least; None if there is none. With `seconds`, by branch and bound."""
    program = Program(problem, values, budget, WINDOWS[-1], restricted=False)
    solution = program.solve(max(1.0, seconds or 10.0), GAP if seconds else 0.0, integral=seconds is not None)
    return None if solution.status == "infeasible" else solution.bound


def _search(
    problem: PlanningProblem,
    values: Values,
    budget: int,
    always: frozenset[int],
    window: int,
    gap: float,
    seconds: float,
) -> tuple[Schedule, frozenset[int]] | None:
    """Solve, judge by the exact schedule, withhold what is missing, and solve again."""
    deadline = time.perf_counter() + seconds
    withheld: dict[int, int] = {}
    for _ in range(ROUNDS):
        left = deadline - time.perf_counter()
        if left <= 0:
            return None
        program = Program(problem, values, budget, window, restricted=True, withheld=withheld)
        solution: Solution = program.solve(left, gap)
        if solution.share is None:
            return None
        kept = always | solution.kept
        schedule = make_schedule(problem, kept)
        if schedule.peak <= budget:
            return schedule, kept
        for stage, excess in _excess(schedule, program, budget).items():
            withheld[stage] = withheld.get(stage, 0) + excess
    return None


def _excess(schedule: Schedule, program: Program, budget: int) -> Mapping[int, int]:
    """Stage → bytes above the budget; -1 is the forward. A copy counts where it is needed."""
    found: dict[int, int] = {}
    stage = -1
    following = [0] * len(schedule.runs)
    rank = schedule.problem.count
    for position in range(len(schedule.runs) - 1, -1, -1):
        run = schedule.runs[position]
        if not run.is_copy:
            rank = run.rank
        following[position] = rank
    for position, total in enumerate(schedule.total):
        if total > budget:
            at = following[position]
            stage = program.stage_at(at) if at >= schedule.problem.backward_start else -1
            found[stage] = max(found.get(stage, 0), int(total) - budget)
    return found
