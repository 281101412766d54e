"""The Python call stack against time, on the clock of the kernels.

stacks = StacktraceCollector()            # samples the thread that made it, once a millisecond
with stacks, collector:
    ...

sys.settrace(stacks.trace_calls)          # or every call and return, exactly and slowly
StacktraceCollector.from_kernels(collector)   # or what the profiler saw (KernelDataCollector(with_stack=True))
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from profiler.errors import EmptyTraceError, ProfilerError
from profiler.traces.recording.collector import KernelDataCollector


@dataclass(slots=True)
class StackFrame:
    """One function's stay on the stack; `depth` 0 is the outermost. Times in ns since 1970."""

    name: str
    file: str
    line: int  # on which the function starts
    depth: int
    start: int
    end: int


class StacktraceCollector:
    """Frames of one thread. Sampled: a frame that two samples see in a row is taken to have stayed in between."""

    def __init__(self, interval_s: float = 0.001) -> None:
        if not interval_s > 0:
            raise ProfilerError(f"interval_s={interval_s}: must be positive")
        self.interval_s = interval_s
        self.thread = threading.get_ident()
        self.frames: list[StackFrame] = []
        self.samples = 0
        self._open: list[tuple[Any, StackFrame]] = []
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        self._last = 0

    def __enter__(self) -> StacktraceCollector:
        if self._sampler is not None:
            raise ProfilerError("this StacktraceCollector has been used: make another for another run")
        self._sampler = threading.Thread(target=self._sample, name="stack sampler", daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._sampler is not None
        self._stop.set()
        self._sampler.join()
        self._close(0, time.time_ns())  # what is on the stack now has stayed until now, as far as one can see

    def _sample(self) -> None:
        while True:
            frame = sys._current_frames().get(self.thread)
            now = time.time_ns()
            stack: list[FrameType] = []
            while frame is not None:
                stack.append(frame)
                frame = frame.f_back
            self._see(stack[::-1], now)
            self.samples += 1
            del frame, stack
            if self._stop.wait(self.interval_s):
                return

    def _see(self, stack: list[FrameType], now: int) -> None:
        """Frames that are still there go on; the others ended, and new ones started, half way since the last look."""
        same = 0
        while same < min(len(stack), len(self._open)) and self._open[same][0] is stack[same]:
            same += 1
        border = (self._last + now) // 2 if self._last else now
        self._close(same, border)
        for depth in range(same, len(stack)):
            code = stack[depth].f_code
            found = StackFrame(code.co_qualname, code.co_filename, code.co_firstlineno, depth, border, now)
            self._open.append((stack[depth], found))
        self._last = now

    def _close(self, depth: int, now: int) -> None:
        for _, found in self._open[depth:]:
            found.end = max(found.start, now)
            self.frames.append(found)
        del self._open[depth:]

    def trace_calls(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        """A trace function for `sys.settrace`: records every call and return on this collector's thread."""
        if threading.get_ident() != self.thread:
            return None
        now = time.time_ns()
        frame.f_trace_lines = False
        if event == "call":
            code = frame.f_code
            found = StackFrame(code.co_qualname, code.co_filename, code.co_firstlineno, len(self._open), now, now)
            self._open.append((frame, found))
        elif event == "return" and any(known is frame for known, _ in self._open):
            place = next(n for n in range(len(self._open) - 1, -1, -1) if self._open[n][0] is frame)
            self._close(place, now)
        self._last = now
        self.samples += 1
        return self.trace_calls

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Inside, every call and return is recorded: `sys.settrace(self.trace_calls)`, undone at the end."""
        before = sys.gettrace()
        sys.settrace(self.trace_calls)
        try:
            yield
        finally:
            sys.settrace(before)

    @classmethod
    def from_kernels(cls, collector: KernelDataCollector) -> StacktraceCollector:
        """What a `KernelDataCollector(with_stack=True)` saw of Python. Raises ProfilerError if it recorded none."""
        ranges = [found for found in collector.trace.host if found.kind == "python_function"]
        if not ranges:
            raise ProfilerError("kernel_collector has no Python functions: make it with with_stack=True")
        stacks = cls()
        depths: dict[int | None, int] = {None: -1}
        main = max({found.thread for found in ranges}, key=lambda thread: sum(r.thread == thread for r in ranges))
        for found in sorted(ranges, key=lambda r: (r.start, -r.end)):
            depths[found.python_id] = depths.get(found.python_parent, -1) + 1
            if found.thread == main:
                file, name = found.name.rsplit(": ", 1) if ": " in found.name else ("", found.name)
                path, _, line = file.rstrip(")").rpartition("(")
                number = int(line) if line.isdigit() else 0
                stacks.frames.append(
                    StackFrame(name, path, number, depths[found.python_id], found.start, max(found.start, found.end))
                )
        stacks.samples = len(stacks.frames)
        return stacks

    def require_frames(self) -> list[StackFrame]:
        """All frames, those that are still on the stack included. Raises EmptyTraceError if there are none."""
        for _, found in self._open:  # sys.settrace was never reset, or not from within
            found.end = max(found.end, self._last)
        frames = [*self.frames, *(found for _, found in self._open)]
        if not frames:
            raise EmptyTraceError(
                "stacktrace_collector is empty: nothing was sampled inside `with stacks:`, or traced with "
                "sys.settrace(stacks.trace_calls) (code shorter than its interval is not seen)"
            )
        return frames

    @property
    def span(self) -> tuple[int, int]:
        """From the first frame's start to the last one's end."""
        frames = self.require_frames()
        return min(frame.start for frame in frames), max(frame.end for frame in frames)
