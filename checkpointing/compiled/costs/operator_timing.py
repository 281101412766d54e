"""What one operator takes, alone on a device: its seconds on random inputs that no cache holds, and its own memory.

cost_of(call, torch.device("cuda:0"))     # the device's time between launches that are queued ahead

It works in the middle of a compilation, under autocast, and leaves every random generator as it was.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from checkpointing.compiled.costs.cost_file import OperatorCost
from checkpointing.compiled.costs.operator_call import OperatorCall
from checkpointing.compiled.costs.random_inputs import random_arguments
from checkpointing.errors import CostError

_OPERATOR_ERRORS = (RuntimeError, ValueError, IndexError, TypeError)  # what the checks in PyTorch's operators raise
_CPU_CACHE_BYTES = 32 * 2**20  # of a large core's share; PyTorch does not know the real one
_WARM_UPS = 2  # runs in which libraries load, choose their kernels and start their threads
_CPU_S, _CPU_LEAST_RUNS, _CPU_RUNS = 5e-3, 3, 10  # counted runs: until that many seconds have passed
_BATCH_S, _BATCH_RUNS, _BATCHES = 2e-3, 20, 3  # on a GPU: seconds and runs of a batch at most; batches
_CYCLES_PER_S = 2e9  # at least what any GPU's clock reaches
_LONGEST_SLEEP_S = 0.02


def cost_of(call: OperatorCall, device: torch.device) -> OperatorCost:
    """The least time that a run of `call` took on `device`, after some that do not count, and the bytes of it.

    On a GPU that is the device's time: the launches of a batch are queued before the first of them starts, so the host
    has no part in it. The bytes are the allocator's, whose peak counter starts anew; a CPU has none, and they are 0
    there. Raises CostError where the operator does not run on its own, or does not fit in memory.
    """
    kinds = {spec.device_type for spec in call.tensors()} - {"cpu", device.type}
    if kinds:
        raise CostError(f"{call} runs on {', '.join(sorted(kinds))}, and cannot be timed on {device}")
    with _undisturbed(device):
        try:
            return _on_cuda(call, device) if device.type == "cuda" else OperatorCost(_on_cpu(call, device))
        except _OPERATOR_ERRORS as error:
            traceback.clear_frames(error.__traceback__)  # they would keep the inputs
            reason = str(error).strip().partition("\n")[0]
            raise CostError(f"{call} cannot be timed on {device}: {type(error).__name__}: {reason}") from error


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Outside of what a compilation has switched on around us; random generators are put back afterwards."""
    on_cuda = device.type == "cuda"
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C._DisableAutocast())
        if on_cuda:
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.random.fork_rng([device.index] if on_cuda else [], device_type="cuda"))
        yield


def _on_cpu(call: OperatorCall, device: torch.device) -> float:
    inputs = [random_arguments(call, device)]
    args, kwargs = inputs[0]
    for _ in range(_WARM_UPS):
        output = call.operator(*args, **kwargs)
    copies = _copies(inputs, output, _CPU_RUNS, _CPU_CACHE_BYTES)
    inputs += [random_arguments(call, device) for _ in range(copies - 1)]
    del output
    times: list[float] = []
    while len(times) < _CPU_RUNS and (sum(times) < _CPU_S or len(times) < _CPU_LEAST_RUNS):
        args, kwargs = inputs[len(times) % copies]
        started = time.perf_counter()
        call.operator(*args, **kwargs)
        times.append(time.perf_counter() - started)
    return min(times)


def _on_cuda(call: OperatorCall, device: torch.device) -> OperatorCost:
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    inputs = [random_arguments(call, device)]
    args, kwargs = inputs[0]
    once, host = [], []
    for _ in range(1 + _WARM_UPS):
        torch.cuda.synchronize(device)
        output = None  # freed before the next is made
        torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        start.record()
        output = call.operator(*args, **kwargs)
        end.record()
        host.append(time.perf_counter() - started)
        end.synchronize()
        once.append(start.elapsed_time(end) / 1e3)
    inside = _requested(device, "peak") - _requested(device, "current")  # of the last run: libraries are loaded
    runs = _count(_BATCH_S / max(min(once), 1e-9), _BATCH_RUNS)
    copies = _copies(inputs, output, runs, cache)
    inputs += [random_arguments(call, device) for _ in range(copies - 1)]
    del output
    flushing = torch.empty(4 * cache, dtype=torch.int8, device=device)
    host_s = 1.5 * runs * min(host)
    times = []
    for _ in range(_BATCHES):
        outputs: list[Any] = [None] * copies
        flushing.amax()  # by reading: lines that are left dirty would be written back on the operator's time
        torch.cuda._sleep(int(min(host_s, _LONGEST_SLEEP_S) * _CYCLES_PER_S))  # until the host has queued the batch
        start.record()
        for run in range(runs):
            args, kwargs = inputs[run % copies]
            outputs[run % copies] = None  # freed first, so that a large operator has one output at a time
            outputs[run % copies] = call.operator(*args, **kwargs)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / runs)
    return OperatorCost(min(times), inside)


def _requested(device: torch.device, which: str) -> int:
    """Bytes as they were asked for: the allocator's blocks are larger, and whose they were before."""
    return int(torch.cuda.memory_stats(device)[f"requested_bytes.all.{which}"])


def _count(wanted: float, most: int) -> int:
    return max(1, min(most, math.ceil(wanted)))


def _copies(inputs: Any, outputs: Any, runs: int, cache_bytes: int) -> int:
    """How many sets of buffers take turns, so that twice the cache is read and written before one comes again."""
    tensors = [leaf for leaf in tree_leaves((inputs, outputs)) if isinstance(leaf, torch.Tensor)]
    size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    return _count(2 * cache_bytes / max(1, size), runs)
