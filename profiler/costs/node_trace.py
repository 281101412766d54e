"""Reads a PyTorch profiler trace whose CPU side is cut into one range a node.

    with node_trace(device, memory=True) as trace:
        for rank in ...:
            with trace.range(rank): ...
    for iteration in attribute(trace.events()): iteration[rank].kernel_ns, .peak

A kernel belongs to the node in whose range it was launched: the trace links a kernel to the operator that
launched it, and the operator's start lies in the range. So the times of kernels are theirs alone, and there
is no synchronisation and no event record between nodes.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import profile

from profiler.torch_trace import torch_trace

RANGE = "profiler.node "  # the name of a node's range, before its rank
_RUNTIME_CALL = re.compile(r"cu(da)?[A-Z]")  # cudaLaunchKernel, cuLaunchKernelEx: numbered apart from operators
_WAIT = re.compile(r"Sync(hronize)?$")  # the trace of a wait on the device is no work


class Event(NamedTuple):
    """One line of a trace; times in nanoseconds of one clock."""

    kind: str  # "range", "op", "kernel", "memory"
    start: int
    end: int
    correlation: int  # range, op: its own number; kernel: the number of the operator that launched it
    rank: int = -1  # range: of its node
    bytes: int = 0  # memory: allocated, or freed if negative
    name: str = ""  # kernel: its own


@dataclass
class NodeRecord:
    """What one node did in one iteration. Memory in bytes, relative to the start of the trace."""

    kernel_ns: int = 0
    kernels: int = 0
    before: int = 0
    peak: int = 0
    after: int = 0


@dataclass
class Trace:
    """A recorded trace; `events()` is for after the recording."""

    device: torch.device
    profiler: profile
    names: dict[int, str] = field(default_factory=dict)

    def range(self, rank: int) -> Any:
        """A context manager for the time in which node `rank` runs on the CPU."""
        if rank not in self.names:
            self.names[rank] = f"{RANGE}{rank}"
        return torch._C._profiler._RecordFunctionFast(self.names[rank])

    def events(self) -> list[Event]:
        """The trace's ranges, operators, kernels (and copies and fills), and the device's memory events."""
        found: list[Event] = []
        wanted = DeviceType.CPU if self.device.type == "cpu" else DeviceType.CUDA
        results: Any = self.profiler.profiler
        for event in results.kineto_results.events():
            name, on_cpu = event.name(), event.device_type() == DeviceType.CPU
            start, linked = event.start_ns(), event.linked_correlation_id()
            if name == "[memory]":
                if event.device_type() == wanted and (on_cpu or event.device_index() == self.device.index):
                    found.append(Event("memory", start, start, 0, bytes=event.nbytes()))
            elif on_cpu and name.startswith(RANGE):
                rank = int(name[len(RANGE) :])
                found.append(Event("range", start, event.end_ns(), event.correlation_id(), rank))
            elif on_cpu and not linked and not _RUNTIME_CALL.match(name):
                found.append(Event("op", start, start, event.correlation_id()))
            elif not on_cpu and not event.is_user_annotation() and not _WAIT.search(name):
                found.append(Event("kernel", start, event.end_ns(), linked, name=name))
        return found


@contextmanager
def node_trace(device: torch.device, memory: bool = False, cpu: bool = True) -> Iterator[Trace]:
    """Record a trace of what runs inside. `memory` adds allocations; without `cpu` there are only kernels."""
    with torch_trace(device, cpu, profile_memory=memory) as recorder:
        yield Trace(device, recorder)


def attribute(events: Iterable[Event]) -> tuple[list[dict[int, NodeRecord]], int]:
    """One dictionary an iteration, rank → record, and the nanoseconds of kernels that no node launched.

    Ranks run in the same order in each iteration; the first rank that comes again starts the next.
    """
    by_kind: dict[str, list[Event]] = {"range": [], "op": [], "kernel": [], "memory": []}
    for event in events:
        by_kind[event.kind].append(event)
    ranges = sorted(by_kind["range"], key=lambda event: event.start)
    starts = [event.start for event in ranges]
    owner = _iterations(ranges)
    launcher: dict[int, NodeRecord] = {}
    for event, record in zip(ranges, owner.records, strict=True):
        launcher[event.correlation] = record
    for operator in by_kind["op"]:
        position = bisect_right(starts, operator.start) - 1
        if position >= 0 and operator.start <= ranges[position].end:
            launcher[operator.correlation] = owner.records[position]
    lost = 0
    for kernel in by_kind["kernel"]:
        found = launcher.get(kernel.correlation)
        if found is None:
            lost += kernel.end - kernel.start
        else:
            found.kernel_ns += kernel.end - kernel.start
            found.kernels += 1
    _follow_memory(ranges, owner.records, sorted(by_kind["memory"], key=lambda event: event.start))
    return owner.iterations, lost


@dataclass
class _Owners:
    records: list[NodeRecord]  # of each range
    iterations: list[dict[int, NodeRecord]]


def _iterations(ranges: Sequence[Event]) -> _Owners:
    owners = _Owners([], [])
    for event in ranges:
        if not owners.iterations or event.rank in owners.iterations[-1]:
            owners.iterations.append({})
        record = NodeRecord()
        owners.iterations[-1][event.rank] = record
        owners.records.append(record)
    return owners


def _follow_memory(ranges: Sequence[Event], records: Sequence[NodeRecord], memory: Sequence[Event]) -> None:
    current, position = 0, 0
    for event, record in zip(ranges, records, strict=True):
        while position < len(memory) and memory[position].start < event.start:
            current += memory[position].bytes
            position += 1
        record.before = record.peak = current
        while position < len(memory) and memory[position].start <= event.end:
            current += memory[position].bytes
            record.peak = max(record.peak, current)
            position += 1
        record.after = current


def idle_between(kernels: Iterable[tuple[int, int]], runs: int) -> int:
    """Nanoseconds in which none of the (start, end) intervals runs, between the first and the last, per run.

    The intervals are of `runs` runs with a pause between them; the longest `runs - 1` gaps are these pauses.
    """
    gaps: list[int] = []
    until: int | None = None
    for start, end in sorted(kernels):
        if until is not None and start > until:
            gaps.append(start - until)
        until = end if until is None else max(until, end)
    return sum(sorted(gaps)[: len(gaps) - (runs - 1)]) // runs
