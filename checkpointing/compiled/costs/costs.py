"""What an operator costs: measured on the device at its own shapes, once, and known from then on.

costs = Costs(torch.device("cuda"))     # reads the file of this device
costs.measure(nodes)                    # those that are not known yet: about 10 ms each
costs.seconds(node)                     # of one run
costs.inside_bytes(call)                # that it allocates and frees inside, beyond its results
fusible_seconds(nbytes, costs)          # of a fused kernel, which is priced by the bytes that it moves

Only one operator's inputs and outputs are in memory at a time. Measured are matmuls, convolutions, attention and
scatters; a chain that a compiler fuses costs less than the sum of its operators.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import fx

from checkpointing.compiled.costs.cost_file import OperatorCost, append_cost, cost_path, read_costs
from checkpointing.compiled.costs.operator_call import OperatorCall, TensorSpec, call_of
from checkpointing.compiled.costs.operator_timing import cost_of
from checkpointing.errors import CostError

log = logging.getLogger("checkpointing")

_COPIED_BYTES = {"cuda": 256 * 2**20, "cpu": 64 * 2**20}  # by the copy that gives the bandwidth
_PROGRESS_S = 2.0  # between two lines of progress


_turn: Callable[[], AbstractContextManager[object]] = nullcontext


@contextmanager
def measured_in(turn: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Meanwhile, enter `turn()` around what is measured: for a program whose jobs share a GPU, and take turns on it.

    Of the process, not of a thread: autograd's own threads may be the ones that measure.
    """
    global _turn
    before, _turn = _turn, turn
    try:
        yield
    finally:
        _turn = before


class Costs:
    """What operators take on one device, under the versions and settings (TF32, threads) of when this was made."""

    def __init__(self, device: torch.device) -> None:
        if device.type not in _COPIED_BYTES:
            raise CostError(f"costs are measured on {' and '.join(_COPIED_BYTES)}, not on {device}")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self.path = cost_path(_device_name(device))
        self.where = _where(device)
        self._known = read_costs(self.path, self.where)

    def seconds(self, node: fx.Node) -> float:
        """Of one run of the node's operator at its own shapes; measured now if it is not known.

        `node` calls an operator; it and its inputs have fake tensors in meta["val"]. Raises CostError where it cannot
        be run on its own, with its name and shapes.
        """
        return self._cost(call_of(node)).seconds

    def inside_bytes(self, call: OperatorCall) -> int:
        """Bytes that one run allocates and frees beyond its results; measured now if they are not known.

        Raises CostError where the operator cannot be run on its own.
        """
        return self._cost(call).inside_bytes

    def measure(self, nodes: Iterable[fx.Node]) -> None:
        """Measure every operator of `nodes` that is not known, once for all nodes that call it alike.

        Raises CostError for those that cannot be measured, after all others have been.
        """
        self._measure({str(call): call for call in map(call_of, nodes)})

    @property
    def bandwidth(self) -> float:
        """Bytes per second that a large copy on the device reads and writes, both counted."""
        size = _COPIED_BYTES[self.device.type]
        spec = TensorSpec((size // 4,), (1,), torch.float32, self.device.type)
        return 2 * size / self._cost(OperatorCall(torch.ops.aten.copy_.default, (spec, spec), {})).seconds

    @property
    def launch_s(self) -> float:
        """Seconds of the smallest kernel on a stream whose kernels are queued; of the smallest operator on a CPU."""
        spec = TensorSpec((1,), (1,), torch.float32, self.device.type)
        return self._cost(OperatorCall(torch.ops.aten.add.Tensor, (spec, 1.0), {})).seconds

    def _cost(self, call: OperatorCall) -> OperatorCost:
        key = str(call)
        if key not in self._known:
            self._measure({key: call})
        return self._known[key]

    def _measure(self, calls: dict[str, OperatorCall]) -> None:
        if calls.keys() <= self._known.keys():
            return
        with _turn():
            self._measure_in_turn(calls)

    def _measure_in_turn(self, calls: dict[str, OperatorCall]) -> None:
        self._known |= read_costs(self.path, self.where)  # another process may have measured them by now
        missing = {key: call for key, call in calls.items() if key not in self._known}
        failures: list[CostError] = []
        started = said = time.monotonic()
        for done, (key, call) in enumerate(missing.items()):
            if done == 0 or time.monotonic() - said > _PROGRESS_S:
                said = time.monotonic()
                log.info("measuring operators on %s: %d of %d, %s", self.device, done + 1, len(missing), call.operator)
            try:
                self._known[key] = cost_of(call, self.device)
            except CostError as error:
                failures.append(error)
                continue
            append_cost(self.path, self.where, key, self._known[key])
        if missing:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # the training step is to find the memory as it was
            log.info("measured %d operators in %.1f s", len(missing) - len(failures), time.monotonic() - started)
            self._known |= read_costs(self.path, self.where)  # ours, or those of a process that was first
        if failures:
            others = f" (and {len(failures) - 1} more operators)" if len(failures) > 1 else ""
            raise CostError(f"{failures[0]}{others}") from failures[0]


def fusible_seconds(bytes_moved: float, costs: Costs) -> float:
    """Seconds of one fused kernel that reads and writes `bytes_moved` bytes in all and is bound by memory."""
    return bytes_moved / costs.bandwidth + costs.launch_s


def _device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`; for a CPU, which has no name that PyTorch knows, the host's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()} cores {platform.node()}"


def _where(device: torch.device) -> str:
    """The device, the versions and the settings that decide how long an operator takes."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    parts = [_device_name(device), f"torch {torch.__version__}", f"deterministic {deterministic}"]
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn
        parts += [f"CUDA {torch.version.cuda}", f"cuDNN {cudnn.version()}"]
        parts += [f"matmul {torch.backends.cuda.matmul.fp32_precision}", f"convolution {cudnn.conv.fp32_precision}"]
        parts += [f"cudnn.benchmark {cudnn.benchmark}", f"cudnn.deterministic {cudnn.deterministic}"]
    else:
        onednn: Any = torch.backends.mkldnn
        parts += [f"{torch.get_num_threads()} threads", f"matmul {onednn.matmul.fp32_precision}"]
    return ", ".join(parts)
