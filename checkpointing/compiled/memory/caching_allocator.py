"""Which blocks CUDA's caching allocator hands out: `torch.cuda.memory_allocated` counts blocks, not requests.

    allocator = CachingAllocator()
    block = allocator.malloc(3 * 2**20)
    allocator.free(block); allocator.allocated, allocator.reserved

    memory = step_memory(static, forward, backward, saved={0: 1, 1: 2}, state=[...])
    memory.peak_backward
    pool = graph_pool(forward, backward, saved={0: 1, 1: 2})    # where both are CUDA graphs
    pool.reserved, pool.first_block

A request gets the smallest free block that holds it, and up to 1 MiB of that block's rest comes along. The rules are
those of PyTorch's CUDACachingAllocator.cpp, with its default settings: one stream, no expandable segments.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from checkpointing.compiled.memory.wrapper_memory import WrapperTimeline
from profiler.costs.memory import CUDA_ROUNDING, rounded

_MIB = 2**20
_SMALL = _MIB  # requests up to it come from segments of 2 MiB
_SMALL_SEGMENT = 2 * _MIB
_MEDIUM = 10 * _MIB  # requests below it come from segments of 20 MiB, larger ones from their own
_MEDIUM_SEGMENT = 20 * _MIB
_LARGE_ROUNDING = 2 * _MIB
_UNLIMITED = 2**50  # bytes of a first block that holds every large request
_TRIED = range(94, 103)  # percent of what is cut from such a block
_STEPS = 3  # the blocks that a step finds are those that the step before left: the third is like all later ones


@dataclass(eq=False)
class Block:
    size: int
    address: int
    small: bool
    before: Block | None = None
    after: Block | None = None
    free: bool = False


class CachingAllocator:
    """Blocks of one device and one stream. `allocated` and `reserved` are bytes, as torch.cuda reports them.

    With `first_block`, one of so many bytes was allocated and freed before all others, and large requests are cut from
    it; `cut` are its bytes up to the last that was handed out.
    """

    def __init__(self, first_block: int = 0) -> None:
        self.allocated = self.reserved = self.peak = self.cut = self._first_segment = 0
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}  # of small and large requests
        if first_block:
            self.free(self.malloc(first_block))
            self.peak, self._first_segment = 0, self.reserved

    @classmethod
    def of_unlimited_block(cls) -> CachingAllocator:
        """One whose first block holds every large request."""
        return cls(_UNLIMITED)

    @property
    def needed(self) -> int:
        """Bytes of a first block that is no larger than what was cut from it, with all other segments."""
        return self.reserved - self._first_segment + self.cut

    def malloc(self, size: int) -> Block:
        size = max(CUDA_ROUNDING, rounded(size, CUDA_ROUNDING))
        small = size <= _SMALL
        pool = self._free[small]
        fit = bisect.bisect_left(pool, (size, -1))
        block = pool.pop(fit)[2] if fit < len(pool) else self._segment(size, small)
        rest = block.size - size
        if rest >= CUDA_ROUNDING if small else rest > _SMALL:
            other = Block(rest, block.address + size, small, block, block.after, free=True)
            if block.after:
                block.after.before = other
            block.after, block.size = other, size
            self._put(other)
        block.free = False
        self.allocated += block.size
        self.peak = max(self.peak, self.allocated)
        if block.address < self._first_segment:
            self.cut = max(self.cut, block.address + block.size)
        return block

    def free(self, block: Block) -> None:
        self.allocated -= block.size
        block.free = True
        before, after = block.before, block.after
        if before and before.free:
            self._take(before)
            block = _merged(before, block)
        if after and after.free:
            self._take(after)
            block = _merged(block, after)
        self._put(block)

    def _segment(self, size: int, small: bool) -> Block:
        of_its_own = _MEDIUM_SEGMENT if size < _MEDIUM else rounded(size, _LARGE_ROUNDING)
        size = _SMALL_SEGMENT if small else of_its_own
        self.reserved += size
        return Block(size, self.reserved - size, small)

    def _put(self, block: Block) -> None:
        bisect.insort(self._free[block.small], (block.size, block.address, block))

    def _take(self, block: Block) -> None:
        pool = self._free[block.small]
        del pool[bisect.bisect_left(pool, (block.size, block.address))]


def _merged(block: Block, after: Block) -> Block:
    block.size += after.size
    block.after = after.after
    if block.after:
        block.after.before = block
    return block


@dataclass(frozen=True)
class StepMemory:
    """Allocated bytes of a step in the middle of training, above those between steps."""

    peak_forward: int
    after_forward: int
    peak_backward: int
    after_backward: int
    state: int = 0  # bytes of the optimizer state's blocks, which are there between steps


def step_memory(
    static: Sequence[int],
    forward: WrapperTimeline,
    backward: WrapperTimeline,
    saved: Mapping[int, int],
    state: Sequence[int] = (),
) -> StepMemory:
    """What `torch.cuda.memory_allocated` says of a training step of one graph.

    `static`: bytes of each tensor that is there before the first step; `state`: of each that the optimizer's first
    step makes. `saved`: the backward's input → the forward's output that it is. Gradients are freed after each step.
    """
    allocator = CachingAllocator()
    for size in static:
        allocator.malloc(size)
    memory = StepMemory(0, 0, 0, 0)
    given = allocator.allocated
    for step in range(_STEPS):
        before = allocator.peak = allocator.allocated
        values = replay(allocator, forward, {})
        peak_forward, after_forward = allocator.peak - before, allocator.allocated - before
        allocator.peak = allocator.allocated
        left = _backward(allocator, backward, values, saved)
        peaks = (peak_forward, after_forward, allocator.peak - before, allocator.allocated - before)
        memory = StepMemory(*peaks, state=before - given)
        if step == 0:
            for size in state:
                allocator.malloc(size)
        for block in left:
            allocator.free(block)
    return memory


class GraphPool(NamedTuple):
    """Bytes that CUDA graphs take for good, and of these, those of one block to allocate and free before all others."""

    reserved: int
    first_block: int


def graph_pool(
    forward: WrapperTimeline,
    backward: WrapperTimeline,
    saved: Mapping[int, int],
    copied: Sequence[int] = (),
    workspaces: Sequence[int] = (),
) -> GraphPool:
    """The pool of both CUDA graphs of a step, with what their warm-up reserves and what the recording adds.

    Segments that grow with the requests hold free blocks that nothing fits. Cut from one block, the same requests take
    less (ResNet-152's: 2.4 and not 3.4 GiB), and where the driver puts the segments no longer matters.

    `copied`: bytes of each input that a replay finds at a place of its own. `workspaces`: bytes of each that the
    libraries take in a graph, from its first matmul to its end. `saved`: see `step_memory`.
    """

    def run(allocator: CachingAllocator) -> CachingAllocator:
        for own_inputs in ((), copied):
            for size in own_inputs:
                allocator.malloc(size)
            values = replay(allocator, forward, {}, workspaces)
            for block in _backward(allocator, backward, values, saved, workspaces):
                allocator.free(block)
        return allocator

    return smallest_pool(run)


def smallest_pool(run: Callable[[CachingAllocator], CachingAllocator]) -> GraphPool:
    """Of the first blocks near to what is cut from an unlimited one, and of none: that with which `run` takes least.

    A block of just that size may not do: its rest is smaller, and is chosen for other requests.
    """
    cut = run(CachingAllocator.of_unlimited_block()).cut
    sizes = {0} | {rounded(cut * percent // 100, _LARGE_ROUNDING) for percent in _TRIED}
    return min(GraphPool(run(CachingAllocator(size)).reserved, size) for size in sizes)


def _backward(
    allocator: CachingAllocator,
    backward: WrapperTimeline,
    values: Mapping[int, Block],
    saved: Mapping[int, int],
    workspaces: Sequence[int] = (),
) -> list[Block]:
    """After a forward whose outputs are `values`. What both have left."""
    held = {position: values[output] for position, output in saved.items() if output in values}
    gradients = replay(allocator, backward, held, workspaces)
    return [block for block in _distinct([*values.values(), *gradients.values()]) if not block.free]


def replay(
    allocator: CachingAllocator,
    timeline: WrapperTimeline,
    inputs: Mapping[int, Block],
    workspaces: Sequence[int] = (),
) -> dict[int, Block]:
    """Repeat a call's requests; `inputs` has the block of each input that it frees. Output → its block, if counted.

    `workspaces` are bytes of each that the libraries take at the first matmul, and hold until the call ends.
    """
    blocks = {-1 - position: block for position, block in inputs.items()}
    taken: list[Block] = []
    for number, (storage, size) in enumerate((*timeline.events, (0, 0))):
        if number == timeline.first_matmul:
            taken = [allocator.malloc(workspace) for workspace in workspaces]
        if size > 0:
            blocks[storage] = allocator.malloc(size)
        elif size < 0:
            allocator.free(blocks.pop(storage))
    for block in taken:
        allocator.free(block)
    return {
        output: blocks[storage]
        for output, storage in enumerate(timeline.output_storages)
        if storage is not None and storage in blocks
    }


def _distinct(blocks: Iterable[Block]) -> list[Block]:
    return list({id(block): block for block in blocks}.values())
