"""What a byte more of budget is worth, at a budget: the slope of the least added time over the budget.

    1e3 * 2**30 * price_of_memory(problem, budget)      # ms saved per GiB more

The added time of whole plans is a step function of the budget, whose slope is 0 or infinite. The linear relaxation of
the program (`milp`) is a convex, falling, piecewise linear function below it, and its slope is the dual: the sum of the
prices of the memory rows. It is computed as the difference between two budgets near each other, which is the
dual towards more memory where the two coincide, and defined where the dual is not unique.
"""

from checkpointing.planners.milp import Program
from checkpointing.planners.milp_values import find_values
from checkpointing.planners.optimal import WINDOWS
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import unchanged_peak

PART = 1000  # of the budget: the distance between the two
SECONDS = 10.0  # for each of the two linear programs


def price_of_memory(problem: PlanningProblem, budget: int) -> float | None:
    """Seconds saved per byte more than `budget`; 0 where nothing needs to be recomputed.

    None where the relaxation has no solution, as below the lowest budget that can be met, or was not solved in time.
    """
    if budget >= unchanged_peak(problem):
        return 0.0
    step = max(1, budget // PART)
    values = find_values(problem)
    times = []
    for bytes_ in (budget, budget + step):
        program = Program(problem, values, bytes_, WINDOWS[-1], restricted=False)
        solution = program.solve(SECONDS, 0.0, integral=False)
        if solution.share is None or solution.bound < solution.seconds:
            return None
        times.append(solution.seconds)
    return max(0.0, times[0] - times[1]) / step
