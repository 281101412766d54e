"""The forward values that deserve a decision of their own, and what no decision changes.

What the backward reads does, if it may be recomputed: the activations, and what the unplanned step recomputes itself. A
temporary does if keeping it could pay: when several values are made of it, or one that is larger. Any other temporary
is made along with what needs it. Size is no reason to leave a value out: the maximum of a softmax's row is a thousandth
of what is made from it, and keeping it saves a pass over the whole.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np

from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Lifetime, make_schedule


@dataclass(frozen=True)
class Value:
    """A forward value with a decision of its own. Ranks are those of the step as it is."""

    index: int
    is_activation: bool  # read by the backward
    may_be_kept: bool
    sources: tuple[int, ...]  # values with decisions of their own that making it reads
    nodes: tuple[int, ...]  # ranks of the nodes that run again with it
    extra: int  # most bytes beyond the value itself while they run
    least_extra: int  # the same where whatever may be kept and is made along has been kept, and costs nothing
    last_forward_use: (
        int  # in a forward that makes it for nothing else; before its producer where that does not make it
    )
    first_use: int  # in the backward; of a temporary, of the first activation that is made of it
    last_use: int  # in the backward; of a temporary, the first use of the last activation that is made of it


@dataclass(frozen=True)
class Values:
    """All of them, by index, and the bytes that everything else takes: during each node, and before it."""

    of: dict[int, Value]
    fixed: np.ndarray  # rank → bytes during the node
    between: np.ndarray  # rank → bytes alive before and after the node starts
    droppable: dict[int, tuple[int, ...]]  # rank of a node that the forward may do without → values that need it there


def find_values(problem: PlanningProblem, every: bool = False) -> Values:
    """Choose the values with decisions, `every` one that may be kept if asked to, and measure what surrounds them.

    With five nodes, where the backward reads `a` and `b` and value sizes are in brackets,

        0  h = linear(x)    [4]    a temporary: `a` and `b` are made from it
        1  a = relu(h)      [4]    an activation
        2  b = sigmoid(h)   [4]    an activation
        3  s = a + b        [4]    a temporary that nothing else is made from
        4  y = sum(s)       [0]

    `a` and `b` get decisions, and so does `h`: two values are made from it, so that keeping it alone may be better than
    keeping both, or than running `linear` twice. `s` gets none. Of `a`, then, the sources are (h,), the nodes (1,),
    as `h` has a decision of its own, and `extra` is 0; of `h` the nodes are (0,), and `first_use` is that of whichever
    of `a` and `b` the backward reads first. Without `b`, `h` would get none either: it is as large as `a`, and keeping
    `a` saves more. Then the nodes of `a` are (0, 1), and its `extra` is 4, for `h` lives while `a` is made.
    """
    demanded = read_by_backward(problem)
    schedule = make_schedule(problem, demanded)  # so that nothing is a copy
    ranks = [run.rank for run in schedule.runs]
    lives = {life.storage: life for life in schedule.lifetimes}
    start = problem.backward_start
    active = [i for i in demanded if i not in problem.pinned and i in lives]
    dependents = _dependents(problem)
    keepable = {i for i in lives if problem.writers[i] and i not in problem.pinned and i not in problem.never_kept}
    temporaries = keepable - set(demanded)
    own = set(active) | {i for i in temporaries if every or not _made_along(problem, i, dependents.get(i, []))}
    fixed = np.zeros(problem.count, dtype=np.int64)
    np.maximum.at(fixed, ranks, schedule.total)
    certain = _forward_of_every_plan(problem, own, fixed)
    there = own | set(demanded) | set(problem.pinned)
    first_need: dict[int, tuple[int, int]] = {}
    found: dict[int, Value] = {}
    between = _between(problem, ranks, schedule.lifetimes)
    active_set = set(active)
    for index in reversed(problem.forward_values):  # what is made of a value comes after it
        uses = [ranks[p] for p in lives[index].uses] if index in lives else []
        backward = [rank for rank in uses if rank >= start]
        if index in active_set:
            first_need[index] = (min(backward), min(backward))
        else:
            needs = [first_need[d] for d in dependents.get(index, []) if d in first_need]
            if index in problem.pinned or index in demanded or not needs:
                continue
            first_need[index] = (min(first for first, _ in needs), max(last for _, last in needs))
        if index not in own:
            continue
        nodes, read = problem.nodes_to_make(index, there)
        life = lives[index]
        first, last = ranks[life.first], ranks[life.last]
        size = problem.size[index]
        fixed[max(first, start) : last + 1] -= size
        between[first + 1 : last + 1] -= size
        is_activation = index in active_set
        found[index] = Value(
            index=index,
            is_activation=is_activation,
            may_be_kept=index not in problem.never_kept,
            sources=tuple(sorted(read & own)),
            nodes=tuple(sorted(nodes)),
            extra=_extra(problem, index, sorted(nodes), own),
            least_extra=_extra(problem, index, sorted(nodes), own | keepable),
            last_forward_use=certain.get(index, problem.writers[index][0] - 1),
            first_use=first_need[index][0],
            last_use=last if is_activation else first_need[index][1],
        )
    return Values(found, fixed, between, _droppable(problem, found))


def read_by_backward(problem: PlanningProblem) -> list[int]:
    """The forward values that nodes of the backward read, in the order of their creation: of those that the unplanned
    step keeps all but what it only recomputes others from; and what it recomputes."""
    start = problem.backward_start
    read = {i for rank in range(start, problem.count) for source in problem.inputs[rank] if source < start
            for i in problem.held[source]}  # fmt: skip
    return [index for index in problem.forward_values if index in read]


def _forward_of_every_plan(problem: PlanningProblem, own: Iterable[int], fixed: np.ndarray) -> dict[int, int]:
    """Set `fixed` in the forward to what is there when no value of `own` is kept: any other plan has that and more.
    Value → rank of its last use there, of those that the forward makes then."""
    start = problem.backward_start
    schedule = make_schedule(problem, set(problem.activations) - set(own) | set(problem.pinned))
    fixed[:start] = 0
    for run, total in zip(schedule.runs, schedule.total, strict=True):
        if run.rank < start and not run.is_copy:
            fixed[run.rank] = total
    found: dict[int, int] = {}
    for life in schedule.lifetimes:
        if not life.is_copy and schedule.runs[life.first].rank < start:
            uses = [schedule.runs[p] for p in (life.first, *life.uses)]
            found[life.storage] = max(run.rank for run in uses if run.rank < start and not run.is_copy)
    return found


def _droppable(problem: PlanningProblem, own: Iterable[int]) -> dict[int, tuple[int, ...]]:
    always = set(problem.activations) - set(own) | set(problem.pinned)
    still = {run.rank for run in make_schedule(problem, always).runs if not run.is_copy}
    needing: dict[int, list[int]] = {rank: [] for rank in range(problem.backward_start) if rank not in still}
    for index in own:
        seen: set[int] = set()
        pending = list(problem.writers[index])
        while pending:
            rank = pending.pop()
            if rank not in seen:
                seen.add(rank)
                pending += problem.inputs[rank]
        for rank in seen & needing.keys():
            needing[rank].append(index)
    return {rank: tuple(sorted(indices)) for rank, indices in needing.items()}


def _between(problem: PlanningProblem, ranks: list[int], lives: Iterable[Lifetime]) -> np.ndarray:
    change = np.zeros(problem.count + 1, dtype=np.int64)
    for life in lives:
        if life.last > life.first:
            change[ranks[life.first] + 1] += problem.size[life.storage]
            change[ranks[life.last] + 1] -= problem.size[life.storage]
    return np.cumsum(change[:-1]) + problem.static_bytes


def _dependents(problem: PlanningProblem) -> dict[int, list[int]]:
    """Forward value → what is made of it."""
    found: dict[int, list[int]] = {}
    for index in problem.forward_values:
        if index not in problem.pinned:
            for source in problem.sources[index]:
                found.setdefault(source, []).append(index)
    return found


def _made_along(problem: PlanningProblem, index: int, dependents: list[int]) -> bool:
    """Whether keeping the temporary is never better than keeping what is made of it."""
    if not dependents:
        return True
    only = dependents[0]
    return len(dependents) == 1 and only not in problem.never_kept and problem.size[index] >= problem.size[only]


def _extra(problem: PlanningProblem, index: int, nodes: list[int], own: Container[int]) -> int:
    """Most bytes of temporaries and workspace while the nodes run, beyond the value that they make."""
    last_use: dict[int, int] = {}
    for rank in nodes:
        for source in (*problem.recompute_inputs(rank), rank):
            for held in problem.held[source]:
                last_use[held] = rank
    made: dict[int, int] = {}
    peak = 0
    for rank in nodes:
        for created in problem.recompute_created(rank):
            if created == index or created not in own:  # the others have variables
                made[created] = problem.size[created]
        live = sum(made.values())
        peak = max(peak, live + problem.recompute_workspace(rank))
        made = {held: size for held, size in made.items() if last_use.get(held, rank) > rank or held == index}
    return max(0, peak - problem.size[index])
