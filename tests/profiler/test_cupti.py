"""The CUPTI back end against a stand-in of cupti-python's module: what is read, converted and refused.

The real one needs a GPU: see test_traces_on_gpu.py.
"""

import enum
import sys
import time
import types
from types import SimpleNamespace

import pytest
import torch

from profiler.errors import CuptiError
from profiler.traces import KernelDataCollector, finalize_cupti_kernels, setup_cupti_kernels
from profiler.traces.recording import cupti

OFFSET = 5_000_000_000  # of the stand-in's clock


class ActivityKind(enum.IntEnum):
    KERNEL, CONCURRENT_KERNEL, MEMCPY, MEMCPY2, MEMSET = 3, 10, 1, 22, 2


class Result(enum.IntEnum):
    SUCCESS, ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED, ERROR_NOT_SUPPORTED = 0, 39, 27


class CuptiFailed(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class StandIn(types.ModuleType):
    """Delivers its records when it is flushed, as CUPTI does."""

    ActivityKind, Result, cuptiError = ActivityKind, Result, CuptiFailed  # noqa: N815 - the module's own names

    def __init__(self) -> None:
        super().__init__("cupti.cupti")
        self.enabled: list[int] = []
        self.records: list[object] = []
        self.refuses: int | None = None

    def activity_register_callbacks(self, requested, completed) -> None:
        size, most = requested()
        assert size > 0
        assert most == 0
        self.completed = completed

    def activity_enable(self, kind: int) -> None:
        if self.refuses is not None and len(self.enabled) == 1:
            raise CuptiFailed(self.refuses)
        self.enabled.append(kind)

    def activity_disable(self, kind: int) -> None:
        self.enabled.remove(kind)

    def get_timestamp(self) -> int:
        return time.time_ns() - OFFSET

    def activity_flush_all(self, flag: int) -> None:
        self.completed(self.records)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    library = StandIn()
    package = types.ModuleType("cupti")
    package.cupti = library  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupti", package)
    monkeypatch.setitem(sys.modules, "cupti.cupti", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    yield library
    cupti._session = None


def record(kind: ActivityKind, start: int, end: int, **fields: object) -> SimpleNamespace:
    place = {"device_id": 0, "stream_id": 7, "correlation_id": 3}
    return SimpleNamespace(kind=kind, start=start - OFFSET, end=end - OFFSET, **place, **fields)


def test_records_become_kernels_and_copies_on_this_clock(library: StandIn) -> None:
    collector = KernelDataCollector(backend="cupti")
    with collector:
        with collector.step():
            now = time.time_ns()
        library.records = [
            record(ActivityKind.CONCURRENT_KERNEL, now, now + 9_000, name="_ZN2at1fEv", grid_x=8, grid_y=2, grid_z=1),
            record(
                ActivityKind.CONCURRENT_KERNEL, now, now + 50, name="ncclDevKernel_Sum(x)", grid_x=1, grid_y=1, grid_z=1
            ),
            record(ActivityKind.MEMCPY, now + 1_000, now + 2_000, bytes=64, copy_kind=1),
            record(ActivityKind.MEMCPY2, now + 2_000, now + 3_000, bytes=128, copy_kind=10),
            record(ActivityKind.MEMSET, now + 3_000, now + 4_000, bytes=256, value=0),
        ]
    kernel, nccl = sorted(collector.kernels, key=lambda k: k.communication)
    assert (kernel.name, kernel.grid, kernel.step, nccl.communication) == ("at::f()", (8, 2, 1), 0, True)
    assert abs(kernel.start - now) < 100_000_000  # OFFSET is 50 times that
    assert kernel.end - kernel.start == 9_000
    assert [(c.bytes, c.kind) for c in collector.copies] == [(64, 1), (128, 10), (256, -1)]
    assert library.enabled == []  # CUPTI is free for the next


def test_a_second_subscriber_is_refused_with_the_reason(library: StandIn) -> None:
    first, second = KernelDataCollector(backend="cupti"), KernelDataCollector(backend="cupti")
    setup_cupti_kernels(first)
    with pytest.raises(CuptiError, match=r"one subscriber at a time, and a collector of this process is recording"):
        setup_cupti_kernels(second)
    finalize_cupti_kernels()
    setup_cupti_kernels(second)
    finalize_cupti_kernels()
    with pytest.raises(CuptiError, match="call setup_cupti_kernels"):
        finalize_cupti_kernels()


def test_torch_profiler_beside_it_is_refused(library: StandIn) -> None:
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
        pytest.raises(CuptiError, match=r"torch.profiler is recording: stop it first"),
    ):
        setup_cupti_kernels(KernelDataCollector(backend="cupti"))


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Result.ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED, "another subscriber .* has CUPTI, which takes one at a time"),
        (Result.ERROR_NOT_SUPPORTED, "ERROR_NOT_SUPPORTED"),
    ],
)
def test_what_cupti_refuses_is_said_and_undone(library: StandIn, status: Result, reason: str) -> None:
    library.refuses = status
    with pytest.raises(CuptiError, match=reason):
        setup_cupti_kernels(KernelDataCollector(backend="cupti"))
    assert library.enabled == []
    library.refuses = None
    setup_cupti_kernels(KernelDataCollector(backend="cupti"))
    finalize_cupti_kernels()


def test_a_record_that_cant_be_read_is_no_silent_loss(library: StandIn) -> None:
    setup_cupti_kernels(KernelDataCollector(backend="cupti"))
    library.records = [SimpleNamespace(kind=ActivityKind.CONCURRENT_KERNEL)]
    with pytest.raises(CuptiError, match="AttributeError"):
        finalize_cupti_kernels()


def test_records_on_another_clock_are_refused(library: StandIn) -> None:
    """torch.profiler leaves CUPTI with timestamps of its own, in processor ticks."""
    setup_cupti_kernels(KernelDataCollector(backend="cupti"))
    ticks = time.perf_counter_ns() // 3
    library.records = [record(ActivityKind.MEMSET, ticks, ticks + 10, bytes=4, value=0)]
    with pytest.raises(CuptiError, match="record through CUPTI first, or in another process"):
        finalize_cupti_kernels()


def test_the_wrong_back_end_is_refused(library: StandIn) -> None:
    with pytest.raises(CuptiError, match="make it with backend='cupti'"):
        setup_cupti_kernels(KernelDataCollector(device="cpu"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupti", None)
    with pytest.raises(CuptiError, match=r"pip install 'block-shock\[cupti\]'"):
        setup_cupti_kernels(KernelDataCollector(backend="cupti", device="cpu"))


def test_without_a_gpu_it_is_refused(library: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CuptiError, match="there is none: use the kineto back end on a CPU"):
        setup_cupti_kernels(KernelDataCollector(backend="cupti", device="cpu"))


def test_two_readings_of_the_clocks_make_a_line() -> None:
    convert = cupti._clock([(0, 1_000), (1_000_000, 1_002_000)])  # the other clock is slow by a thousandth
    assert [convert(0), convert(500_000), convert(1_000_000)] == [1_000, 501_500, 1_002_000]
