"""Kernels and copies straight from CUPTI, through NVIDIA's `cupti-python` (the optional extra `cupti`).

    collector = KernelDataCollector(backend="cupti")
    setup_cupti_kernels(collector)
    train_step()
    finalize_cupti_kernels()              # waits for the device, fetches what it recorded, fills the collector
    collector.kernels, collector.copies

CUPTI delivers what ran on the device and nothing of the host, so these kernels have no operator and no module. CUPTI
takes one subscriber at a time: neither a second collector nor torch.profiler can record meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from profiler.errors import CuptiError
from profiler.traces.kernel_names import demangled
from profiler.traces.records import MEMSET, KernelLaunch, MemoryCopy, is_communication, together

_BUFFER_BYTES = 8 << 20  # about 40 000 records
_TOLERANCE_NS = 1_000_000  # a clock of another kind is off by far more
_KINDS = ("CONCURRENT_KERNEL", "MEMCPY", "MEMCPY2", "MEMSET")  # MEMCPY2: between devices


class Collector(Protocol):
    """What is used of a `KernelDataCollector`: where to record, and where to put what was found."""

    backend: str
    device: torch.device
    recording: bool

    def synchronize(self) -> None: ...

    def take_cupti(self, kernels: Sequence[KernelLaunch], copies: Sequence[MemoryCopy]) -> None: ...


class _Session:
    def __init__(self, collector: Collector, cupti: Any) -> None:
        self.collector, self.cupti = collector, cupti
        self.kernels: list[KernelLaunch] = []
        self.copies: list[MemoryCopy] = []
        self.enabled: list[Any] = []
        self.clock: list[tuple[int, int]] = []  # pairs of CUPTI's clock and time.time_ns()
        self.failure: str = ""

    def requested(self) -> tuple[int, int]:
        return _BUFFER_BYTES, 0  # 0: as many records as fit

    def completed(self, activities: list[Any]) -> None:
        kind = self.cupti.ActivityKind
        try:
            for found in activities:
                if found.kind in (kind.CONCURRENT_KERNEL, kind.KERNEL):
                    self._kernel(found)
                elif found.kind in (kind.MEMCPY, kind.MEMCPY2):
                    self._copy(found, int(found.copy_kind))
                elif found.kind == kind.MEMSET:
                    self._copy(found, MEMSET)
        except Exception as error:  # raised into CUPTI's own thread it would be lost
            self.failure = f"{type(error).__name__}: {error}"

    def _kernel(self, found: Any) -> None:
        name = demangled(str(found.name))
        grid = (int(found.grid_x), int(found.grid_y), int(found.grid_z))
        kernel = KernelLaunch(
            name, int(found.start), int(found.end), int(found.device_id), int(found.stream_id), grid,
            int(found.correlation_id),
        )  # fmt: skip
        kernel.communication = is_communication(name)
        self.kernels.append(kernel)

    def _copy(self, found: Any, kind: int) -> None:
        self.copies.append(
            MemoryCopy(
                int(found.start), int(found.end), int(found.bytes), kind, int(found.device_id), int(found.stream_id),
                int(found.correlation_id),
            )
        )  # fmt: skip


_session: _Session | None = None


def setup_cupti_kernels(collector: Collector) -> None:
    """Start to record into `collector`, until `finalize_cupti_kernels`.

    Raises CuptiError: cupti-python or the GPU is not there, another subscriber is recording, or CUPTI refuses.
    """
    global _session
    if _session is not None:
        raise CuptiError(
            "CUPTI takes one subscriber at a time, and a collector of this process is recording: call "
            "finalize_cupti_kernels() first"
        )
    if torch.autograd._profiler_enabled():
        raise CuptiError(
            "CUPTI takes one subscriber at a time, and torch.profiler is recording: stop it first, or use "
            "KernelDataCollector(backend='kineto')"
        )
    if collector.backend != "cupti":
        raise CuptiError(f"this collector's back end is {collector.backend}: make it with backend='cupti'")
    cupti = _import()
    if collector.device.type != "cuda" or not torch.cuda.is_available():
        raise CuptiError("CUPTI records CUDA devices, and there is none: use the kineto back end on a CPU")
    collector.synchronize()
    session = _Session(collector, cupti)
    try:
        cupti.activity_register_callbacks(session.requested, session.completed)
        for name in _KINDS:
            kind = getattr(cupti.ActivityKind, name)
            cupti.activity_enable(kind)
            session.enabled.append(kind)
    except cupti.cuptiError as error:
        _disable(session)
        raise CuptiError(f"CUPTI refuses to record: {_reason(cupti, error)}") from error
    session.clock.append(_clock_pair(cupti))
    collector.recording = True
    _session = session


def finalize_cupti_kernels() -> None:
    """Stop recording and fill the collector: its kernels and copies are then on the clock of `time.time_ns()`.

    Raises CuptiError if nothing was set up, if a record can't be read, or if records are on another clock.
    """
    global _session
    if _session is None:
        raise CuptiError("no collector is recording through CUPTI: call setup_cupti_kernels(collector) first")
    session, _session = _session, None
    session.collector.recording = False
    session.collector.synchronize()
    session.clock.append(_clock_pair(session.cupti))
    session.cupti.activity_flush_all(1)  # 1: also buffers that are not full
    _disable(session)
    if session.failure:
        raise CuptiError(f"a record of CUPTI could not be read ({session.failure}); expected cupti-python 13.0")
    convert, (_, began), (_, ended) = _clock(session.clock), *session.clock
    for thing in together(session.kernels, session.copies):
        duration = thing.end - thing.start  # exact as it is; the two readings of a short session are not
        thing.start = convert(thing.start)
        thing.end = thing.start + duration
        if not began - _TOLERANCE_NS <= thing.start <= thing.end <= ended + _TOLERANCE_NS:
            raise CuptiError(
                "CUPTI's records and its clock disagree: torch.profiler, which has run in this process, gives records "
                "a clock of its own; record through CUPTI first, or in another process"
            )
    session.collector.take_cupti(session.kernels, session.copies)


def _import() -> Any:
    try:
        from cupti import cupti
    except ImportError as error:
        raise CuptiError(
            f"the cupti back end needs cupti-python (pip install 'block-shock[cupti]'), which can't be imported "
            f"here: {error}; the kineto back end needs nothing more"
        ) from error
    return cupti


def _disable(session: _Session) -> None:
    while session.enabled:
        session.cupti.activity_disable(session.enabled.pop())


def _reason(cupti: Any, error: Any) -> str:
    result = cupti.Result(error.status)
    if result == cupti.Result.ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED:
        return "another subscriber (a profiler of this process) has CUPTI, which takes one at a time; end it first"
    return str(result.name)


def _clock_pair(cupti: Any, tries: int = 32) -> tuple[int, int]:
    """CUPTI's clock and the host's at the same moment: the closest of several readings."""
    readings = []
    for _ in range(tries):
        before = time.time_ns()
        there = int(cupti.get_timestamp())
        after = time.time_ns()
        readings.append((after - before, there, (before + after) // 2))
    _, there, here = min(readings)
    return there, here


def _clock(pairs: list[tuple[int, int]]) -> Any:
    """CUPTI's time → the host's: a straight line through the first and the last reading, in whole nanoseconds."""
    (there, here), (last_there, last_here) = pairs[0], pairs[-1]
    drift = (last_here - here) - (last_there - there)
    span = max(1, last_there - there)
    return lambda moment: moment + (here - there) + (moment - there) * drift // span
