"""Phase profile: one training step of a model as one graph, and what every node of it costs.

Leaves the tables, figures and the Chrome trace of `profiler` in the run folder, and a sign-off; a failed line of the
sign-off fails the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from blockshock.dtypes import DTYPES
from blockshock.errors import ConfigError, at_least, one_of
from blockshock.jobs.correctness import CheckFailed
from blockshock.jobs.eager_match import compare_with_eager
from blockshock.jobs.execution import Execution
from blockshock.measure import timing
from blockshock.measure.summarize import summarize
from blockshock.phases import OptimizerOptions

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class ProfileStep(OptimizerOptions):
    acts_on: ClassVar[str] = "model"
    traces_kernels: ClassVar[bool] = True
    files: ClassVar = ("profiler_stats_*.csv", "profiler_plots_*.png", "profiler_*.json", "sign_off.txt")

    name: str = "profile"
    warmup_iters: int = 1
    profile_iters: int = 3
    timed_iters: int = 20  # plain steps, for the step time beside the nodes' times
    timing: str = "sync"  # each step by itself, as the profile sees it; cuda_events: steps queued, as in training
    check_eager: bool = True  # one eager and one traced step from the same state leave the same bits

    def check(self, job: Job) -> None:
        self.check_optimizer()
        for key in ("warmup_iters", "profile_iters", "timed_iters"):
            at_least(f"phase.{key}", getattr(self, key), 1)
        gpu = job.hardware.device == "cuda"
        one_of("phase.timing", self.timing, ("sync", "cuda_events"))
        if self.timing == "cuda_events" and not gpu:
            raise ConfigError("phase.timing", self.timing, "needs a GPU; on a CPU use sync")

    def run(self, execution: Execution) -> float:
        """Record the profile's summary beside the eager step, the traced step and its CUDA graph; the step in ms."""
        from profiler import GraphProfiler, sign_off_table

        job, folder = execution.job, execution.folder.path
        execution.log("building %s", job.workload.name)
        problem = job.workload.build(DTYPES[job.model.dtype], execution.device, job.experiment.seed)
        optimizer = self.make_optimizer(list(problem.model.parameters()))

        def eager() -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss: torch.Tensor = problem.loss_fn(problem.model, *problem.batch)
            loss.backward()
            optimizer.step()
            return loss.detach()

        execution.log("timing %d eager steps", self.timed_iters)
        eager_ms, eager_peak = self._time(execution, eager)
        optimizer.zero_grad(set_to_none=True)
        execution.log("tracing")
        step = job.method.build_step(problem, optimizer)
        match = compare_with_eager(execution, step, problem.batch) if self.check_eager else None
        execution.log("timing %d traced steps", self.timed_iters)
        step_ms, step_peak = self._time(execution, lambda: step(*problem.batch))
        profiler = GraphProfiler(step)
        execution.log("profiling %d steps", self.profile_iters)
        profiler.run(*problem.batch, warmup_iters=self.warmup_iters, profile_iters=self.profile_iters)
        execution.log("writing tables and figures")
        profiler.save_stats_to_csv(folder)
        profiler.plot(folder)
        checks = profiler.sign_off(folder)
        table = sign_off_table(checks)
        (folder / "sign_off.txt").write_text(table + "\n")
        execution.log("%s", table)
        graph_ms: list[float] = []
        if execution.device.type == "cuda":
            execution.log("timing %d replays of the step as a CUDA graph", self.timed_iters)
            graph_ms, _ = self._time(execution, timing.capture(lambda: step(*problem.batch)).replay)
        summary = profiler.summary()
        execution.write(
            None,
            {"total_step": summarize(step_ms)},
            N=None,
            K=None,
            B=job.workload.batch_size,
            mask=None,
            timing_mode=self.timing,
            memory_peak_bytes=summary["measured_peak_bytes"],
            profile={
                **summary,
                "step_peak_bytes": step_peak,
                "eager": {**summarize(eager_ms), "peak_bytes": eager_peak},
                "cuda_graph": summarize(graph_ms) if graph_ms else None,
                "matches_eager": match,
                "sign_off": [dataclasses.asdict(check) for check in checks],
            },
        )
        failed = [check for check in checks if not check.passed]
        if failed:
            raise CheckFailed(f"sign-off: {failed[0].name}: found {failed[0].found}, expected {failed[0].expected}")
        return summarize(step_ms)["p50_ms"]

    def _time(self, execution: Execution, step: Callable[[], object]) -> tuple[list[float], int | None]:
        """Milliseconds of each of `timed_iters` steps, and the peak of PyTorch's allocator (None on a CPU)."""
        timer = timing.Timer(self.timing, execution.device)
        cuda = execution.device.type == "cuda"
        step()
        if cuda:
            torch.cuda.synchronize(execution.device)
            torch.cuda.reset_peak_memory_stats(execution.device)
        samples = timer.measure("total_step", step, self.warmup_iters, self.timed_iters)["total_step"]
        return samples, torch.cuda.max_memory_allocated(execution.device) if cuda else None
