"""Values of equal blocks, and the bound that follows from how many of each kind are kept.

    program.count(kind) for kind in kinds(problem, values)
    cases = Cases(program, sizes, relaxed); cases.distinguish(enough_s, deadline); cases.bound_s

Where the relaxation keeps a third of one block's attention matrix, a case distinction by that matrix moves the third to
the next block, whose costs are the same, and proves nothing until all blocks are through. How many of the matrices are
kept is a whole number in every plan: no block evades the cases "11 at the most" and "12 at the least".
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Mapping

from checkpointing.planners.milp import Program, Solution
from checkpointing.planners.milp_values import Values
from checkpointing.planners.problem import PlanningProblem

LARGE = 1000  # of the largest value's bytes: smaller ones decide nothing
PROGRESS = 0.1  # of the way, in a third of the time: or the search is given up
WHOLE = 1e-6  # as near to a whole number as that, it is one

Limits = dict[int, tuple[float, float]]


def kinds(problem: PlanningProblem, values: Values) -> list[list[int]]:
    """The large values, those together that are made by the same operator at the same cost; the largest first."""
    largest = max((problem.size[index] for index in values.of), default=0)
    found: dict[tuple[int, bool, str, int, bool], list[int]] = {}
    for index, value in values.of.items():
        if value.may_be_kept and problem.size[index] * LARGE >= largest:
            nanoseconds = round(1e9 * sum(problem.recompute_time[rank] for rank in value.nodes))
            target = problem.targets[problem.writers[index][0]]
            droppable = any(rank in values.droppable for rank in value.nodes)
            key = (problem.size[index], value.is_activation, target, nanoseconds, droppable)
            found.setdefault(key, []).append(index)
    return [found[key] for key in sorted(found, reverse=True)]


class Cases:
    """Case distinctions by counts, the one with the lowest bound first. `sizes` are the bytes of one value that a count
    (a variable of the program) is of; `relaxed` is the program's linear relaxation."""

    def __init__(self, program: Program, sizes: Mapping[int, int], relaxed: Solution) -> None:
        self.program, self.sizes, self.relaxed = program, sizes, relaxed
        self.number = 0
        self.open: list[tuple[float, int, Solution, Limits]] = [(relaxed.bound, 0, relaxed, {})]

    @property
    def bound_s(self) -> float:
        """No solution in whole numbers takes less."""
        return self.open[0][0]

    def distinguish(self, enough_s: float, deadline: float) -> None:
        """Raise the bound to `enough_s` or more, unless `deadline` (`time.process_time()`) ends the search, or the
        counts do, or it makes no progress."""
        began, started = self.bound_s, time.process_time()
        while self.sizes and self.bound_s < enough_s and (now := time.process_time()) < deadline:
            late = now > started + (deadline - started) / 3
            if late and self.bound_s - began < PROGRESS * (enough_s - began):
                break
            bound, _, solution, limits = self.open[0]
            variable = max(self.sizes, key=lambda v: self.sizes[v] * _fraction(solution.counts.get(v, 0.0)))
            count = solution.counts.get(variable, 0.0)
            if _fraction(count) < WHOLE:
                break
            heapq.heappop(self.open)
            least, most = limits.get(variable, (0.0, self.program.upper[variable]))
            for case in ((least, math.floor(count)), (math.ceil(count), most)):
                self._solve(bound, {**limits, variable: case}, max(0.1, deadline - time.process_time()))

    def _solve(self, bound_s: float, limits: Limits, seconds: float) -> None:
        found = self.program.solve(seconds, 0.0, integral=False, limits=limits)
        self.number += 1
        heapq.heappush(self.open, (max(bound_s, found.bound), self.number, found, limits))


def _fraction(count: float) -> float:
    """How far it is from a whole number."""
    return abs(count - round(count))
