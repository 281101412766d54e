"""What launchers share: the sweep as it goes, and what each kind of launcher must offer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import cloudpickle
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from blockshock.cli.resolvers import run_id
from sweeps.launchers.compose import PlannedJob
from sweeps.launchers.job_process import Submission
from sweeps.launchers.manifest import Manifest
from sweeps.launchers.options import LauncherConf
from sweeps.launchers.progress import Board

FINAL = ("ok", "oom", "unsupported", "failed", "timeout")


FAILED = ("failed", "timeout")


@dataclass
class Hydra:
    """What Hydra gives a launcher."""

    context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    def submission(self, jobs: Sequence[PlannedJob], **options: Any) -> tuple[bytes, list[str], list[str]]:
        """The arguments of job_process.run for `jobs`."""
        content = Submission(
            [(job.config, job.plain) for job in jobs], self.task_function, self.context.callbacks, run_id()
        )
        for name, value in options.items():
            setattr(content, name, value)
        return cloudpickle.dumps(content), list(sys.path), [str(job.folder.path.absolute()) for job in jobs]


class Runner(Protocol):
    """How jobs are run. One for this machine, one for SLURM."""

    elsewhere: ClassVar[bool]  # on other machines

    def __init__(self, options: Any, hydra: Hydra, sweep: Sweep) -> None: ...

    def check(self, jobs: Sequence[PlannedJob]) -> None:
        """ConfigError where an option or this machine stands against it."""

    def run(self, jobs: Sequence[PlannedJob]) -> bool:
        """Run `jobs`; whether all have ended when it returns."""


class Sweep:
    """The jobs of one launch as they go: what has started and ended, and what the failure policy makes of it."""

    def __init__(self, options: LauncherConf, jobs: Sequence[PlannedJob]) -> None:
        self.options = options
        self.manifests: dict[Path, Manifest] = {}  # by folder; read once that is locked
        self.board = Board(len(jobs))
        self.outdated = 0  # jobs that were `ok` under an earlier hash of their configuration
        self.stopped = False  # by fail_fast: nothing more is to start
        self._before: dict[str, dict[str, Any] | None] = {}

    def submitted(self, job: PlannedJob) -> None:
        """Before a job's process is asked for."""
        job.tries += 1
        self._before[job.name] = job.status()

    def started(self, job: PlannedJob, where: str = "") -> None:
        self.board.started(job.name, where)

    def final(self, job: PlannedJob) -> bool:
        """Whether the job has written how it ended, since it was submitted."""
        found = job.status()
        if found is None or found["status"] not in FINAL or found.get("requeued"):
            return False
        return found != self._before.get(job.name) or job.folder.is_done()

    def has_begun(self, job: PlannedJob) -> bool:
        return job.status() != self._before.get(job.name)

    def ended(self, job: PlannedJob, status: str = "failed", reason: str = "") -> bool:
        """The job's process has ended: record it as `status` where it could not; whether to run it again."""
        if not self.final(job):
            if self.has_begun(job):
                job.folder.finish(status, reason)
            else:
                job.folder.close(job.plain, status, reason, run_id())
        found = job.folder.status()
        failed = found["status"] in FAILED
        again = failed and job.tries <= self.options.retries and not self.stopped
        self.board.ended(job.name, found["status"], found["reason"], again)
        if failed and not again and self.options.failure_policy == "fail_fast":
            self.stopped = True
        return again
