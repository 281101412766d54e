"""Where each recomputation goes, given what is kept: the mechanism, without any policy.

    schedule = make_schedule(problem, kept)
    schedule.peak, schedule.added_seconds

The backward is walked in its order. When a node reads a forward value that is not kept and of which there is no
copy, the nodes that make it run again just before, in the order of the forward, from what is kept and from copies
that are still there. A copy is made at its first need and serves all later ones, unless `fresh` asks for a new one
from some rank on: then memory is free between the uses, and time is spent twice. What a forward node made only for
the backward, and is now made there, is no longer made in the forward.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from checkpointing.planners.problem import PlanningProblem


class Run(NamedTuple):
    """One execution of a node. `inputs` are positions of runs in the schedule, in the order of the node's inputs."""

    rank: int
    is_copy: bool
    inputs: tuple[int, ...]


class Lifetime(NamedTuple):
    """One piece of memory: of forward value or other storage `storage`, alive from `first` to `last` inclusive."""

    storage: int
    is_copy: bool
    first: int
    last: int
    uses: tuple[int, ...]  # positions at which it is used


@dataclass
class Schedule:
    """A rewritten step as a list of runs; positions are indices of `runs`."""

    problem: PlanningProblem
    runs: list[Run]

    @cached_property
    def added_seconds(self) -> float:
        """Time of the copies less that of the forward nodes that no longer run, though the step has a use for them.

        Copies that the original step makes too do not count.
        """
        time, again, needed = self.problem.time, self.problem.recompute_time, self.problem.needed
        copies = sum(again[run.rank] for run in self.runs if run.is_copy)
        there = {run.rank for run in self.runs if not run.is_copy}
        saved = sum(time[rank] for rank in range(self.problem.count) if needed[rank] and rank not in there)
        return copies - saved - self.problem.default_added_s

    @cached_property
    def lifetimes(self) -> list[Lifetime]:
        """Of all storages that the step makes, those of no size left out."""
        problem = self.problem
        held_by_run: list[dict[int, int]] = []  # storage → instance
        storage_of: list[int] = []
        first: list[int] = []
        last: list[int] = []
        uses: list[list[int]] = []
        copied: list[bool] = []
        for position, run in enumerate(self.runs):
            created = problem.recompute_created(run.rank) if run.is_copy else problem.created[run.rank]
            mine: dict[int, int] = {}
            for index in problem.held[run.rank]:
                if problem.owned[index]:
                    continue
                if index in created:
                    mine[index] = len(first)
                    storage_of.append(index)
                    first.append(position)
                    last.append(position)
                    uses.append([])
                    copied.append(run.is_copy)
                    continue
                for source in run.inputs:
                    instance = held_by_run[source].get(index)
                    if instance is not None:
                        mine[index] = instance
                        break
            held_by_run.append(mine)
            for source in run.inputs:
                for instance in held_by_run[source].values():
                    last[instance] = position
                    uses[instance].append(position)
        size = problem.size
        return [
            Lifetime(storage_of[i], copied[i], first[i], last[i], tuple(uses[i]))
            for i in range(len(first))
            if size[storage_of[i]]
        ]

    @cached_property
    def total(self) -> np.ndarray:
        """Bytes during each run: what is alive, its workspace, and what belongs to the user."""
        problem = self.problem
        change = np.zeros(len(self.runs) + 1, dtype=np.int64)
        for life in self.lifetimes:
            change[life.first] += problem.size[life.storage]
            change[life.last + 1] -= problem.size[life.storage]
        workspace = np.array(
            [problem.recompute_workspace(r.rank) if r.is_copy else problem.workspace[r.rank] for r in self.runs]
        )
        return np.cumsum(change[:-1]) + workspace + problem.static_bytes

    @property
    def peak_position(self) -> int:
        return int(self.total.argmax())

    @property
    def peak(self) -> int:
        """Bytes at the peak, the user's tensors included."""
        return int(self.total.max())


def make_schedule(
    problem: PlanningProblem, kept: Collection[int], fresh: Mapping[int, Collection[int]] | None = None
) -> Schedule:
    """The runs of the step when the forward values `kept` (storages) are kept and the others recomputed.

    `fresh` maps a forward value to backward ranks from which on a new copy is made, if one is needed there.
    """
    return _Builder(problem, frozenset(kept) | frozenset(problem.pinned), fresh or {}).build()


def unchanged_peak(problem: PlanningProblem) -> int:
    """Bytes at the peak of the step as it is, simulated."""
    return make_schedule(problem, problem.default_kept).peak


class _Builder:
    """Appends runs in order. With five nodes, ranks 0 to 2 in the forward and 3 and 4 in the backward,

        0  h = linear(x)      makes value 0, a temporary
        1  a = relu(h)        makes value 1, read by 3 and 4
        2  y = sum(a)
        3  p = backward_of_sum(a)
        4  q = backward_of_relu(p, a)

    and value 1 kept, the runs are the nodes as they are: 0 1 2 3 4. With nothing kept, `build` appends 0 1 2; at rank 3
    the input 1 is lost, so `_copy` appends the runs 0' and 1' (h is gone by then, so it runs again too), and then 3,
    whose input is redirected to 1'. At rank 4 there is a copy of value 1 and nothing is appended before it:

        runs      0 1 2 0' 1' 3 4        original: rank -> position of the node itself
        position  0 1 2 3  4  5 6        copy:     rank -> position of its copy: {0: 3, 1: 4}

    With `fresh` {1: (4,)} the copies are forgotten at rank 4, and 0' 1' are appended once more before it.
    """

    def __init__(self, problem: PlanningProblem, kept: frozenset[int], fresh: Mapping[int, Collection[int]]) -> None:
        self.problem, self.kept = problem, kept
        self.fresh_at: dict[int, list[int]] = {}
        for index, ranks in fresh.items():
            for rank in ranks:
                self.fresh_at.setdefault(rank, []).append(index)
        self.runs: list[Run] = []
        self.original: list[int] = [-1] * problem.count  # rank → position
        self.copy: dict[int, int] = {}  # rank of a forward node → position of its copy
        self.copied: set[int] = set()  # forward values of which there is a copy

    def build(self) -> Schedule:
        problem, kept, start = self.problem, self.kept, self.problem.backward_start
        self.gone = {index for index in problem.forward_values if index not in kept}
        self.lost = lost = [False] * start
        for index in self.gone:
            for rank in problem.holders[index]:
                lost[rank] = True
        self.runs += [Run(rank, False, problem.inputs[rank]) for rank in range(start)]
        self.original[:start] = range(start)
        for rank in range(start, problem.count):
            for index in self.fresh_at.get(rank, ()):
                self._forget(index)
            inputs = problem.inputs[rank]
            missing = [i for i in inputs if i < start and lost[i]]
            if missing:
                self._copy([i for i in missing if not self._is_whole(i)])
            redirected = tuple([self.copy[i] if i < start and lost[i] else self.original[i] for i in inputs])
            self.original[rank] = len(self.runs)
            self.runs.append(Run(rank, False, redirected))
        return Schedule(problem, _without_dead(problem, self.runs))

    def _forget(self, index: int) -> None:
        self.copied.discard(index)
        for rank in self.problem.holders[index]:
            self.copy.pop(rank, None)

    def _is_whole(self, rank: int) -> bool:
        """Whether there is a copy of the node's value with all that the forward wrote into it."""
        gone = self.gone
        return rank in self.copy and all(i in self.copied or i not in gone for i in self.problem.held[rank])

    def _copy(self, wanted: list[int]) -> None:
        """Append the runs that make copies of the forward nodes `wanted`.

        Of a node with several results only those that are needed are completed by what writes into them later.
        """
        problem, lost = self.problem, self.lost
        pending, needed = [(rank, True) for rank in wanted], set[int]()
        while pending:
            rank, whole = pending.pop()
            if whole:
                for index in problem.held[rank]:
                    if index in self.gone and index not in self.copied:
                        self.copied.add(index)
                        pending += [(writer, False) for writer in problem.recompute_writers(index)]
            if rank in needed or rank in self.copy:
                continue
            needed.add(rank)
            pending += [(i, False) for i in problem.elements.get(rank, ()) if lost[i] and i not in problem.substitutes]
            pending += [(i, i not in problem.elements) for i in problem.recompute_inputs(rank) if lost[i]]
        for rank in sorted(needed):
            inputs = tuple([self.copy[i] if lost[i] else self.original[i] for i in problem.recompute_inputs(rank)])
            self.copy[rank] = len(self.runs)
            self.runs.append(Run(rank, True, inputs))


def _without_dead(problem: PlanningProblem, runs: list[Run]) -> list[Run]:
    """Drop runs whose result nobody uses, where running them has no other effect."""
    users = [0] * len(runs)
    for run in runs:
        for source in run.inputs:
            users[source] += 1
    alive = [True] * len(runs)
    start = problem.backward_start
    for position in range(len(runs) - 1, -1, -1):
        run = runs[position]
        if users[position] or problem.runs_once[run.rank] or run.rank >= start:
            continue
        alive[position] = False
        for source in run.inputs:
            users[source] -= 1
    if all(alive):
        return runs
    first = alive.index(False)
    new = list(range(first)) + [-1] * (len(runs) - first)
    kept = runs[:first]
    for position in range(first, len(runs)):
        if alive[position]:
            run = runs[position]
            new[position] = len(kept)
            kept.append(Run(run.rank, run.is_copy, tuple([new[i] for i in run.inputs])))
    return kept
