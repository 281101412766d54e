"""The blocks of CUDA's caching allocator: its rules, and a step recorded on a GPU."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing.compiled.memory.caching_allocator import (
    Block,
    CachingAllocator,
    graph_pool,
    smallest_pool,
    step_memory,
)
from checkpointing.compiled.memory.wrapper_memory import WrapperTimeline

MIB = 2**20


@pytest.mark.parametrize(
    ("request_bytes", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (3 * MIB, 3 * MIB, 20 * MIB),
        (12 * MIB + 1, 12 * MIB + 512, 14 * MIB),  # the rest of the segment is 2 MiB less 512 bytes
        (13 * MIB, 14 * MIB, 14 * MIB),  # a rest of 1 MiB stays with the block
    ],
)
def test_block_and_segment_of_a_first_request(request_bytes: int, block: int, segment: int) -> None:
    allocator = CachingAllocator()
    assert allocator.malloc(request_bytes).size == allocator.allocated == block
    assert allocator.reserved == segment


def test_the_smallest_block_that_fits_is_taken_and_freed_neighbours_join() -> None:
    allocator = CachingAllocator()
    first, second, third = (allocator.malloc(n * MIB) for n in (4, 6, 10))  # of one segment
    allocator.free(first)
    allocator.free(third)
    assert allocator.malloc(10 * MIB) is third
    allocator.free(second)
    assert allocator.malloc(10 * MIB).address == first.address
    assert allocator.reserved == 20 * MIB


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.integers(0, 5)), max_size=60))
def test_blocks_never_overlap_and_come_back_whole(requests: list[tuple[int, int]]) -> None:
    allocator, alive = CachingAllocator(), []
    for size, freed in requests:
        block = allocator.malloc(size)
        assert size <= block.size <= size + 511 + MIB
        alive.append(block)
        if freed < len(alive):
            allocator.free(alive.pop(freed))
        spans = sorted((block.address, block.address + block.size) for block in alive)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert allocator.allocated == sum(block.size for block in alive)
    for block in alive:
        allocator.free(block)
    reserved = allocator.reserved
    assert allocator.allocated == 0
    for size in sorted({size for size, _ in requests}, reverse=True)[:1]:
        allocator.malloc(size)
    assert allocator.reserved == reserved


def test_a_recorded_training_step_peaks_where_the_gpu_measured_it() -> None:
    """`events`: bytes of each allocation in order; 0 and below: the allocation of that number is freed."""
    recorded = json.loads(gzip.decompress((Path(__file__).parent / "gpt2_allocations.json.gz").read_bytes()))
    allocator = CachingAllocator()
    for size in recorded["static"]:
        allocator.malloc(size)
    for step in range(3):
        before = allocator.peak = allocator.allocated
        blocks = []
        for count, event in enumerate(recorded["events"], 1):
            if event > 0:
                blocks.append(allocator.malloc(event))
            else:
                allocator.free(blocks[-event])
            if step == 0 and count == recorded["before_state"]:
                for size in recorded["state"]:
                    allocator.malloc(size)
    assert allocator.peak - before == recorded["peak"]


def recorded_pool() -> dict[str, Any]:
    """ResNet-152's warm-up for CUDA graphs on an H200, torch 2.11: 2932 requests, among them cuDNN's workspaces.
    Numbers count 512 bytes. `events` and `places`: of each allocation in order, 0 and below: that one is freed."""
    recorded = json.loads(gzip.decompress((Path(__file__).parent / "resnet152_pool.json.gz").read_bytes()))
    assert isinstance(recorded, dict)
    return recorded


def requested(allocator: CachingAllocator, events: list[int]) -> list[Block]:
    """The blocks that it hands out, in order."""
    blocks: list[Block] = []
    for event in events:
        if event > 0:
            blocks.append(allocator.malloc(512 * event))
        else:
            allocator.free(blocks[-event])
    return blocks


class WithSegments(CachingAllocator):
    """Gets its segments where the driver has given them."""

    def __init__(self, addresses: list[int]) -> None:
        super().__init__()
        self.addresses = iter(addresses)

    def _segment(self, size: int, small: bool) -> Block:
        block = super()._segment(size, small)
        block.address = next(self.addresses)
        return block


def test_each_block_of_a_recorded_pool_is_where_the_gpu_had_it() -> None:
    recorded = recorded_pool()
    allocator = WithSegments([512 * address for address in recorded["segments"]])
    blocks = requested(allocator, recorded["events"])
    assert [block.address for block in blocks] == [512 * place for place in recorded["places"]]
    assert allocator.reserved == recorded["reserved"]


def test_the_recorded_pool_would_be_a_quarter_smaller_if_it_began_with_one_block() -> None:
    recorded = recorded_pool()

    def run(allocator: CachingAllocator) -> CachingAllocator:
        requested(allocator, recorded["events"])
        return allocator

    pool = smallest_pool(run)
    assert pool.reserved == run(CachingAllocator(pool.first_block)).reserved
    assert run(CachingAllocator()).peak < pool.reserved < 0.75 * recorded["reserved"]


def test_of_an_unlimited_block_what_is_cut_is_needed_and_small_requests_beside_it() -> None:
    allocator = CachingAllocator.of_unlimited_block()
    first, second = allocator.malloc(40 * MIB), allocator.malloc(20 * MIB)
    allocator.malloc(512)
    allocator.free(first)
    allocator.malloc(30 * MIB)  # where the first was
    assert (allocator.cut, allocator.needed) == (60 * MIB, 62 * MIB)
    allocator.free(second)
    allocator.malloc(31 * MIB)  # where the second was, and what was free around it
    assert allocator.needed == 63 * MIB


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.integers(1, 6)), max_size=30))
def test_no_first_block_makes_a_pool_larger_than_without_one_or_smaller_than_its_blocks(
    requests: list[tuple[int, int]],
) -> None:
    """Each request lives for some of those that follow."""

    def run(allocator: CachingAllocator) -> CachingAllocator:
        alive: list[tuple[int, Block]] = []
        for number, (size, life) in enumerate(requests):
            for end, block in alive:
                if end == number:
                    allocator.free(block)
            alive = [(end, block) for end, block in alive if end > number] + [(number + life, allocator.malloc(size))]
        return allocator

    pool = smallest_pool(run)
    assert pool.reserved <= run(CachingAllocator()).reserved
    assert pool.reserved >= run(CachingAllocator(pool.first_block)).peak
    assert pool.first_block <= pool.reserved


def timeline(
    events: list[tuple[int, int]], outputs: tuple[int | None, ...], first_matmul: int | None = None
) -> WrapperTimeline:
    return WrapperTimeline(0, 0, 0, (), 0, (None,) * len(outputs), tuple(events), outputs, first_matmul)


def test_a_step_keeps_what_is_saved_until_its_backward_frees_it() -> None:
    big = 40 * MIB  # even, so that blocks are as asked for
    forward = timeline([(0, big), (1, 2 * big), (1, -2 * big), (2, 4)], (2, -1, 0))  # loss, a parameter, saved
    backward = timeline([(0, big), (-2, -big), (1, 2 * big), (0, -big)], (1,))  # its second input is saved
    memory = step_memory([big, 512], forward, backward, saved={0: 1, 1: 2}, state=[big])
    assert memory.peak_forward == 3 * big
    assert memory.after_forward == big + 512
    assert memory.peak_backward == 3 * big + 512
    assert memory.after_backward == 2 * big + 512
    assert memory.state == big


def test_the_optimizers_state_is_cut_from_what_the_first_step_freed() -> None:
    """A tensor of 39 MiB gets the whole block of 40 MiB that an activation left, as the rest is too small to split."""
    forward = timeline([(0, 40 * MIB)], (None, 0))
    backward = timeline([(-1, -40 * MIB)], (None,))
    assert step_memory([], forward, backward, saved={0: 1}, state=[39 * MIB]).state == 40 * MIB


def test_the_pool_of_cuda_graphs_keeps_what_the_warm_up_reserved() -> None:
    """Segment by segment, the backward's first buffer would take half of the block of 2 * big, so that the next 2 * big
    needed another: 5 * big in all. Cut from one block, all but the result fits where the forward was."""
    big = 40 * MIB
    forward = timeline([(0, big), (1, 2 * big), (1, -2 * big), (2, 4)], (2, -1, 0))
    backward = timeline([(0, big), (-2, -big), (1, 2 * big), (0, -big)], (1,))
    saved, small = {0: 1, 1: 2}, 2 * MIB
    assert graph_pool(forward, backward, saved) == (4 * big + small, 4 * big)
    assert graph_pool(forward, backward, saved, copied=[4, big]) == (5 * big + small, 0)  # no block makes it less
    assert graph_pool(forward, backward, saved, copied=[3 * big]) == (7 * big + small, 7 * big)


def test_the_libraries_workspaces_are_in_the_pool_from_the_first_matmul_on() -> None:
    big = 40 * MIB

    def step(first_matmul: int | None) -> tuple[WrapperTimeline, WrapperTimeline]:
        forward = timeline([(0, big), (0, -big), (1, 4)], (1,), first_matmul)
        return forward, timeline([(0, 4)], (0,), first_matmul and 1)

    rest = 2 * MIB  # of the two results
    assert graph_pool(*step(None), {}, workspaces=[32 * MIB, MIB]).reserved == big + rest  # there is no matmul
    assert (
        graph_pool(*step(1), {}, workspaces=[32 * MIB, MIB]).reserved == big + 32 * MIB + rest
    )  # the small one beside the results
    assert graph_pool(*step(2), {}, workspaces=[32 * MIB]).reserved == big + rest  # where a buffer was
    assert (
        graph_pool(*step(3), {}, workspaces=[2 * big]).reserved == 2 * big + rest
    )  # in the last statement, in one block with what was before


@given(st.lists(st.integers(1, 64 * MIB), min_size=1, max_size=20), st.lists(st.integers(1, 64 * MIB), max_size=4))
def test_the_pool_of_cuda_graphs_holds_the_peak_of_their_step(sizes: list[int], copied: list[int]) -> None:
    forward = timeline(list(enumerate(sizes)), tuple(range(len(sizes))))
    frees = [(-1 - index, -size) for index, size in enumerate(sizes)]
    saved = {index: index for index in range(len(sizes))}
    backward = timeline([(0, sizes[0]), *frees], (0,))
    pool = graph_pool(forward, backward, saved, copied).reserved
    assert pool >= step_memory([], forward, backward, saved).peak_backward
    assert pool >= sum(copied) + sum(sizes)
