"""The question, the planners that answer it, and the lower bound on any answer.

A planner is a function of a problem and a budget (bytes at the step's peak) that returns a `Plan`, or raises
`NoPlanError`. A new one is one file here and one line in `SOLVERS`.
"""

from collections.abc import Callable

from checkpointing.planners.baselines import BASELINES
from checkpointing.planners.greedy import plan_greedy
from checkpointing.planners.optimal import plan_optimal
from checkpointing.planners.plan import Plan
from checkpointing.planners.problem import PlanningProblem

SOLVERS: dict[str, Callable[[PlanningProblem, int], Plan]] = {
    "optimal": plan_optimal,
    "greedy": plan_greedy,
    **BASELINES,  # they ignore the budget
}
BUDGETED = tuple(name for name in SOLVERS if name not in BASELINES)  # those that plan for a budget
