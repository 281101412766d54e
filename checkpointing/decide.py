"""From a profile and a budget to a plan; and what a plan does, before it is carried out.

profiler = GraphProfiler(step); profiler.run(*batch)
plan = decide_checkpoints(profiler, memory_budget=0.5, solver="optimal")
"""

import time

from checkpointing import budget as budgets
from checkpointing.errors import BudgetError, CheckpointingError
from checkpointing.planners.baselines import keep_everything, keep_matmuls, keep_nothing
from checkpointing.planners.greedy import greedy
from checkpointing.planners.lower_bound import unavoidable
from checkpointing.planners.optimal import optimal
from checkpointing.planners.plan import Plan
from checkpointing.planners.problem import Problem, problem_of
from profiler import GraphProfiler

REFERENCES = {"none": keep_everything, "all": keep_nothing, "save_matmuls": keep_matmuls}
SOLVERS = ("optimal", "greedy", *REFERENCES)


def decide_checkpoints(profile: GraphProfiler | Problem, memory_budget: float | str, solver: str = "optimal") -> Plan:
    """The plan of `solver` for the profiled step.

    `memory_budget` is the step's peak in bytes, a string ("24GiB"), or a fraction of its activation memory; the
    solvers `none`, `all` and `save_matmuls` know no budget and ignore it. Raises BudgetError for a budget that no
    plan (`greedy`: that it) can meet, with the lowest that can be met and what sets it.
    """
    started = time.perf_counter()
    if solver not in SOLVERS:
        raise CheckpointingError(f"solver={solver!r}: choose one of {', '.join(SOLVERS)}")
    budgets.check(memory_budget)
    problem = profile if isinstance(profile, Problem) else problem_of(profile)
    if solver in REFERENCES:
        return Plan(problem, solver, REFERENCES[solver](problem), planning_s=time.perf_counter() - started)
    budget = budgets.in_bytes(memory_budget, problem.static_bytes, problem.unchanged_peak)
    if budget >= problem.unchanged_peak:
        note = f"the step needs {_mib(problem.unchanged_peak)} as it is: nothing is recomputed"
        seconds = time.perf_counter() - started
        return Plan(problem, solver, problem.default_kept, {}, budget, seconds, 0.0, note)
    _check_floor(problem, budget, memory_budget)
    plan = _attempt(problem, solver, budget, started)
    if plan is None:
        lowest = _lowest(problem, solver, budget)
        raise BudgetError(
            f"memory_budget={memory_budget!r} is {_mib(budget)}, and the lowest budget for which {solver} finds a plan "
            f"is {_mib(lowest.schedule.peak)} ({_share(problem, lowest.schedule.peak):.3f} of the activation memory), "
            f"where {_where(problem, lowest.schedule.runs[lowest.schedule.peak_position].rank)} needs the most: "
            "raise the budget"
        )
    return plan


def _attempt(problem: Problem, solver: str, budget: int, started: float) -> Plan | None:
    note, bound = "", None
    if solver == "optimal":
        optimum = optimal(problem, budget)
        if optimum.schedule is not None:
            seconds = time.perf_counter() - started
            return Plan(problem, solver, optimum.kept, {}, budget, seconds, optimum.bound_s, optimum.note)
        note = f"{optimum.note}; this plan is greedy's, which may make a copy more than once"
    _schedule, kept, fresh, why = greedy(problem, budget)
    if why:
        return None
    return Plan(problem, solver, kept, fresh, budget, time.perf_counter() - started, bound, note)


def _lowest(problem: Problem, solver: str, refused: int) -> Plan:
    """The plan of the lowest budget that has one, to within 1% of the activation memory, by bisection.

    `optimal` takes greedy's plan where it finds none itself, so greedy, which is quicker, decides for both.
    """
    best = Plan(problem, solver, problem.default_kept)
    low, high = refused, problem.unchanged_peak
    while high - low > 0.01 * (problem.unchanged_peak - problem.static_bytes):
        middle = (low + high) // 2
        plan = _attempt(problem, "greedy", middle, time.perf_counter())
        if plan is None:
            low = middle
        else:
            best, high = plan, min(middle, plan.schedule.peak)
    return best


def _check_floor(problem: Problem, budget: int, given: float | str) -> None:
    floor, rank = unavoidable(problem)
    if budget < floor:
        raise BudgetError(
            f"memory_budget={given!r} is {_mib(budget)}, and no plan needs less than {_mib(floor)} "
            f"({_share(problem, floor):.3f} of the activation memory), needed while {_where(problem, rank)} runs: "
            "raise the budget"
        )


def _share(problem: Problem, peak: int) -> float:
    return (peak - problem.static_bytes) / (problem.unchanged_peak - problem.static_bytes)


def _where(problem: Problem, rank: int) -> str:
    return f"{problem.names[rank]} ({problem.regions[rank].value}, {problem.modules[rank]})"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
