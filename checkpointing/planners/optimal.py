"""The plan of least added time under a memory budget, by mixed-integer programming (HiGHS), with a proof of how near.

`milp` states the problem. The bound comes from a linear program that allows more than any plan can do. A stricter one
is rounded first (`lp_rounding`), which is near the bound in most cases, and solved in whole numbers where it is not. A
solution is judged by the exact schedule; where that is above the budget, because the program sees memory only once a
stage, the excess is withheld from the stage and the program solved again. For a step of few values the program of the
bound, in whole numbers, proposes plan after plan from below, until the best of them cannot be beaten: the optimum.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from checkpointing.planners.greedy import greedy, plan_greedy
from checkpointing.planners.lp_rounding import better, repaired, round_relaxation, withhold
from checkpointing.planners.milp import Program, Solution
from checkpointing.planners.milp_values import Values, find_values
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
        of_greedy = plan_greedy(problem, budget)
        reason = f"{found.note}; " if found.schedule is None and found.note else ""
        repeats = ", which makes a copy more than once" if of_greedy.fresh else ""
        plans.append(replace(of_greedy, solver="optimal", note=f"{reason}this plan is greedy's{repeats}"))
    except NoPlanError:
        if not plans:
            raise
    best = min(plans, key=lambda plan: plan.predicted_added_s)
    bound = None if found.bound_s is None else max(0.0, min(found.bound_s, best.predicted_added_s))
    return replace(best, bound_s=bound)


def optimal(problem: PlanningProblem, budget: int) -> Optimum:
    """Minimise the added time under `budget` bytes within about `problem.solving_s` seconds of this process's time, so
    that a busy machine finds the same plan."""
    seconds = problem.solving_s
    started = time.process_time()
    deadline = started + seconds
    small = len(problem.candidates) + len(problem.keepable) <= SMALL
    values = find_values(problem, every=small)
    always = frozenset(problem.activations) - frozenset(values.of) | frozenset(problem.pinned)
    if not values.of:  # there is nothing to decide
        schedule = make_schedule(problem, always)
        return Optimum(schedule if schedule.peak <= budget else None, always, schedule.added_seconds, "")
    if small:
        return _exact(problem, values, budget, always, deadline)
    relaxed = Program(problem, values, budget, WINDOWS[-1], restricted=False).solve(10.0, 0.0, integral=False)
    if relaxed.status == "infeasible":
        return Optimum(None, always, None, "no plan that makes each copy once meets the budget")
    bound = relaxed.bound
    best = round_relaxation(problem, values, budget, always, _enough(bound), started + seconds / 3)
    if best is None and relaxed.share is not None:
        best = repaired(problem, budget, relaxed.share, always)
    if best is None:
        schedule, kept, fresh, why = greedy(problem, budget)
        best = None if why or fresh else (schedule, kept)
    extended: set[frozenset[int]] = set()  # what was kept before more was: another window often finds the same
    if best is not None:
        extended.add(best[1])
        best = _keep_more(problem, values, budget, best, time.process_time() + seconds / 10)
    for window in WINDOWS:
        left = deadline - time.process_time()
        if best is not None and (best[0].added_seconds <= _enough(bound) or left < seconds / 4):
            break
        found = _search(problem, values, budget, always, window, GAP, left)
        if found is not None and found[1] not in extended:
            extended.add(found[1])
            best = better(best, _keep_more(problem, values, budget, found, time.process_time() + seconds / 10))
    if best is None:
        return Optimum(None, always, bound, "the program found no plan")
    left = deadline - time.process_time()
    if best[0].added_seconds > _enough(bound) and left > 0:  # is the plan not good, or the bound weak?
        program = Program(problem, values, budget, WINDOWS[-1], restricted=False)
        bound = max(bound, program.solve(left, GAP).bound)
    return Optimum(best[0], best[1], min(bound, best[0].added_seconds), "")


def _exact(problem: PlanningProblem, values: Values, budget: int, always: frozenset[int], deadline: float) -> Optimum:
    """The best of all: choices in the order of what the program says they cost at least, until none can be better."""
    best: tuple[Schedule, frozenset[int]] | None = None
    excluded: list[frozenset[int]] = []
    bound, complete = -np.inf, False
    while time.process_time() < deadline and not complete:
        program = Program(problem, values, budget, len(values.of), restricted=False, excluded=excluded)
        solution = program.solve(max(1.0, deadline - time.process_time()), 0.0)
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


def _enough(bound: float) -> float:
    """Added seconds that are not worth a further search."""
    return bound + 2 * GAP * abs(bound)


def _keep_more(
    problem: PlanningProblem, values: Values, budget: int, best: tuple[Schedule, frozenset[int]], deadline: float
) -> tuple[Schedule, frozenset[int]]:
    """Keep what there is still room for, most time first: the program is a little too careful where stages are long."""
    again = [value for value in values.of.values() if value.may_be_kept and value.index not in best[1]]
    for value in sorted(again, key=lambda v: -sum(problem.recompute_time[rank] for rank in v.nodes)):
        if time.process_time() > deadline:
            break
        kept = best[1] | {value.index}
        schedule = make_schedule(problem, kept)
        if schedule.added_seconds < best[0].added_seconds and schedule.peak <= budget:
            best = (schedule, kept)
    return best


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
    deadline = time.process_time() + seconds
    withheld: dict[int, int] = {}
    for _ in range(ROUNDS):
        left = deadline - time.process_time()
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
        withhold(withheld, schedule, program, budget)
    return None
