"""The forward values that deserve a decision of their own, and what no decision changes.

An activation that may be recomputed does, if it is not negligible. A temporary does if keeping it could pay: when
several values are made of it, or one that is larger. Any other temporary is made along with what needs it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from checkpointing.problem import Problem
from checkpointing.schedule import Lifetime, make_schedule

NEGLIGIBLE = 1e-4  # of all activation bytes; such activations are kept


@dataclass(frozen=True)
class Value:
    """A forward value with a decision of its own. Ranks are those of the step as it is."""

    index: int
    is_activation: bool
    sources: tuple[int, ...]  # values with decisions of their own that making it reads
    nodes: tuple[int, ...]  # ranks of the nodes that run again with it
    extra: int  # most bytes beyond the value itself while they run
    created: int
    last_forward_use: int
    first_use: int  # in the backward; of a temporary, of the first activation that is made of it
    last_use: int  # in the backward; of a temporary, the first use of the last activation that is made of it


@dataclass(frozen=True)
class Values:
    """All of them, by index, and the bytes that everything else takes: during each node, and before it."""

    of: dict[int, Value]
    fixed: np.ndarray  # rank → bytes during the node
    between: np.ndarray  # rank → bytes alive before and after the node starts


def find_values(problem: Problem, negligible: float = NEGLIGIBLE) -> Values:
    """Choose the values with decisions and measure what surrounds them."""
    schedule = make_schedule(problem, problem.default_kept)  # as it is: a position is a rank, unless a node was dead
    ranks = [run.rank for run in schedule.runs]
    lives = {life.storage: life for life in schedule.lifetimes}
    start = problem.backward_start
    smallest = negligible * sum(problem.size[i] for i in problem.activations)
    active = [i for i in problem.candidates if problem.size[i] > smallest and i in lives]
    dependents = _dependents(problem)
    own = set(active) | {
        i
        for i in problem.keepable
        if problem.size[i] > smallest and i in lives and not _made_along(problem, i, dependents.get(i, []))
    }
    there = own | set(problem.activations) | set(problem.pinned)
    first_need: dict[int, tuple[int, int]] = {}
    found: dict[int, Value] = {}
    fixed = np.zeros(problem.count, dtype=np.int64)
    fixed[ranks] = schedule.total
    between = _between(problem, ranks, schedule.lifetimes)
    active_set = set(active)
    for index in reversed(problem.forward_values):  # what is made of a value comes after it
        uses = [ranks[p] for p in lives[index].uses] if index in lives else []
        backward = [rank for rank in uses if rank >= start]
        if index in active_set:
            first_need[index] = (min(backward), min(backward))
        else:
            needs = [first_need[d] for d in dependents.get(index, []) if d in first_need]
            if index in problem.pinned or index in set(problem.activations) or not needs:
                continue
            first_need[index] = (min(first for first, _ in needs), max(last for _, last in needs))
        if index not in own:
            continue
        nodes, read = problem.nodes_to_make(index, there)
        last_forward = max([rank for rank in uses if rank < start], default=problem.writers[index][-1])
        life = lives[index]
        first, last = ranks[life.first], ranks[life.last]
        size = problem.size[index]
        fixed[first : last + 1] -= size
        between[first + 1 : last + 1] -= size
        is_activation = index in active_set
        found[index] = Value(
            index=index,
            is_activation=is_activation,
            sources=tuple(sorted(read & own)),
            nodes=tuple(sorted(nodes)),
            extra=_extra(problem, index, sorted(nodes)),
            created=problem.writers[index][0],
            last_forward_use=max(last_forward, problem.writers[index][-1]),
            first_use=first_need[index][0],
            last_use=last if is_activation else first_need[index][1],
        )
    return Values(found, fixed, between)


def _between(problem: Problem, ranks: list[int], lives: Iterable[Lifetime]) -> np.ndarray:
    change = np.zeros(problem.count + 1, dtype=np.int64)
    for life in lives:
        if life.last > life.first:
            change[ranks[life.first] + 1] += problem.size[life.storage]
            change[ranks[life.last] + 1] -= problem.size[life.storage]
    return np.cumsum(change[:-1]) + problem.static_bytes


def _dependents(problem: Problem) -> dict[int, list[int]]:
    """Forward value → what is made of it."""
    found: dict[int, list[int]] = {}
    for index in problem.forward_values:
        if index not in problem.pinned:
            for source in problem.sources[index]:
                found.setdefault(source, []).append(index)
    return found


def _made_along(problem: Problem, index: int, dependents: list[int]) -> bool:
    """Whether keeping the temporary is never better than keeping what is made of it."""
    return not dependents or (len(dependents) == 1 and problem.size[index] >= problem.size[dependents[0]])


def _extra(problem: Problem, index: int, nodes: list[int]) -> int:
    """Most bytes of temporaries and workspace while the nodes run, beyond the value that they make."""
    last_use: dict[int, int] = {}
    for rank in nodes:
        for source in (*problem.again_inputs(rank), rank):
            for held in problem.held[source]:
                last_use[held] = rank
    made: dict[int, int] = {}
    peak = 0
    for rank in nodes:
        for created in problem.again_created(rank):
            made[created] = problem.size[created]
        live = sum(made.values())
        peak = max(peak, live + problem.again_workspace(rank))
        made = {held: size for held, size in made.items() if last_use.get(held, rank) > rank or held == index}
    return max(0, peak - problem.size[index])
