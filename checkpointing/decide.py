"""From a profile and a budget to a plan; and what a plan does, before it is carried out.

profiler = GraphProfiler(step); profiler.run(*batch)
plan = decide_checkpoints(profiler, memory_budget=0.5, solver="optimal")
"""

import math
import time
from dataclasses import replace

from checkpointing import budget as budgets
from checkpointing.errors import BudgetError, CheckpointingError
from checkpointing.planners import BASELINES, SOLVERS
from checkpointing.planners.greedy import plan_greedy
from checkpointing.planners.lower_bound import unavoidable
from checkpointing.planners.plan import NoPlanError, Plan
from checkpointing.planners.problem import PlanningProblem, problem_of
from checkpointing.planners.schedule import unchanged_peak
from profiler import GraphProfiler

SEARCH_S = 1.5  # seconds of search for the budget to recommend


def decide_checkpoints(
    profile: GraphProfiler | PlanningProblem, memory_budget: float | str, solver: str = "optimal"
) -> Plan:
    """The plan of `solver` for the profiled step.

    `memory_budget` is the step's peak in bytes, a string ("24GiB"), or a fraction of its activation memory; the
    solvers `none`, `all` and `save_matmuls` know no budget and ignore it. Raises BudgetError for a budget that no
    plan can meet, or for which `solver` finds none, with the minimum, what sets it, and the budget to ask for.
    """
    started = time.perf_counter()
    if solver not in SOLVERS:
        raise CheckpointingError(f"solver={solver!r}: choose one of {', '.join(SOLVERS)}")
    budgets.check(memory_budget)
    problem = profile if isinstance(profile, PlanningProblem) else problem_of(profile)
    if solver in BASELINES:
        return replace(SOLVERS[solver](problem, 0), planning_s=time.perf_counter() - started)
    peak = unchanged_peak(problem)
    budget = budgets.in_bytes(memory_budget, problem.static_bytes, peak)
    if budget >= peak:
        note = f"the step needs {_mib(peak)} as it is: nothing is recomputed"
        seconds = time.perf_counter() - started
        return Plan(problem, solver, problem.default_kept, {}, budget, seconds, 0.0, note)
    floor, order = unavoidable(problem)
    if budget >= floor:
        try:
            return replace(SOLVERS[solver](problem, budget), planning_s=time.perf_counter() - started)
        except NoPlanError:
            floor = 0
    raise BudgetError(_rejection(problem, memory_budget, budget, floor, order, peak))


def lowest_plan(problem: PlanningProblem) -> Plan:
    """The plan of the lowest peak that `greedy` finds in `SEARCH_S` seconds, by bisection to 1% of the activations."""
    low, high = unavoidable(problem)[0], unchanged_peak(problem)
    best = Plan(problem, "none", problem.default_kept | frozenset(problem.pinned))
    step = max(1, (high - problem.static_bytes) // 100)
    deadline = time.process_time() + SEARCH_S
    while high - low > step and time.process_time() < deadline:
        middle = (low + high) // 2
        try:
            best = plan_greedy(problem, middle, deadline)
            high = best.predicted_peak_bytes
        except NoPlanError:
            low = middle
    return best


def _rejection(problem: PlanningProblem, given: float | str, budget: int, floor: int, order: int, peak: int) -> str:
    """One sentence: the budget in bytes, the minimum, what sets it, and what to ask for.

    The minimum is `floor` bytes, set by the node at `order`; 0: the lowest budget for which a plan is found.
    """
    static = problem.static_bytes
    advice, plan = _lowest(problem, given, max(budget, floor), peak)
    what = "the minimum of"
    if not floor:
        what = "the lowest that was reached,"
        floor, order = plan.predicted_peak_bytes, plan.schedule.runs[plan.schedule.peak_position].rank
    asked, minimum = budgets.told_apart(budget, floor)
    where = f"{problem.names[order]} ({problem.regions[order].value}, {problem.modules[order]})"
    fraction = (floor - static) / max(1, peak - static)
    return (
        f"memory_budget={given!r} is {asked}, below {what} {minimum} (fraction {fraction:.3f}), "
        f"set by {where}: use at least {advice}"
    )


def _lowest(problem: PlanningProblem, given: float | str, above: int, peak: int) -> tuple[str, Plan]:
    """The lowest budget for which `greedy` has a plan, written as `given` is, and that plan; by bisection, to 1% if
    there is time.

    `optimal` takes greedy's plan where it finds none itself, so greedy, which is quicker, decides for both.
    """
    static = problem.static_bytes
    advice, best = _written_as(given, 100, static, peak)[0], Plan(problem, "none", problem.default_kept)
    low, high = max(0, (above - static) * 100 // max(1, peak - static) - 1), 100  # per cent of the activation memory
    deadline = time.process_time() + SEARCH_S
    while high - low > 1 and time.process_time() < deadline:
        middle = (low + high) // 2
        text, value = _written_as(given, middle, static, peak)
        try:
            best = plan_greedy(problem, value, deadline)
            advice, high = text, middle
        except NoPlanError:
            low = middle
    return advice, best


def _written_as(given: float | str, percent: int, static: int, peak: int) -> tuple[str, int]:
    """A share of the activation memory as a fraction, a string or a number of bytes, like `given`; and its bytes."""
    size = budgets.in_bytes(percent / 100, static, peak)
    if isinstance(given, str):
        text = f"{math.ceil(size / 2**20 * 100) / 100:.2f}MiB"
        return f'"{text}"', budgets.in_bytes(text, static, peak)
    return (f"{percent / 100:.2f}", size) if given <= 1 else (f"{size}", size)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
