"""The plan of least added time under a memory budget, by mixed-integer programming (HiGHS), with a proof of how near.

`milp` states the problem. The bound comes from a linear program that allows more than any plan can do: a smaller one
first, which allows still more. A stricter one is rounded (`lp_rounding`), which is near the bound in most cases, and
solved in whole numbers where it is not. Where the plan is good and the bound weak, cases raise that (`alike`). A
solution is judged by the exact schedule; where that is above the budget, because the program sees memory only once a
stage, the excess is withheld from the stage and the program solved again. For a step of few values the program of the
bound, in whole numbers, proposes plan after plan from below, until the best of them cannot be beaten: the optimum.
"""

import time
from dataclasses import dataclass, field, replace

import numpy as np

from checkpointing.planners.alike import Cases, kinds
from checkpointing.planners.greedy import greedy, plan_greedy
from checkpointing.planners.lp_rounding import Kept, better, repaired, round_relaxation, withhold
from checkpointing.planners.milp import Program, Solution
from checkpointing.planners.milp_values import Values, find_values
from checkpointing.planners.plan import NoPlanError, Plan
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule, make_schedule
from checkpointing.planners.spare_room import keep_more

GAP = 0.005
SMALL = 40  # values up to which every one counts and the program has no window
WINDOWS = (16, 48)  # stages, narrow first
NEAR = 8  # stages before the turn of a value for each of which it has a variable, in a first program of the bound
NEARLY = 1e-3  # of a bound: what a larger program is not worth
NO_PLAN = "no plan that makes each copy once meets the budget"
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
    cases = _relaxation(problem, values, budget, NEAR)
    relaxed = cases.relaxed
    if relaxed.status == "infeasible":
        return Optimum(None, always, None, NO_PLAN)
    search = _Search(problem, values, budget, relaxed.bound)
    search.add(round_relaxation(problem, values, budget, always, search.enough_s, started + seconds / 3))
    if search.best is None and relaxed.share is not None:
        search.add(repaired(problem, budget, relaxed.share, always))
    if search.best is None:
        schedule, kept, fresh, why = greedy(problem, budget)
        search.add(None if why or fresh else (schedule, kept))
    if not search.is_over:
        finer = _relaxation(problem, values, budget, None)
        if finer.relaxed.status == "infeasible" and search.best is None:
            return Optimum(None, always, None, NO_PLAN)
        search.raise_bound(finer.bound_s)
        if finer.bound_s > cases.bound_s + NEARLY * abs(cases.bound_s):  # else the smaller program does as well
            cases = finer
    for window in WINDOWS:
        left = deadline - time.process_time()
        if search.is_over or (search.best is not None and left < seconds / 4):
            break
        search.add(_search(problem, values, budget, always, window, 2 * GAP, left))
        if search.best is not None and not search.is_over:
            cases.distinguish(search.best[0].added_seconds / (1 + 2 * GAP), deadline)
            search.raise_bound(cases.bound_s)
    if search.best is None:
        return Optimum(None, always, search.bound_s, "the program found no plan")
    schedule, kept = search.best
    return Optimum(schedule, kept, min(search.bound_s, schedule.added_seconds), "")


def _relaxation(problem: PlanningProblem, values: Values, budget: int, near: int | None) -> Cases:
    """The program of the bound, solved as a linear one."""
    program = Program(problem, values, budget, WINDOWS[-1], restricted=False, near=near)
    sizes = {program.count(kind): problem.size[kind[0]] for kind in kinds(problem, values)}
    return Cases(program, sizes, program.solve(10.0, 0.0, integral=False))


@dataclass
class _Search:
    """The best schedule so far and what it keeps, and the bound."""

    problem: PlanningProblem
    values: Values
    budget: int
    bound_s: float
    best: Kept | None = None
    extended: set[frozenset[int]] = field(default_factory=set)  # what was kept before more was: often found again

    @property
    def enough_s(self) -> float:
        return _enough(self.bound_s)

    @property
    def is_over(self) -> bool:
        return self.best is not None and self.best[0].added_seconds <= self.enough_s

    def raise_bound(self, bound_s: float) -> None:
        if np.isfinite(bound_s):
            self.bound_s = max(self.bound_s, bound_s)

    def add(self, found: Kept | None) -> None:
        """A schedule within the budget, with what else there is room for."""
        if found is None or found[1] in self.extended:
            return
        self.extended.add(found[1])
        until = time.process_time() + self.problem.solving_s / 10
        self.best = better(self.best, keep_more(self.problem, self.values, self.budget, found, until))


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
            NO_PLAN if complete else "no plan was found in time",
        )
    return Optimum(best[0], best[1], min(bound, best[0].added_seconds), "")


def _enough(bound: float) -> float:
    """Added seconds that are not worth a further search."""
    return bound + 2 * GAP * abs(bound)


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
