"""Phase profile: one training step of a model as one graph, and what every node of it costs.

Leaves the tables, figures and the Chrome trace of `profiler` in the run folder, and a sign-off; a failed line of the
sign-off fails the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from blockshock import timing
from blockshock.correctness import CheckFailed
from blockshock.errors import ConfigError, at_least, one_of
from blockshock.execution import Execution
from blockshock.phases import OptimizerOptions
from blockshock.problem import DTYPES

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class ProfileStep(OptimizerOptions):
    of: ClassVar[str] = "model"

    name: str = "profile"
    warmup_iters: int = 1
    profile_iters: int = 3
    timed_iters: int = 20  # plain steps, for the step time beside the nodes' times
    timing: str = "auto"  # auto: cuda_events on a GPU, sync on a CPU

    def check(self, job: Job) -> None:
        self.check_optimizer()
        for key in ("warmup_iters", "profile_iters", "timed_iters"):
            at_least(f"phase.{key}", getattr(self, key), 1)
        gpu = job.hardware.device == "cuda"
        one_of("phase.timing", self.timing, ("auto", "sync", "cuda_events"))
        if self.timing == "auto":
            self.timing = "cuda_events" if gpu else "sync"
        if self.timing == "cuda_events" and not gpu:
            raise ConfigError("phase.timing", self.timing, "needs a GPU; on a CPU use sync")

    def run(self, execution: Execution) -> float:
        """Record the profile's summary and the plain step's time; its median in ms."""
        from profiler import GraphProfiler, sign_off_table

        job, folder = execution.job, execution.folder.path
        execution.log("building %s", job.workload.name)
        problem = job.workload.build(DTYPES[job.model.dtype], execution.device, job.experiment.seed)
        optimizer = self.make_optimizer(list(problem.model.parameters()))
        execution.log("tracing")
        step = job.method.build_step(problem, optimizer)
        timer = timing.Timer(self.timing, execution.device)
        execution.log("timing %d plain steps", self.timed_iters)
        samples = timer.measure("total_step", lambda: step(*problem.batch), self.warmup_iters, self.timed_iters)
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
        summary = profiler.summary()
        timings = {name: timing.summarize(values) for name, values in samples.items()}
        execution.write(
            None,
            timings,
            N=None,
            K=None,
            B=job.workload.batch_size,
            mask=None,
            timing_mode=self.timing,
            memory_peak_bytes=summary["measured_peak_bytes"],
            profile={**summary, "sign_off": {check.name: check.passed for check in checks}},
        )
        failed = [check for check in checks if not check.passed]
        if failed:
            raise CheckFailed(f"sign-off: {failed[0].name}: found {failed[0].found}, expected {failed[0].expected}")
        return timings["total_step"]["p50_ms"]


def analyse_batches(folders: Mapping[int, Path], out: Path) -> list[Path]:
    """Peak memory and step time against batch size, from the run folders of a sweep: a CSV and two figures in `out`.

    Raises MissingStatsError, which names the file, if a folder lacks one; nothing is filled in.
    """
    from profiler.batch_analysis import plot_batches, read_batches

    return plot_batches(read_batches(folders), out)
