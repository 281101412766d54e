"""Collects what runs on the device while some code runs: kernels, copies, and who launched them.

collector = KernelDataCollector(model)             # of torch.profiler; on a CPU it collects operators
with collector:
    for batch in batches:
        with collector.step():
            train_step(*batch)
collector.kernels, collector.copies
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from torch import nn

from profiler.errors import EmptyTraceError, ProfilerError
from profiler.torch_trace import torch_trace
from profiler.traces.attribution import STEP, Attribution, attribute
from profiler.traces.read_trace import RawTrace, read_trace
from profiler.traces.recording.cupti import finalize_cupti_kernels, setup_cupti_kernels
from profiler.traces.recording.hooks import marking, module_names
from profiler.traces.records import KernelLaunch, MemoryCopy, together

BACKENDS = ("kineto", "cupti")


class KernelDataCollector:
    """Kernels and copies of one rank, on the clock of `time.time_ns()`, attributed to modules and steps.

    `model`: a module, or named modules, whose forward and backward kernels are told apart. `device`: the current CUDA
    device, or a CPU where there is none; there the `kernels` are the outermost operators. `backend`: `kineto`
    (torch.profiler) or `cupti`, which sees the device alone: no operators and no modules. `with_stack` also records the
    Python call stack, which slows the code down (see `StacktraceCollector.from_kernels`).
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module] | None = None,
        device: torch.device | str | None = None,
        backend: str = "kineto",
        with_stack: bool = False,
    ) -> None:
        if backend not in BACKENDS:
            raise ProfilerError(f"backend={backend!r}: use one of {', '.join(BACKENDS)}")
        if with_stack and backend == "cupti":
            raise ProfilerError("with_stack=True: CUPTI sees no Python; use backend='kineto' or a StacktraceCollector")
        default = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device if device is not None else default)
        self.backend, self.with_stack = backend, with_stack
        self.rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self.modules = module_names(model) if model is not None else {}
        self.kernels: list[KernelLaunch] = []
        self.copies: list[MemoryCopy] = []
        self.trace = RawTrace()
        self.attribution = Attribution([], [], [])
        self._host_steps: list[tuple[int, int]] = []
        self.recording = False
        self._open: ExitStack | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether `kernels` are operators of a CPU."""
        return self.device.type == "cpu"

    def __enter__(self) -> KernelDataCollector:
        if self.recording or self.kernels or self._host_steps:
            raise ProfilerError("this collector has been used: make another for another run")
        with ExitStack() as stack:
            if self.backend == "cupti":
                setup_cupti_kernels(self)
                stack.callback(finalize_cupti_kernels)
            else:
                stack.enter_context(marking(self.modules))
                stack.enter_context(self._kineto())
            self._open = stack.pop_all()
        self.recording = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._open is not None
        try:
            self._open.__exit__(kind, error, trace)
        finally:
            self._open, self.recording = None, False
        if kind is None and self.backend == "kineto":
            self._read()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Mark one training step. Steps follow one another on one thread and don't nest.

        The device is not synchronised at the end; `step_table` lets a step end with the last kernel it launched.
        """
        if not self.recording:
            raise ProfilerError("collector.step() is for use while the collector records: inside `with collector:`")
        if not self._host_steps:
            self.synchronize()  # what was launched before is not the first step's
        started = time.time_ns()
        with torch._C._profiler._RecordFunctionFast(STEP):
            yield
        self._host_steps.append((started, time.time_ns()))

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def _kineto(self) -> Iterator[None]:
        # Shapes give the bytes of a CPU's copies; on a GPU the trace has them, and shapes cost time.
        with torch_trace(self.device, record_shapes=self.on_cpu, with_stack=self.with_stack) as recorder:
            yield
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            recorder.export_chrome_trace(str(path))
            self.trace = read_trace(path)

    def _read(self) -> None:
        self.attribution = attribute(self.trace, operators=self.on_cpu)
        found = self.attribution.operators if self.on_cpu else self.trace.kernels
        self.kernels = sorted(found, key=lambda kernel: kernel.start)
        self.copies = sorted(self.trace.copies, key=lambda copy: copy.start)

    @classmethod
    def from_chrome_trace(cls, path: str | Path, on_cpu: bool = False, rank: int = 0) -> KernelDataCollector:
        """A collector of what `trace.json` or `trace.json.gz` holds, wherever it was recorded.

        Raises ProfilerError, which names the file, where it can't be read.
        """
        collector = cls(device="cpu" if on_cpu else "cuda")
        collector.rank = rank
        collector.trace = read_trace(Path(path))
        collector._read()
        return collector

    def take_cupti(self, kernels: Sequence[KernelLaunch], copies: Sequence[MemoryCopy]) -> None:
        """For the CUPTI back end: what it found, already on this clock; steps by time."""
        self.kernels = sorted(kernels, key=lambda kernel: kernel.start)
        self.copies = sorted(copies, key=lambda copy: copy.start)
        self.attribution = Attribution(list(self._host_steps), [], [])
        for thing in together(self.kernels, self.copies):
            for number, (start, _) in enumerate(self._host_steps):
                if thing.start >= start:
                    thing.step = number

    def attributed_again(self, markers: Sequence[str]) -> KernelDataCollector:
        """The same trace with ranges of these names taken as modules. Raises ProfilerError for a name not in it."""
        names = {found.name for found in self.trace.host if found.kind == "user_annotation"}
        missing = [marker for marker in markers if marker not in names]
        if missing:
            known = ", ".join(sorted(names)[:10]) or "none"
            raise ProfilerError(
                f"forward_markers: no range {missing[0]!r} in this trace (record_function ranges in it: {known})"
            )
        other = KernelDataCollector(device=self.device, backend=self.backend)
        other.rank, other.trace = self.rank, self.trace.copy()
        other.modules = self.modules
        other.attribution = attribute(other.trace, markers, operators=self.on_cpu)
        found = other.attribution.operators if self.on_cpu else other.trace.kernels
        other.kernels = sorted(found, key=lambda kernel: kernel.start)
        other.copies = sorted(other.trace.copies, key=lambda copy: copy.start)
        return other

    def shown_kernels(self) -> list[KernelLaunch]:
        """What a figure shows: the kernels of the steps, or all if no step was marked. Raises EmptyTraceError."""
        kernels = self.require_kernels()
        return [kernel for kernel in kernels if kernel.step >= 0] if self.attribution.steps else kernels

    def _why_empty(self) -> str:
        if self.recording:
            return "it is still collecting; look at it after `with collector:`"
        what = "operator" if self.on_cpu else "kernel"
        return f"no {what} ran inside `with collector:`"

    def require_kernels(self) -> list[KernelLaunch]:
        """The kernels. Raises EmptyTraceError if there are none."""
        if not self.kernels:
            raise EmptyTraceError(f"kernel_collector is empty: {self._why_empty()}")
        return self.kernels

    def save_trace(self, path: Path) -> None:
        """Write the Chrome trace, for ui.perfetto.dev. Raises ProfilerError with CUPTI, which makes none."""
        if not self.trace.text:
            raise ProfilerError("there is no Chrome trace: it comes from the kineto back end, after `with collector:`")
        path.write_bytes(self.trace.text)
