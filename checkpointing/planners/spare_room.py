"""Keep what a plan leaves room for.

    schedule, kept = keep_more(problem, values, budget, (schedule, kept), deadline)

The program is a little too careful where stages are long. Of a hundred values that could be kept, few are asked of the
exact schedule: between its last use in the forward and its copy, a value takes its bytes on top of what is there
already, and all that may go when the copy isn't made is what the copy is the last to read.
"""

from __future__ import annotations

import time

import numpy as np

from checkpointing.planners.milp_values import Values
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule, make_schedule

Kept = tuple[Schedule, frozenset[int]]


def keep_more(problem: PlanningProblem, values: Values, budget: int, best: Kept, deadline: float) -> Kept:
    """`best`, or one that keeps more within `budget` bytes and adds less; most time first, until `deadline`
    (`time.process_time()`)."""
    again = [value for value in values.of.values() if value.may_be_kept and value.index not in best[1]]
    room = Room(best[0], budget)
    for value in sorted(again, key=lambda v: -sum(problem.recompute_time[rank] for rank in v.nodes)):
        if time.process_time() > deadline:
            break
        if not room.may_hold(value.index):
            continue
        kept = best[1] | {value.index}
        schedule = make_schedule(problem, kept)
        if schedule.added_seconds < best[0].added_seconds and schedule.peak <= budget:
            best, room = (schedule, kept), Room(schedule, budget)
    return best


class Room:
    """What a schedule leaves of the budget."""

    def __init__(self, schedule: Schedule, budget: int) -> None:
        self.schedule, self.budget = schedule, budget
        self.copy_at = {run.rank: position for position, run in enumerate(schedule.runs) if run.is_copy}
        self.forward_end = {life.storage: life.last for life in schedule.lifetimes if not life.is_copy}
        start = schedule.problem.backward_start
        self.start = sum(1 for run in schedule.runs if run.rank < start and not run.is_copy)
        self.least: dict[int, np.ndarray] = {}  # first of some copies in a row → bytes at least before, without them

    def may_hold(self, index: int) -> bool:
        """Whether the value may be kept, in place of the copy that there is of it. If not, no schedule does so."""
        position = self.copy_at.get(self.schedule.problem.recompute_writers(index)[-1])
        if position is None:  # it is not recomputed
            return False
        runs = self.schedule.runs
        first = last = position
        while runs[first - 1].is_copy:
            first -= 1
        while runs[last + 1].is_copy:
            last += 1
        if first not in self.least:
            self.least[first] = self._without(first, last)
        between = self.least[first][min(self.forward_end.get(index, self.start) + 1, self.start) :]
        return not len(between) or int(between.max()) + self.schedule.problem.size[index] <= self.budget

    def _without(self, first: int, last: int) -> np.ndarray:
        """Bytes at least at each position before `first` if the runs from there to `last` were others."""
        problem = self.schedule.problem
        change = np.zeros(len(self.schedule.runs) + 1, dtype=np.int64)
        for life in self.schedule.lifetimes:
            if life.first < first <= life.last <= last:
                change[life.first] += problem.size[life.storage]
                change[life.last + 1] -= problem.size[life.storage]
        return (self.schedule.total - np.cumsum(change[:-1]))[:first]
