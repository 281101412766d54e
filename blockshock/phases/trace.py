"""Phase trace: what the device really did in a training step of a layer or of a model, on every rank.

Leaves kernels, copies, modules and steps as tables, the Chrome trace, the figures of `profiler.plots` and, on a GPU, a
record of the allocations in the run folder. Steps are timed with and without the trace, so that its cost is known.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from blockshock.config import kind
from blockshock.errors import ConfigError, at_least, one_of
from blockshock.jobs.correctness import QUANTITIES
from blockshock.jobs.execution import Execution
from blockshock.measure import timing
from blockshock.measure.summarize import summarize
from blockshock.methods import ParallelModule
from blockshock.phases import TrainingOptions
from blockshock.ranks import distributed
from profiler import plots
from profiler.errors import EmptyTraceError
from profiler.graph.step import TracedStep
from profiler.traces import (
    MEMCPY_KIND_STR,
    FlopCount,
    KernelDataCollector,
    ModuleProfile,
    StacktraceCollector,
    count_flops,
    read_steps,
    step_table,
)
from profiler.traces.graph_steps import graph_flops, labelled
from profiler.traces.modules import rank_path, save_records
from profiler.traces.recording.memory_snapshot import memory_snapshot

if TYPE_CHECKING:
    from blockshock.config import Job

STACKS = ("auto", "sampled", "traced", "none")
_SHORT_STEP_MS = 20.0  # a shorter step is over before many samples are taken: then every call is traced


@dataclass
class Subject:
    """What is traced: the step as it is, the step with the marks that a trace needs, and how to count its FLOPs."""

    model: torch.nn.Module
    step: Callable[[], object]
    marked_step: Callable[[], object]
    flops: Callable[[], FlopCount]
    layer: ParallelModule | None = None
    fields: dict[str, Any] | None = None


_OF_EACH_RANK = ("kernels.csv", "memcpy.csv", "modules.csv", "steps.csv", "trace.json", "memory.pickle")
_FIGURES = (
    *("bottlenecks.png", "layer_runtime.png", "throughput.png", "memcpy_and_passes.png"),
    *("stacks_and_kernels.png", "step_breakdown.png"),
)


@dataclass
class Trace(TrainingOptions):
    acts_on: ClassVar[str] = "any"
    traces_kernels: ClassVar[bool] = True
    files: ClassVar = (*_OF_EACH_RANK, *(name.replace(".", ".rank[0-9]*.") for name in _OF_EACH_RANK), *_FIGURES)

    name: str = "trace"
    warmup_iters: int = 3
    timed_iters: int = 10  # steps without a trace
    trace_iters: int = 5  # steps with one
    backend: str = "kineto"  # kineto | cupti
    stacks: str = "auto"  # auto | sampled | traced | none
    top_n: int = 20  # kernels in the ranking

    def check(self, job: Job) -> None:
        self.check_training()
        for key in ("warmup_iters", "timed_iters", "trace_iters", "top_n"):
            at_least(f"phase.{key}", getattr(self, key), 1)
        one_of("phase.backend", self.backend, ("kineto", "cupti"))
        one_of("phase.stacks", self.stacks, STACKS)
        if self.backend == "cupti" and job.hardware.device != "cuda":
            raise ConfigError("phase.backend", "cupti", "CUPTI records NVIDIA GPUs; on a CPU use kineto")

    def run(self, execution: Execution) -> float:
        """Record the traced steps beside the untraced ones; the untraced step in ms."""
        subject = self._layer(execution) if kind(execution.job) == "layer" else self._model(execution)
        execution.log("timing %d steps without a trace", self.timed_iters)
        timer = timing.Timer("sync", execution.device)
        distributed.barrier()
        samples = timer.measure("total_step", subject.step, self.warmup_iters, self.timed_iters)["total_step"]
        untraced = distributed.max_over_ranks(samples)
        execution.log("tracing %d steps (%s)", self.trace_iters, self.backend)
        collector = self._collect(execution, subject, self.trace_iters)
        with_stacks = self._with_stacks(execution, subject, statistics.median(untraced))
        if execution.device.type == "cuda":
            with memory_snapshot(self._path(execution, "memory.pickle")):
                subject.step()
        execution.log("writing tables and figures")
        profile = self._save(execution, subject, collector)
        if with_stacks:
            _draw(execution, "stacks_and_kernels", plots.plot_stacktrace_with_kernels, *with_stacks)
        distributed.barrier()  # every rank's tables are there
        tables = read_steps(execution.folder.path)
        _draw(execution, "step_breakdown", plots.plot_step_breakdown, tables)
        step_ms = summarize(untraced)
        traced = distributed.max_over_ranks((tables[distributed.rank()]["step_ns"] / 1e6).tolist())
        found = self._summary(tables, collector, profile)
        found["slowdown"] = summarize(traced)["p50_ms"] / step_ms["p50_ms"] - 1
        execution.write(
            subject.layer,
            {"total_step": step_ms, "traced_step": summarize(traced)},
            timing_mode="sync",
            trace=found,
            **(subject.fields or {}),
        )
        return step_ms["p50_ms"]

    def _layer(self, execution: Execution) -> Subject:
        layer, _ = execution.build()
        verdicts = execution.check(layer, QUANTITIES)
        step, _ = self.make_step(layer, execution.problem)
        fields = {"correctness": verdicts}
        return Subject(layer, step, step, lambda: count_flops(layer, step, layer.flop_formulas()), layer, fields)

    def _model(self, execution: Execution) -> Subject:
        job = execution.job
        execution.log("building %s", job.workload.name)
        problem = job.workload.task(job, execution.device)
        optimizer = self.make_optimizer(list(problem.model.parameters()))
        step = job.method.build_step(problem, optimizer)
        fields = job.workload.record_fields(job)
        model, batch = problem.model, problem.batch

        def plain() -> object:
            return step(*batch)

        if isinstance(step, TracedStep):  # its graph knows the modules; their forwards are not called
            marked = labelled(step)
            return Subject(model, plain, lambda: marked(*batch), lambda: graph_flops(step), fields=fields)
        return Subject(model, plain, plain, lambda: count_flops(model, plain), fields=fields)

    def _collect(
        self,
        execution: Execution,
        subject: Subject,
        steps: int,
        stack: AbstractContextManager[object] | None = None,
    ) -> KernelDataCollector:
        collector = KernelDataCollector(subject.model, execution.device, self.backend)
        with collector:
            subject.marked_step()  # what the profiler sets up at the first kernel is not the first step's
            collector.synchronize()
            distributed.barrier()
            with stack or nullcontext():
                for _ in range(steps):
                    with collector.step():
                        subject.marked_step()
                        collector.synchronize()
        return collector

    def _with_stacks(
        self, execution: Execution, subject: Subject, step_ms: float
    ) -> tuple[StacktraceCollector, KernelDataCollector] | None:
        """The Python stack of one more step, and its kernels: apart from the others, since it takes its time."""
        if self.stacks == "none":
            return None
        traced = self.stacks == "traced" or (self.stacks == "auto" and step_ms < _SHORT_STEP_MS)
        stacks = StacktraceCollector(interval_s=0.0005)
        return stacks, self._collect(execution, subject, 1, stacks.tracing() if traced else stacks)

    def _save(self, execution: Execution, subject: Subject, collector: KernelDataCollector) -> ModuleProfile | None:
        """Write this rank's tables, and on rank 0 its figures. CUPTI alone sees no modules: None."""
        folder, ranks = execution.folder.path, distributed.world_size()
        profile = None
        if self.backend == "kineto":
            flops = subject.flops()
            for operator in flops.uncounted:
                execution.log("no FLOPs counted for %s: there is no formula", operator)
            profile = ModuleProfile(collector, flops, self._peak(execution))
            profile.save(folder, ranks)
        else:
            save_records(collector, folder, ranks)
            step_table(collector).to_csv(self._path(execution, "steps.csv"), index=False)
        _draw(execution, "bottlenecks", plots.plot_bottleneck_analysis, collector, self.top_n)
        if profile is not None:
            copies = [copy for copy in collector.copies if copy.step >= 0]
            _draw(execution, "layer_runtime", plots.plot_layer_runtime_stats, profile, None)
            _draw(execution, "throughput", plots.plot_throughput_analysis, profile, None)
            timeline = plots.plot_timeline_memcpy_and_passes
            _draw(execution, "memcpy_and_passes", timeline, copies, profile, MEMCPY_KIND_STR)
        return profile

    def _peak(self, execution: Execution) -> float | None:
        """TFLOP/s that a matrix product reaches; None where convolutions use TF32 and matrix products don't."""
        peak = execution.rates.matmul_tflops
        mixed = torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        fp32 = execution.job.model.dtype == "fp32" and execution.device.type == "cuda"
        return None if fp32 and mixed and kind(execution.job) == "model" else peak

    @staticmethod
    def _path(execution: Execution, name: str) -> Path:
        return rank_path(execution.folder.path, name, distributed.rank(), distributed.world_size())

    def _summary(
        self, tables: list[pd.DataFrame], collector: KernelDataCollector, profile: ModuleProfile | None
    ) -> dict[str, Any]:
        """Medians over the steps, one number a rank; the worst rank's share of attributed time."""
        parts = ["step", "forward", "backward", "optimizer", "other", "compute", "communication"]
        parts += ["exposed_communication", "exposed_copies", "idle", "kernel"]
        attributed = distributed.max_over_ranks([-profile.attributed if profile else 0.0])[0]
        return {
            "backend": self.backend,
            "steps": len(tables[0]),
            "attributed": -attributed if profile else None,
            "uncounted_operators": sorted(profile.flops.uncounted) if profile and profile.flops else [],
            "kernels": [int(table["kernels"].median()) for table in tables],
            "copies": [int(table["copies"].median()) for table in tables],
            "exposed_communication_ms_of": _exposed_by_module(profile) if profile else {},
            **{f"{part}_ms": [float(table[f"{part}_ns"].median()) / 1e6 for table in tables] for part in parts},
        }


def _exposed_by_module(profile: ModuleProfile) -> dict[str, float]:
    """Milliseconds of a step, of modules whose own collectives are exposed on this rank, the most first."""
    own = profile.modules.groupby(["module", "step"])["exposed_communication_self_ns"].sum()
    found = own.groupby("module").median().sort_values(ascending=False) / 1e6
    return {str(module): float(ms) for module, ms in found[found > 0].items()}


def _draw(execution: Execution, name: str, plot: Callable[..., Figure], *arguments: Any) -> None:
    """Rank 0 draws `name`.png; where there is nothing to draw, the log says what is missing."""
    if distributed.rank() != 0:
        return
    try:
        plt.close(plot(*arguments, path=execution.folder.path / f"{name}.png"))
    except EmptyTraceError as error:
        execution.log("%s.png is left out: %s", name, error)
