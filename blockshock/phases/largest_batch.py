"""Phase largest_batch: the largest batch that a training step fits in a given memory, and its samples per second.

On a GPU the memory is a limit on PyTorch's allocator, and a batch fits if its steps run. On a CPU, where no allocator
counts, it is compared with the planner's count of the bytes of living storages.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from blockshock.dtypes import DTYPES
from blockshock.errors import ConfigError, at_least, one_of
from blockshock.jobs.execution import Execution
from blockshock.measure import timing
from blockshock.measure.clocks import ClockLog
from blockshock.measure.summarize import summarize
from blockshock.measure.turns import aside, jobs_that_share, turn
from blockshock.phases import OptimizerOptions

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass(frozen=True)
class Tried:
    """One batch: whether it fits, the bytes at its peak and the milliseconds of its steps, where it was run."""

    batch_size: int
    fits: bool
    peak_bytes: int | None = None
    samples_ms: tuple[float, ...] = ()
    tokens: int | None = None  # of the batch; None for images
    variant: str = ""
    clocks: ClockLog | None = None


@dataclass
class LargestBatch(OptimizerOptions):
    acts_on: ClassVar[str] = "model"

    name: str = "largest_batch"
    memory: str = "24GB"
    at_most: int = 4096
    precision: float = 0.03  # of the batch: the search ends when what fits and what does not are that close
    warmup_iters: int = 4
    timed_iters: int = 10
    timing: str = "sync"

    def check(self, job: Job) -> None:
        self.check_optimizer()
        at_least("phase.at_most", self.at_most, job.workload.batch_size)
        at_least("phase.warmup_iters", self.warmup_iters, 1)
        at_least("phase.timed_iters", self.timed_iters, 1)
        if not 0 < self.precision < 1:
            raise ConfigError("phase.precision", self.precision, "must be above 0 and below 1")
        one_of("phase.timing", self.timing, ("sync", "cuda_events"))
        if self.timing == "cuda_events" and job.hardware.device != "cuda":
            raise ConfigError("phase.timing", self.timing, "needs a GPU; on a CPU use sync")
        self.limit()
        layers_by = getattr(job.workload, "layers_by", None)
        if layers_by is not None:
            raise ConfigError("method@workload.layers_by", layers_by["name"], "phase=largest_batch is for one rank")
        method = job.method
        if job.hardware.device != "cuda" and method.name == "torch_compile" and method.variant():
            raise ConfigError("method", method.name, "no allocator counts this option's memory on a CPU: use a GPU")

    def limit(self) -> int:
        """`memory` in bytes. Raises ConfigError for what is no number of bytes."""
        from checkpointing import BudgetError
        from checkpointing.budget import in_bytes

        try:
            return in_bytes(self.memory, 0, 0)
        except BudgetError as error:
            raise ConfigError("phase.memory", self.memory, 'must be bytes with a unit, as "24GB"') from error

    def run(self, execution: Execution) -> float:
        """Record the largest batch, its throughput and what was tried; the median step in ms."""
        limit = self.limit()
        with allocator_limit(execution.device, limit):
            tried = search(lambda size: self._try(execution, size, limit), *self._bounds(execution), self.precision)
        best = max((t for t in tried if t.fits), key=lambda t: t.batch_size, default=None)
        if best is None:
            raise ConfigError(
                "phase.memory", self.memory, f"a batch of {tried[0].batch_size} needs more; give more memory"
            )
        times = summarize(list(best.samples_ms))
        seconds = times["p50_ms"] / 1e3
        execution.write(
            None,
            {"total_step": times},
            N=None,
            K=None,
            B=best.batch_size,
            mask=None,
            timing_mode=self.timing,
            memory_peak_bytes=best.peak_bytes,
            step={"variant": best.variant},
            clocks=best.clocks.summary() if best.clocks else None,
            largest_batch={
                "limit_bytes": limit,
                "batch_size": best.batch_size,
                "is_bound": best.batch_size == self.at_most,  # more might fit
                "peak_bytes": best.peak_bytes,
                "samples_per_s": best.batch_size / seconds,
                "tokens_per_s": None if best.tokens is None else best.tokens / seconds,
                "tried": [[t.batch_size, t.fits] for t in tried],
            },
        )
        return times["p50_ms"]

    def _bounds(self, execution: Execution) -> tuple[int, int]:
        return execution.job.workload.batch_size, self.at_most

    def _try(self, execution: Execution, size: int, limit: int) -> Tried:
        """Some steps with a batch of `size`. Nothing of it is left on the device."""
        gc.collect()
        if execution.device.type == "cuda":
            torch.cuda.empty_cache()
        torch._dynamo.reset()
        try:
            tried = self._steps(execution, size)
        except torch.OutOfMemoryError:
            require_room(execution.device, limit)
            tried = Tried(size, False)
        except torch._dynamo.exc.BackendCompilerFailed as error:  # of what the compiler ran to time kernels
            if not isinstance(error.inner_exception, torch.OutOfMemoryError):
                raise
            require_room(execution.device, limit)
            tried = Tried(size, False)
        except ConfigError as error:  # a method that keeps to a budget says that no plan meets it
            if error.key != "method.memory_budget":
                raise
            tried = Tried(size, False)
        if tried.peak_bytes is not None and tried.peak_bytes > limit:
            tried = replace(tried, fits=False)
        execution.log("a batch of %d %s", size, "fits" if tried.fits else "does not fit")
        return tried

    def _steps(self, execution: Execution, size: int) -> Tried:
        from checkpointing.compiled.costs.costs import measured_in

        job, device = execution.job, execution.device
        workload = replace(job.workload, batch_size=size)
        problem = workload.build(DTYPES[job.model.dtype], device, job.experiment.seed)
        optimizer = self.make_optimizer(list(problem.model.parameters()))
        step = job.method.build_step(problem, optimizer)
        with aside(), measured_in(turn):  # compiles
            step(*problem.batch)
        for _ in range(self.warmup_iters - 1):
            step(*problem.batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        timer, clocks = timing.Timer(self.timing, device), ClockLog(device)
        timer.while_running = clocks.sample
        samples = timer.measure("total_step", lambda: step(*problem.batch), self.warmup_iters, self.timed_iters)
        first = problem.batch[0]
        tokens = None if first.is_floating_point() else first.numel()
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else counted_bytes(step, problem)
        return Tried(size, True, peak, tuple(samples["total_step"]), tokens, getattr(step, "variant", ""), clocks)


def counted_bytes(step: Any, problem: Any) -> int:
    """The planner's count of the bytes of living storages at the peak of a step that has run, on a CPU.

    Of a step without a plan, that of the step that torch.compile alone would run.
    """
    from checkpointing import backend

    for name in ("compiled_plan", "plan"):
        plan = getattr(step, name, None)
        if plan is not None:
            return int(plan.predicted_peak_bytes)
    planner = backend(1.0, execution="eager", solver="greedy")
    torch._dynamo.reset()
    torch.compile(problem.loss_fn, backend=planner, dynamic=False)(problem.model, *problem.batch)
    return planner.plans[-1].unplanned_peak_bytes


def search(attempt: Any, first: int, at_most: int, precision: float) -> list[Tried]:
    """Batches tried from `first` on: doubled until one does not fit, then halved in between."""
    tried = [attempt(first)]
    if not tried[0].fits:
        return tried
    low, high = first, None
    while high is None and low < at_most:
        tried.append(attempt(min(2 * low, at_most)))
        if tried[-1].fits:
            low = tried[-1].batch_size
        else:
            high = tried[-1].batch_size
    while high is not None and high - low > max(1, int(precision * low)):
        tried.append(attempt((low + high) // 2))
        if tried[-1].fits:
            low = tried[-1].batch_size
        else:
            high = tried[-1].batch_size
    return tried


def require_room(device: torch.device, limit: int) -> None:
    """Raise torch.OutOfMemoryError where jobs that share the GPU have taken what the limit would still give us."""
    if jobs_that_share() == 1:
        return
    left = limit - torch.cuda.memory_reserved(device)
    free = torch.cuda.mem_get_info(device)[0]
    if free < left:
        raise torch.OutOfMemoryError(f"of {limit} bytes others use {left - free}: this batch says nothing of the limit")


@contextmanager
def allocator_limit(device: torch.device, limit: int) -> Iterator[None]:
    """PyTorch's allocator reserves no more than `limit` bytes. Raises ConfigError if the device has less."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.mem_get_info(device)[1]
    if limit > total:
        raise ConfigError("phase.memory", f"{limit / 1e9:g}GB", f"the device has {total / 1e9:.0f}GB")
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
