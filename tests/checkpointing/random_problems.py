"""Planning problems made at random, as arrays, with what only a compiler's graphs have; and the best of all plans.

Unlike the steps of small_models.py, the unplanned step may recompute values already, values differ in size by a factor
of a million, some may not be kept, and a kernel may write over its input.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, combinations

from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule, make_schedule
from profiler import Region

SIZES = (2**30, 2**28, 2**20, 2**14, 512)


def random_problem(seed: int, forward: int = 9, backward: int = 6) -> PlanningProblem:
    """`forward` kernels that make one value each, and `backward` ones that each read one or two of them."""
    choose = random.Random(seed)
    count = forward + backward + 1
    inputs: list[tuple[int, ...]] = []
    for rank in range(forward):
        near = range(max(0, rank - 4), rank)
        inputs.append(tuple(sorted(choose.sample(near, min(len(near), choose.choice((1, 1, 2)))))))
    read: set[int] = set()
    for rank in range(forward, forward + backward):
        wanted = forward - 1 - int((rank - forward) * forward / backward)
        picked = {min(forward - 1, max(0, wanted + choose.randint(-1, 1))) for _ in range(choose.choice((1, 1, 2)))}
        read |= picked
        before = (rank - 1,) if rank > forward else ()
        inputs.append((*sorted(picked), *before))
    inputs.append((count - 2,))
    size = [choose.choice(SIZES) for _ in range(count - 1)] + [0]
    last = {source: rank for rank, sources in enumerate(inputs) for source in sources}
    workspace = [0] * count
    for rank in range(1, count - 1):
        if any(last[s] == rank and size[s] == size[rank] for s in inputs[rank]) and choose.random() < 0.7:
            workspace[rank] = -size[rank]
    again = {index for index in read if choose.random() < 0.25}  # the unplanned step does not keep it
    never = frozenset(index for index in again if choose.random() < 0.3)
    pinned = {index: "is pinned" for index in read - again if choose.random() < 0.1}
    problem = PlanningProblem(
        names=[f"node{rank}" for rank in range(count)],
        modules=[""] * count,
        regions=[Region.FORWARD if rank < forward else Region.BACKWARD for rank in range(count)],
        time=[choose.randint(1, 9) * 1e-3 for _ in range(count - 1)] + [0.0],
        workspace=workspace,
        inputs=inputs,
        held=[(rank,) for rank in range(count - 1)] + [()],
        created=[(rank,) for rank in range(count - 1)] + [()],
        runs_once=[rank >= forward for rank in range(count)],
        storage_names=[f"value{rank}" for rank in range(count - 1)],
        size=size[:-1],
        owned=[False] * (count - 1),
        writers=[(rank,) if rank < forward else () for rank in range(count - 1)],
        activations=sorted(read - again),
        pinned=pinned,
        resident=2**20,
        targets=["kernel"] * count,
        never_kept=never,
        copies_once=True,
    )
    return replace(problem, default_added_s=make_schedule(problem, problem.default_kept).added_seconds)


def equal_blocks(blocks: int, size: int, seconds: float) -> PlanningProblem:
    """Blocks that each make a small value, which is kept, and of it one of `size` bytes in `seconds`, which the next
    block and the backward read."""
    forward, count = 2 * blocks + 1, 3 * blocks + 2
    small, large = range(0, forward, 2), range(1, forward, 2)  # ranks; the last is what follows the blocks
    inputs: list[tuple[int, ...]] = [(rank - 1,) if rank else () for rank in range(forward)]
    inputs += [(forward - 2 - 2 * i, *((forward + i - 1,) if i else ())) for i in range(blocks)]
    return PlanningProblem(
        names=[f"node{rank}" for rank in range(count)],
        modules=[""] * count,
        regions=[Region.FORWARD if rank < forward else Region.BACKWARD for rank in range(count)],
        time=[seconds if rank in large else 0.0 for rank in range(count)],
        workspace=[0] * count,
        inputs=[*inputs, (count - 2,)],
        held=[(rank,) for rank in range(count - 1)] + [()],
        created=[(rank,) for rank in range(count - 1)] + [()],
        runs_once=[rank not in large for rank in range(count)],
        storage_names=[f"value{rank}" for rank in range(count - 1)],
        size=[size if rank in large else 0 for rank in range(count - 1)],
        owned=[False] * (count - 1),
        writers=[(rank,) if rank < forward else () for rank in range(count - 1)],
        activations=list(range(forward)),
        pinned=dict.fromkeys(small, "is small"),
        resident=0,
        targets=["kernel"] * count,
        copies_once=True,
    )


def every_schedule(problem: PlanningProblem) -> Iterator[Schedule]:
    """Of each choice of what to keep."""
    free = [i for i in problem.forward_values if i not in problem.pinned and i not in problem.never_kept]
    for kept in chain.from_iterable(combinations(free, count) for count in range(len(free) + 1)):
        yield make_schedule(problem, kept)
