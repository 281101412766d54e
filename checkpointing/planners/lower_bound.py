"""What no plan can go below: the memory that a node needs while it runs, whatever is kept."""

import numpy as np

from checkpointing.planners.milp_values import read_by_backward
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import make_schedule


def unavoidable(problem: PlanningProblem) -> tuple[int, int]:
    """(bytes, rank): the highest sum over a node of what the user owns, what the node reads and makes, its
    workspace, and all values alive that no plan can free. A lower budget has no plan."""
    schedule = make_schedule(problem, read_by_backward(problem))  # so that nothing is a copy
    total = schedule.total.copy()
    movable = set(problem.forward_values) - set(problem.pinned)
    for life in schedule.lifetimes:
        if life.storage in movable:
            busy = np.zeros(len(total), dtype=bool)
            busy[[life.first, *life.uses]] = True
            total[life.first : life.last + 1][~busy[life.first : life.last + 1]] -= problem.size[life.storage]
    # What the forward makes for the backward alone need not run there.
    least = {run.rank for run in make_schedule(problem, problem.pinned).runs if not run.is_copy}
    total[[run.rank not in least for run in schedule.runs]] = 0
    position = int(total.argmax())
    return int(total[position]), schedule.runs[position].rank
