"""Phase profile: one training step of a model as one graph, and what every node of it costs.

Leaves the tables, figures and the Chrome trace of `profiler` in the run folder, and a sign-off; a failed line of the
sign-off fails the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

import torch

from blockshock.errors import ConfigError, at_least, one_of
from blockshock.jobs.agreement import compare_ranks
from blockshock.jobs.correctness import CheckFailed
from blockshock.jobs.eager_match import compare_with_eager
from blockshock.jobs.execution import Execution
from blockshock.measure import timing
from blockshock.measure.clocks import ClockLog
from blockshock.measure.summarize import summarize
from blockshock.phases import OptimizerOptions
from blockshock.ranks import distributed

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

        job = execution.job
        execution.log("building %s", job.workload.name)
        problem = job.workload.task(job, execution.device)
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
        clocks = ClockLog(execution.device)
        step_ms, step_peak = self._time(execution, lambda: step(*problem.batch), clocks)
        profiler = GraphProfiler(step)
        execution.log("profiling %d steps", self.profile_iters)
        profiler.run(*problem.batch, warmup_iters=self.warmup_iters, profile_iters=self.profile_iters)
        execution.log("writing tables and figures")
        with _own_folder(execution) as folder:
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
        ranks = compare_ranks(problem.model)
        execution.write(
            None,
            {"total_step": summarize(step_ms)},
            **job.workload.record_fields(job),
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
            clocks=clocks.summary(),
            ranks=ranks,
        )
        if ranks is not None and not ranks["alike"]:
            raise CheckFailed(f"the ranks differ: {', '.join(ranks['differing'][:3])}")
        failed = [check for check in checks if not check.passed]
        if failed:
            raise CheckFailed(f"sign-off: {failed[0].name}: found {failed[0].found}, expected {failed[0].expected}")
        return summarize(step_ms)["p50_ms"]

    def _time(
        self, execution: Execution, step: Callable[[], object], clocks: ClockLog | None = None
    ) -> tuple[list[float], int | None]:
        """Milliseconds of each of `timed_iters` steps, the slowest rank's, and this rank's peak (None on a CPU)."""
        timer = timing.Timer(self.timing, execution.device)
        if clocks:
            timer.while_running = clocks.sample
        cuda = execution.device.type == "cuda"
        step()
        if cuda:
            torch.cuda.synchronize(execution.device)
            torch.cuda.reset_peak_memory_stats(execution.device)
        distributed.barrier()
        samples = timer.measure("total_step", step, self.warmup_iters, self.timed_iters)["total_step"]
        peak = torch.cuda.max_memory_allocated(execution.device) if cuda else None
        return distributed.max_over_ranks(samples), peak


@contextmanager
def _own_folder(execution: Execution) -> Iterator[Path]:
    """The run folder on rank 0; on other ranks, whose graphs have the same nodes, one that is gone afterwards."""
    if distributed.rank() == 0:
        yield execution.folder.path
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)
