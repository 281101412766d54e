"""The peak of a compiled step as the device's allocator will count it: of a plan, and of the code generated for it.

peak_of_plan(schedule, device, state)           # bytes, before anything is compiled
memory = memory_of_code(forward, backward, ...)
memory.peak                                     # bytes above what was there before the step
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch

from checkpointing.compiled.execution import Half
from checkpointing.compiled.memory.caching_allocator import Block, CachingAllocator, graph_pool, step_memory
from checkpointing.compiled.memory.operator_memory import InternalBytes, known_bytes
from checkpointing.compiled.memory.wrapper_memory import wrapper_timeline
from checkpointing.planners.schedule import Schedule
from profiler.costs.memory import default_rounding, rounded

_STEPS = 2  # the second finds the blocks that the first has left


def peak_of_plan(
    schedule: Schedule,
    device: torch.device,
    state: Sequence[int] = (),
    in_graphs: bool = False,
    workspaces: Sequence[int] = (),
) -> int:
    """Bytes at the peak of a planned step. On a GPU, larger blocks that the caching allocator hands out are counted,
    those of the optimizer's `state` (bytes of each tensor) among them: they are cut from what the first step freed.
    With `in_graphs` the step has a pool of its own, and all that is cut from its first block counts, the libraries'
    `workspaces` (bytes of each) among it."""
    if device.type != "cuda":
        return schedule.peak
    problem = schedule.problem
    starting: dict[int, list[int]] = {}
    ending: dict[int, list[int]] = {}
    for number, life in enumerate(schedule.lifetimes):
        starting.setdefault(life.first, []).append(number)
        ending.setdefault(life.last, []).append(number)
    allocator = CachingAllocator.of_unlimited_block() if in_graphs else CachingAllocator()
    for size in workspaces:
        allocator.malloc(size)
    for step in range(_STEPS):
        blocks: dict[int, Block] = {}
        before = allocator.peak = allocator.allocated
        for position, run in enumerate(schedule.runs):
            in_place = problem.workspace[run.rank] < 0
            over = [n for n in ending.get(position, ()) if n in blocks and in_place]
            for number in over:
                allocator.free(blocks.pop(number))
            for number in starting.get(position, ()):
                blocks[number] = allocator.malloc(problem.size[schedule.lifetimes[number].storage])
            if problem.workspace[run.rank] > 0:
                allocator.free(allocator.malloc(problem.workspace[run.rank]))
            if step == 0 and position == len(schedule.runs) - 1 and not in_graphs:  # the gradients are there
                for size in state:
                    allocator.malloc(size)
            for number in ending.get(position, ()):
                if number in blocks:
                    allocator.free(blocks.pop(number))
    if in_graphs:
        return problem.static_bytes + allocator.needed
    above = max(allocator.peak - before, schedule.peak - problem.static_bytes)
    return problem.static_bytes - sum(state) + before + above


class CodeMemory(NamedTuple):
    """Bytes at the peak of a step's code; and where it is in CUDA graphs, of the first block of their pool."""

    peak: int
    first_block: int = 0


def memory_of_code(
    forward: Half,
    backward: Half,
    given: Collection[str],
    leaving: Collection[str],
    static: Sequence[int],
    state: Sequence[int],
    copied: Sequence[int] | None = None,
    workspaces: Sequence[int] = (),
    internal_bytes: InternalBytes = known_bytes,
    parameters: Sequence[torch.Tensor | None] = (),
) -> CodeMemory:
    """The memory of forward and backward, in the order in which inductor allocates, reuses and deletes, with the
    optimizer's state.

    `given` are the names of the joint graph's inputs, which the step does not free; `leaving` those of the forward's
    results, which its caller may hold until the backward ends. `static` and `state`: see `step_memory`. `copied`
    and `workspaces` are given where both are CUDA graphs (`graph_pool`). `internal_bytes`: see `wrapper_timeline`.
    `parameters` are those of which the backward's outputs are the gradients, in their order, and None for other inputs.
    """
    first = wrapper_timeline(forward.source_code, forward.inputs, (), internal_bytes)
    position = {name: index for index, name in enumerate(forward.output_names)}
    inputs = [
        first.outputs[position[name]] if name in position else value
        for name, value in zip(backward.input_names, backward.inputs, strict=True)
    ]
    kept = {*given, *leaving}
    freed = {
        index
        for index, name in enumerate(backward.input_names)
        if name not in kept and (name not in position or first.output_inputs[position[name]] is None)
    }
    second = wrapper_timeline(backward.source_code, inputs, freed, internal_bytes)
    tangents = [v for n, v in zip(backward.input_names, backward.inputs, strict=True) if "tangents" in n]
    between = sum(_bytes(value) for value in tangents)
    device = next((v.device for v in inputs if isinstance(v, torch.Tensor)), torch.device("cpu"))
    if device.type != "cuda":
        held = sum(
            _bytes(value) for name, value in zip(forward.output_names, first.outputs, strict=True) if name in leaving
        )
        return CodeMemory(sum(state) + max(first.peak, held + between + second.peak))
    saved = {index: position[backward.input_names[index]] for index in freed if backward.input_names[index] in position}
    if copied is not None:
        beside = [*state, *_copied_gradients(second.outputs, parameters)]
        pool = graph_pool(first, second, saved, copied, workspaces)
        return CodeMemory(_blocks(static, beside) + pool.reserved, pool.first_block)
    memory = step_memory(static, first, second, saved, state)
    return CodeMemory(memory.state + max(memory.peak_forward, between + memory.peak_backward))


def _copied_gradients(gradients: Sequence[object], parameters: Sequence[torch.Tensor | None]) -> list[int]:
    """Bytes of each gradient that autograd copies out of a graph's pool: those whose layout is not their parameter's,
    as of convolutions that run on channels in the last place (`torch::autograd::AccumulateGrad`). It keeps the others.
    """
    return [
        parameter.numel() * parameter.element_size()
        for gradient, parameter in zip(gradients, parameters, strict=False)
        if isinstance(gradient, torch.Tensor) and parameter is not None and _layout(gradient) != _layout(parameter)
    ]


def _layout(tensor: torch.Tensor) -> list[int]:
    """Strides of the dimensions that have more than one element."""
    return [int(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size != 1]


def _blocks(static: Sequence[int], state: Sequence[int]) -> int:
    """Bytes of the blocks that what the first step makes gets, beside what was there before it."""
    allocator = CachingAllocator()
    for size in static:
        allocator.malloc(size)
    before = allocator.allocated
    for size in state:
        allocator.malloc(size)
    return allocator.allocated - before


def _bytes(value: object) -> int:
    if not isinstance(value, torch.Tensor):
        return 0
    return rounded(value.untyped_storage().nbytes(), default_rounding(value.device))
