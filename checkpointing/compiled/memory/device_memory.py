"""What is on the device besides a compiled step's own values, and what its first steps really take.

resident_bytes(device, inputs)      # before the step: parameters, optimizer state, gradients, other tensors
check = FirstSteps(device); check.before_call(...)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import _disable_current_modes

from checkpointing.compiled.memory.optimizer_memory import present_optimizer_state, storage_bytes

_MULTIPLIED = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
CHECKED = 2  # steps whose peak is read: the first makes the optimizer's state, the second has it from the start
PASSING = 10  # steps at most for which memory that came unexpected may stay, and is not counted
NOTABLE = 0.01  # of the peak: the precision of a prediction


def device_of(inputs: Sequence[Any]) -> torch.device:
    """The device of the step's memory: that of the first input on a GPU, or the CPU."""
    devices = [value.device for value in inputs if isinstance(value, Tensor)]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def resident_bytes(device: torch.device, inputs: Sequence[Any]) -> int:
    """Bytes allocated on the device. A CPU does not count them: there, those of the inputs, of their gradients and of
    the optimizer's state."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    parameters = [t for t in tensors if isinstance(t, nn.Parameter)]
    tensors += [t.grad for t in parameters if t.grad is not None] + present_optimizer_state(parameters)
    return sum(storage_bytes(tensors))


def input_bytes(inputs: Sequence[Any]) -> list[int]:
    """Bytes of each storage among the step's inputs: parameters, buffers, the batch."""
    return storage_bytes(value for value in inputs if isinstance(value, Tensor))


def take_library_workspaces(device: torch.device, parameters: Collection[Tensor]) -> None:
    """Have the matmul libraries take the workspaces that they keep from their first call on (tens of MiB on a GPU), so
    that they are there when the step is planned. Each thread has its own: the caller's, and autograd's backward."""
    if device.type != "cuda":
        return
    with _disable_current_modes(), torch.enable_grad():  # we are within a compilation, whose tensors are fake
        for dtype in _multiplied_dtypes(device, parameters):
            matrix = torch.ones(256, 256, dtype=dtype, device=device, requires_grad=True)
            _InBothThreads.apply(matrix).sum().backward()


def graph_workspaces(device: torch.device, parameters: Collection[Tensor]) -> list[int]:
    """Bytes of each workspace that the matmul libraries take in a CUDA graph, from its first matmul on: inductor drops
    those that they hold before it records one, and after it. So does this, that they do not count among what is there
    before the step. Nor does what graphs that are gone have left in the allocator's cache."""
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    taken = []
    with _disable_current_modes(), torch.no_grad():
        for dtype in _multiplied_dtypes(device, parameters):
            matrix = torch.ones(256, 256, dtype=dtype, device=device)
            for multiply in (_mm, _addmm):
                before = torch.cuda.memory_allocated(device)
                multiply(matrix)
                taken.append(torch.cuda.memory_allocated(device) - before)
    torch._C._cuda_clearCublasWorkspaces()
    return [size for size in taken if size > 0]


def _multiplied_dtypes(device: torch.device, parameters: Collection[Tensor]) -> set[torch.dtype]:
    """Of the step's matmuls."""
    dtypes = {parameter.dtype for parameter in parameters} & _MULTIPLIED
    if torch.is_autocast_enabled(device.type):
        dtypes.add(torch.get_autocast_dtype(device.type))
    return dtypes


class _InBothThreads(torch.autograd.Function):
    """Multiplies in the thread of the forward and in that of the backward."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        return _multiplied(matrix)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _multiplied(gradient)


def _multiplied(matrix: Tensor) -> Tensor:
    matrix = matrix.contiguous()  # the gradient of a sum is one element, expanded
    return _addmm(matrix) + _mm(matrix)


def _mm(matrix: Tensor) -> Tensor:
    return torch.mm(matrix, matrix)


def _addmm(matrix: Tensor) -> Tensor:
    """A matmul with a bias is a call of another library."""
    return torch.addmm(matrix[0], matrix, matrix)


def graph_pool_bytes(device: torch.device) -> int:
    """Bytes that CUDA graphs hold in pools of their own, and that a replay uses without allocating them. The pool of
    graphs that are gone counts until `torch.cuda.empty_cache()`."""
    segments = [s for s in torch.cuda.memory_snapshot() if s["device"] == device.index and any(s["segment_pool_id"])]
    return sum(segment["total_size"] - segment["allocated_size"] for segment in segments)


class FirstSteps:
    """Reads the allocator's peak over each of the first steps, from one call of the step to the next.

    A step in which inductor times kernels against each other is not one of them: the buffers of these timings
    (84 MiB on an H200) are in its peak, and in no later step's. Nor is one that begins with more than the step before
    it, but for gradients and optimizer state (`trained()` bytes by now), while this may go again: DDP lays out its
    buckets anew after the first backward, and NCCL holds the old ones until it has seen that their collectives are
    done. What is still there after `PASSING` steps counts.

    `report(peak)` is called with it, where what a later step has besides (`to_come` bytes of optimizer state at most,
    as far as they have been allocated) is added to the first step's. The allocator's peak counter
    (`torch.cuda.max_memory_allocated`) starts anew with each of these steps. A CPU has none: nothing is read there.
    `highest` is asked for the peak that counts among the ranks; None, where it was not read, is of all of them.

    With `in_graphs` the first step runs without CUDA graphs, and is not read. The second warms them up and the third
    records them: of these, what is there after the step counts, with all that the graphs' pool holds. The fourth
    replays, and its peak is read.
    """

    def __init__(
        self,
        device: torch.device,
        to_come: int,
        report: Callable[[int], None],
        highest: Callable[[int | None], int | None] = lambda peak: peak,
        in_graphs: bool = False,
        trained: Callable[[], int] = lambda: 0,
    ) -> None:
        self.device, self.to_come, self.report, self.highest = device, to_come, report, highest
        self.trained = trained
        self.in_graphs, self.checked = in_graphs, CHECKED + in_graphs
        self.calls = -1 if in_graphs else 0
        self.before = 0  # bytes at the start of the step that is being read
        self.others = 0  # of these, all but gradients and optimizer state
        self.settled = 0  # what these were before more came
        self.passing = 0  # steps for which that may stay
        self.timings = 0  # of kernels by inductor, until then

    @property
    def are_over(self) -> bool:
        """Whether no further step is read."""
        return self.device.type != "cuda" or self.calls > self.checked

    def restart(self) -> None:
        """Read as many steps again: the step has been compiled anew."""
        self.calls = self.passing = 0

    def before_call(self) -> None:
        """To be called at the start of each step."""
        if self.are_over:
            return
        allocated = torch.cuda.memory_allocated(self.device)
        others = allocated - self.trained()
        if self.calls > 0:
            grown = min(self.to_come, max(0, allocated - self.before))
            self.to_come -= grown
            is_read = _kernel_timings() == self.timings and not self.passing
            peak = self.highest(self._peak(allocated, grown) if is_read else None)
            if peak is not None:
                self.report(peak)
            else:
                self.calls -= 1
            self._notice(others)
        if self.calls < self.checked:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.before, self.others, self.timings = allocated, others, _kernel_timings()
        self.calls += 1

    def _notice(self, others: int) -> None:
        """Whether the step that begins has more than the one before it, which may go again."""
        notable = NOTABLE * torch.cuda.max_memory_allocated(self.device)
        if self.passing:
            self.passing = self.passing - 1 if others > self.settled + notable else 0
        elif others > self.others + notable and not self.in_graphs:
            self.passing, self.settled = PASSING, self.others

    def _peak(self, allocated: int, grown: int) -> int:
        if not self.in_graphs:
            return torch.cuda.max_memory_allocated(self.device) + grown
        replayed = self.calls == self.checked
        return (torch.cuda.max_memory_allocated(self.device) if replayed else allocated) + graph_pool_bytes(self.device)


def _kernel_timings() -> int:
    """How often inductor has timed a kernel in this process."""
    return sum(count for name, count in counters["inductor"].items() if name.startswith("benchmarking."))
