"""mu-TWO's recomputation algorithm (MLSys 2023, appendix A), without swapping.

While the simulated peak exceeds the budget, the activation with the highest `memory size / total recompute time`
among those that are alive and idle at the peak is given up. The total counts every node that must run again, given
what has been given up so far: a source that falls is replaced by its own sources, and what an earlier choice now
needs again counts again.

Beyond the paper, a copy that waits at the peak for a later use is a candidate too: it is dropped, and made once more.
And where the paper's order ends above the budget, since what is recomputed needs memory of its own, others are tried:
the cheapest activation first, then the largest.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from checkpointing.planners.plan import NoPlanError, Plan
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule, make_schedule

MOST_ADDED = 1.0  # of the step's time: repeated copies beyond that are no plan
Order = Callable[[int, float], float]  # of an activation's bytes and the seconds to recompute it; the highest first


def by_ratio(size: int, seconds: float) -> float:
    return size / max(seconds, 1e-12)


def cheapest(size: int, seconds: float) -> float:
    return -seconds


def largest(size: int, seconds: float) -> float:
    return size


ORDERS: tuple[Order, ...] = (by_ratio, cheapest, largest)


@dataclass
class Recomputations:
    """For each forward value, the nodes to run to make it from what is kept, and how often it is made for others."""

    problem: PlanningProblem
    kept: set[int]
    chain: dict[int, set[int]] = field(default_factory=dict)  # value → ranks of the nodes to run
    sources: dict[int, set[int]] = field(default_factory=dict)  # value → kept values that they read
    dependents: dict[int, set[int]] = field(default_factory=dict)  # kept value → the values with it among `sources`
    _once: dict[int, float] = field(default_factory=dict)  # value → seconds of its chain, where it has not changed

    def __post_init__(self) -> None:
        for index in self.problem.forward_values:  # sources come before what is made of them
            if index in self.problem.pinned:
                continue
            self.chain[index] = set(self.problem.recompute_writers(index))
            self.sources[index] = set()
            for source in self.problem.sources[index]:
                self._replace(index, source)

    def _replace(self, index: int, source: int) -> None:
        if source in self.kept:  # what is pinned is kept, or is not needed by anything that may run again
            self._read(index, source)
        else:
            self.chain[index] |= self.chain[source]
            self._once.pop(index, None)
            for read in self.sources[source]:
                self._read(index, read)

    def _read(self, index: int, source: int) -> None:
        self.sources[index].add(source)
        self.dependents.setdefault(source, set()).add(index)

    def give_up(self, index: int) -> None:
        """`index` is not kept any more: whatever was made from it is now made from its sources."""
        self.kept.discard(index)
        for other in self.dependents.pop(index, ()):
            self.sources[other].discard(index)
            self._replace(other, index)

    def seconds(self, index: int) -> float:
        """Time of all nodes that must run again because `index` is given up."""
        if index not in self._once:
            again = self.problem.recompute_time
            self._once[index] = sum(again[rank] for rank in sorted(self.chain[index]))
        needed_by = sum(1 for other in self.dependents.get(index, ()) if other not in self.kept)
        return self._once[index] * (1 + needed_by)


def plan_greedy(problem: PlanningProblem, budget: int, deadline: float | None = None) -> Plan:
    """The plan of `greedy` under `budget` bytes. Raises NoPlanError where it finds none, or none by `deadline`."""
    reasons = []
    for order in ORDERS:
        _, kept, fresh, why = greedy(problem, budget, deadline=deadline, order=order)
        if not why:
            return Plan(problem, "greedy", kept, fresh, budget)
        reasons.append(why)
    raise NoPlanError(reasons[0])


def greedy(
    problem: PlanningProblem,
    budget: int,
    kept: Collection[int] | None = None,
    deadline: float | None = None,
    order: Order = by_ratio,
) -> tuple[Schedule, frozenset[int], dict[int, tuple[int, ...]], str]:
    """A schedule whose peak is at most `budget` bytes, or the lowest that was reached and why nothing helps more.

    `deadline` is a reading of `time.process_time()`.
    """
    recomputations = Recomputations(problem, set(problem.default_kept if kept is None else kept) | set(problem.pinned))
    fresh: dict[int, tuple[int, ...]] = {}
    best: tuple[Schedule, frozenset[int], dict[int, tuple[int, ...]]] | None = None
    while True:
        schedule = make_schedule(problem, recomputations.kept, fresh)
        state = (schedule, frozenset(recomputations.kept), dict(fresh))
        if best is None or schedule.peak < best[0].peak:
            best = state
        if schedule.peak <= budget:
            return *state, ""
        if schedule.added_seconds > MOST_ADDED * sum(problem.time):
            return *best, f"going on would add more than {MOST_ADDED:.0%} to the step's time"
        if deadline is not None and time.process_time() > deadline:
            return *best, "there is no more time"
        position = schedule.peak_position
        excess = int(schedule.total[position]) - budget
        idle = _idle(schedule, position, recomputations, fresh)
        if not idle:
            run = schedule.runs[position]
            reason = f"nothing is idle at {problem.names[run.rank]} ({problem.regions[run.rank].value})"
            return *best, reason
        while idle and excess > 0:
            _score, index, at = max(
                ((order(problem.size[i], recomputations.seconds(i)), i, at) for i, at in idle.items())
            )
            idle.pop(index)
            if at is None:
                recomputations.give_up(index)
            else:
                fresh[index] = (*fresh.get(index, ()), at)
            excess -= problem.size[index]


def _idle(
    schedule: Schedule, position: int, recomputations: Recomputations, fresh: Mapping[int, Collection[int]]
) -> dict[int, int | None]:
    """Values alive and unused at `position` → None to give up what is kept, a rank at which to make a copy anew."""
    problem = schedule.problem
    found: dict[int, int | None] = {}
    for life in schedule.lifetimes:
        index = life.storage
        if not life.first < position < life.last or position in life.uses or index not in recomputations.chain:
            continue
        if not life.is_copy:
            if index in recomputations.kept and index not in problem.pinned:
                found[index] = None
            continue
        if problem.copies_once:
            continue
        after = next(use for use in life.uses if use > position)
        while schedule.runs[after].is_copy or schedule.runs[after].rank < problem.backward_start:
            after += 1
        rank = schedule.runs[after].rank
        if rank not in fresh.get(index, ()):  # otherwise the backward itself holds on to it, by a view
            found[index] = rank
    return found
