"""What a trace consists of: kernels, memory copies, and ranges of the host. Times in ns since 1970, on one clock."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# CUPTI's CUpti_ActivityMemcpyKind, and memory sets, which CUPTI reports apart from copies.
MEMSET = -1
MEMCPY_KIND_STR = {
    0: "unknown",
    1: "host to device",
    2: "device to host",
    3: "host to array",
    4: "array to host",
    5: "array to array",
    6: "array to device",
    7: "device to array",
    8: "device to device",
    9: "host to host",
    10: "peer to peer",
    MEMSET: "memset",
}
_SHORT_KINDS = {"HtoD": 1, "DtoH": 2, "HtoA": 3, "AtoH": 4, "AtoA": 5, "AtoD": 6, "DtoA": 7, "DtoD": 8}
_SHORT_KINDS |= {"HtoH": 9, "PtoP": 10}

REGIONS = ("forward", "backward", "optimizer", "other")
ROOT = "(model)"
OUTSIDE = "(outside)"  # in the step and in no module: the loss, above all
OPTIMIZER = "(optimizer)"
NOBODY = ""  # no launch is known, or it was made outside of every step


@dataclass(slots=True)
class KernelLaunch:
    """One launch on a device; on a CPU one operator (`device` is -1 and `stream` the thread)."""

    name: str
    start: int
    end: int
    device: int
    stream: int
    grid: tuple[int, int, int]
    correlation: int  # links the launch to the call that made it; all kernels of a CUDA graph's replay share one
    operator: str = ""  # innermost operator that launched it; empty for a graph's replay
    module: str = NOBODY
    region: str = "other"  # one of REGIONS
    step: int = -1  # -1: launched outside of every step
    communication: bool = False


@dataclass(slots=True)
class MemoryCopy:
    """One memory copy or set. `kind` is a key of MEMCPY_KIND_STR."""

    start: int
    end: int
    bytes: int
    kind: int
    device: int = -1
    stream: int = 0
    correlation: int = 0
    operator: str = ""
    module: str = NOBODY
    region: str = "other"
    step: int = -1


@dataclass(slots=True)
class HostRange:
    """An operator, an annotation or a Python function on a thread of the host."""

    name: str
    start: int
    end: int
    thread: int
    kind: str = "cpu_op"  # cpu_op | user_annotation | python_function
    sequence: int = -1  # autograd's number: of the node that an operator makes, or that the backward evaluates
    forward_thread: int = 0  # of an evaluated node: PyTorch's number of the thread that made it
    external: int = 0  # the profiler's own number of an operator
    python_id: int | None = None
    python_parent: int | None = None


@dataclass(slots=True)
class Launch:
    """Where on the host a kernel was launched."""

    thread: int
    time: int


def memcpy_kind(name: str) -> int:
    """The kind in a profiler's name of a copy: 'Memcpy HtoD (Pageable -> Device)' → 1, 'Memset (Device)' → MEMSET."""
    if name.startswith("Memset"):
        return MEMSET
    found = re.match(r"Memcpy (\w+)", name)
    return _SHORT_KINDS.get(found.group(1), 0) if found else 0


_COMMUNICATION = re.compile(
    r"^nccl\w*Kernel|(one|two)_?shot_all_?reduce|multimem_\w*(reduce|gather)|^nvshmem|^gloo:|^_?c10d(_functional)?::"
)


def is_communication(name: str) -> bool:
    """Whether a kernel (or on a CPU an operator) exchanges data between ranks: NCCL, symmetric memory, gloo."""
    return _COMMUNICATION.search(name) is not None


def together(kernels: Iterable[KernelLaunch], copies: Iterable[MemoryCopy]) -> list[KernelLaunch | MemoryCopy]:
    """All that occupied the device."""
    return [*kernels, *copies]
