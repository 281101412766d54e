"""Regions of a step, and the four ways to time them.

    timer = Timer("cuda_events", device)
    samples = timer.measure("total_step", step, warmup_iters=5, timed_iters=20)   # {region: [ms, one an iteration]}

Inside `step`, anyone may write `with region("forward"): ...`; regions nest, and one that occurs twice in an iteration
(an all-reduce forward and one backward) counts with its sum. Outside of a measurement `region` does nothing.

Modes: `sync` is wall clock between device synchronisations; `cuda_events` puts events on the stream and never
synchronises inside the loop, so gaps that the host causes count; `cuda_graph` captures the loop once and replays it,
so they do not; `none` runs the step and times nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import torch

REGIONS = (
    "build",
    "forward",
    "backward",
    "opt_step",
    "compress",
    "allreduce",
    "allgather",
    "reducescatter",
    "total_step",
)
MODES = ("sync", "cuda_events", "cuda_graph", "none")
Samples = dict[str, list[float]]


class _Recorder(Protocol):
    def start(self) -> Any: ...
    def stop(self, name: str, started: Any) -> None: ...


_recorder: _Recorder | None = None  # a global, not a context variable: autograd runs backward in a thread of its own


@contextmanager
def region(name: str) -> Iterator[None]:
    """Time what is inside under `name`, if a measurement is going on."""
    assert name in REGIONS, name
    recorder = _recorder
    if recorder is None:
        yield
        return
    started = recorder.start()
    yield
    recorder.stop(name, started)


@contextmanager
def _recording(recorder: _Recorder | None) -> Iterator[None]:
    global _recorder
    previous, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = previous


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _WallClock:
    """Wall clock between synchronisations, summed by region over the current iteration."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, float] = {}

    def start(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def stop(self, name: str, started: float) -> None:
        synchronize(self.device)
        self.sums[name] = self.sums.get(name, 0.0) + (time.perf_counter() - started) * 1e3


class _Events:
    """A pair of CUDA events a region. `external` events become nodes of a graph under capture."""

    def __init__(self, external: bool = False) -> None:
        self.external = external
        self.pairs: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True, external=self.external)
        event.record()
        return event

    def start(self) -> torch.cuda.Event:
        return self._event()

    def stop(self, name: str, started: torch.cuda.Event) -> None:
        self.pairs.append((name, started, self._event()))

    def sums(self) -> dict[str, float]:
        """Milliseconds by region; the events must have completed."""
        sums: dict[str, float] = {}
        for name, start, end in self.pairs:
            sums[name] = sums.get(name, 0.0) + start.elapsed_time(end)
        return sums


class Timer:
    """Times steps on `device` in `mode`. With `flush_l2` every iteration starts with the weights out of cache."""

    def __init__(self, mode: str, device: torch.device, flush_l2: bool = False) -> None:
        if mode in ("cuda_events", "cuda_graph") and device.type != "cuda":
            raise ValueError(f"timing mode {mode} needs a CUDA device, not {device}")
        self.mode, self.device = mode, device
        self.while_running: Callable[[], None] = lambda: None  # called when the work is queued and not yet done
        self._flush_buffer: torch.Tensor | None = None
        if flush_l2 and device.type == "cuda":
            l2 = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush_buffer = torch.zeros(l2, dtype=torch.int32, device=device)  # four times the cache

    def _flush(self) -> None:
        """Fill the L2 cache with something else: by reading, since lines left dirty would be written back later, on
        the next region's time."""
        if self._flush_buffer is not None:
            self._flush_buffer.amax()

    def once(self, name: str, work: Callable[[], Any]) -> tuple[Any, Samples]:
        """Run `work` a single time, by wall clock: for what happens once a job, such as building a layer."""
        clock = _WallClock(self.device)
        with _recording(clock), region(name):
            result = work()
        return result, {name: [clock.sums[name]]}

    def measure(self, outer: str, step: Callable[[], Any], warmup_iters: int, timed_iters: int) -> Samples:
        """Milliseconds of every iteration of `step`, whole (`outer`) and by the regions inside it."""

        def whole() -> None:
            with region(outer):
                step()

        if self.mode == "cuda_graph":
            return self._replay(outer, step, warmup_iters, timed_iters)
        for _ in range(warmup_iters):
            step()
        synchronize(self.device)
        if self.mode == "none":
            for _ in range(timed_iters):
                step()
            synchronize(self.device)
            return {}
        if self.mode == "sync":
            return self._wall_clock(whole, timed_iters)
        return self._events(whole, timed_iters)

    def _wall_clock(self, whole: Callable[[], None], iters: int) -> Samples:
        iterations = []
        for _ in range(iters):
            self._flush()
            clock = _WallClock(self.device)
            with _recording(clock):
                whole()
            iterations.append(clock.sums)
        self.while_running()
        return _by_region(iterations)

    def _events(self, whole: Callable[[], None], iters: int) -> Samples:
        recorders = []
        for _ in range(iters):
            self._flush()
            events = _Events()
            with _recording(events):
                whole()
            recorders.append(events)
        self.while_running()
        synchronize(self.device)
        return _by_region([r.sums() for r in recorders])

    def _replay(self, outer: str, step: Callable[[], Any], warmup_iters: int, iters: int) -> Samples:
        warm_up(step, warmup_iters)
        marked = self._replayed(CapturedLoop(self, outer, step, iters, inner=True))
        inner = {name: values for name, values in marked.items() if name != outer}
        if not inner:
            return marked
        # Events of inner regions are nodes of the graph too; the whole step is timed without them.
        return self._replayed(CapturedLoop(self, outer, step, iters, inner=False)) | inner

    def _replayed(self, loop: CapturedLoop) -> Samples:
        loop.replay()
        synchronize(self.device)
        loop.replay()
        self.while_running()
        synchronize(self.device)
        return loop.samples()


class CapturedLoop:
    """The whole timed loop, events included, in one graph, so that the host has no part in it at all and ranks meet in
    every iteration's collective with no launch between. The first replay warms up."""

    def __init__(self, timer: Timer, outer: str, step: Callable[[], Any], iters: int, inner: bool) -> None:
        self._recorders = [_Events(external=True) for _ in range(iters)]

        def loop() -> None:
            for recorder in self._recorders:
                timer._flush()
                started = recorder.start()
                with _recording(recorder if inner else None):
                    step()
                recorder.stop(outer, started)

        self._graph = capture(loop)

    def replay(self) -> None:
        self._graph.replay()

    def samples(self) -> Samples:
        """Milliseconds of the latest replay, which must have completed."""
        return _by_region([recorder.sums() for recorder in self._recorders])


def warm_up(step: Callable[[], Any], iters: int) -> None:
    """On the stream of captures, as a graph's warm-up should be."""
    if not torch.cuda.is_available():
        for _ in range(iters):
            step()
        return
    side = _side_stream(torch.cuda.current_device())
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(iters):
            step()
    torch.cuda.current_stream().wait_stream(side)


def capture(step: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """`step`, which has run before, as a CUDA graph."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    side = _side_stream(torch.cuda.current_device())
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        step()
    return graph


@cache
def _side_stream(device_index: int) -> torch.cuda.Stream:
    """One stream for all captures: cuBLAS keeps a workspace of 32 MiB for every stream that it has seen."""
    return torch.cuda.Stream(device_index)


def _by_region(iterations: list[dict[str, float]]) -> Samples:
    names = {name: None for sums in iterations for name in sums}  # in order of first appearance
    return {name: [sums.get(name, 0.0) for sums in iterations] for name in names}


def quick_time_ms(work: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """A median for choosing between candidates: graph replays on a GPU, wall clock on a CPU."""
    timer = Timer("cuda_graph" if device.type == "cuda" else "sync", device, flush_l2=True)
    return statistics.median(timer.measure("forward", work, warmup_iters=2, timed_iters=repeats)["forward"])
