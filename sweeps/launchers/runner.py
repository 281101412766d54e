"""What launchers share: the sweep as it goes, and what each kind of launcher must offer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from blockshock.cli.resolvers import run_id
from blockshock.errors import ConfigError
from sweeps.applications.application import Application, application_named
from sweeps.launchers.job_process import Shared, Submission
from sweeps.launchers.options import LauncherConf
from sweeps.launchers.sweep.compose import PlannedJob
from sweeps.launchers.sweep.manifest import Manifest
from sweeps.launchers.sweep.progress import Board

FINAL = ("ok", "oom", "unsupported", "failed", "timeout")


@dataclass
class Hydra:
    """What Hydra gives a launcher."""

    context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    @cached_property
    def application(self) -> Application:
        return application_named(self.config.hydra.launcher.application)

    @cached_property
    def run_id(self) -> str:
        """Names this launch in every status that it leads to."""
        return run_id()

    def submission(self, jobs: Sequence[PlannedJob], **options: Any) -> tuple[bytes, list[str], list[str]]:
        """The arguments of job_process.run for `jobs`."""
        content = Submission(
            [(job.config, job.settled) for job in jobs], self._shared, self.application, self.run_id, **options
        )
        return cloudpickle.dumps(content), list(sys.path), [str(job.folder.path.absolute()) for job in jobs]

    @cached_property
    def _shared(self) -> bytes:
        """What all jobs are given. Raises ConfigError where the task function can't be handed over."""
        try:
            return cloudpickle.dumps(Shared(self.task_function, self._callbacks(), Singleton.get_state(), os.getcwd()))
        except Exception as error:  # pickling runs the reductions of any object: whatever one of them raises
            problem = f"can't be handed to another process ({error}); make what it refers to inside of it"
            raise ConfigError("task function", getattr(self.task_function, "__name__", "?"), problem) from error

    def _callbacks(self) -> list[Any]:
        """The callbacks as they are now; None for one that can't be handed over, which every job makes anew."""
        handed: list[Any] = []
        for callback in self.context.callbacks.callbacks:
            try:
                cloudpickle.dumps(callback)
                handed.append(callback)
            except Exception as error:  # as above
                name = type(callback).__name__
                print(f"callback {name} can't be pickled ({error}): every job's process makes its own", file=sys.stderr)
                handed.append(None)
        return handed


class Runner(Protocol):
    """How jobs are run. One for this machine, one for SLURM."""

    elsewhere: ClassVar[bool]  # on other machines

    def __init__(self, options: Any, hydra: Hydra, sweep: Sweep) -> None: ...

    def check(self, jobs: Sequence[PlannedJob]) -> None:
        """ConfigError where an option or this machine stands against it."""

    def run(self, jobs: Sequence[PlannedJob]) -> bool:
        """Run `jobs`; whether all have ended when it returns."""

    def plan(self, jobs: Sequence[PlannedJob]) -> str:
        """How `run` would start them, in words: for a dry run."""


class Sweep:
    """The jobs of one launch as they go: what has started and ended, and what the failure policy makes of it."""

    def __init__(self, options: LauncherConf, run_id: str, jobs: Sequence[PlannedJob]) -> None:
        self.options, self.run_id = options, run_id
        self.manifests: dict[Path, Manifest] = {}  # by folder; read once that is locked
        self.board = Board(len(jobs))
        self.outdated = 0  # jobs that were `ok` under an earlier hash of their configuration
        self.stopped = False  # by fail_fast: nothing more is to start
        self._before: dict[str, dict[str, Any] | None] = {}

    def submitted(self, job: PlannedJob) -> None:
        """Before a job's process is asked for."""
        job.application.forget(job.folder)
        self.attached(job)

    def attached(self, job: PlannedJob) -> None:
        """A job's process is there already: an earlier launcher has asked for it."""
        job.tries += 1
        self._before[job.name] = job.status()

    def started(self, job: PlannedJob, where: str = "") -> None:
        self.board.started(job.name, where)

    def final(self, job: PlannedJob) -> bool:
        """Whether the job has written how it ended, since it was submitted."""
        found = job.status()
        if found is None or found["status"] not in FINAL or found.get("requeued"):
            return False
        return found != self._before.get(job.name) or job.is_done()

    def has_begun(self, job: PlannedJob) -> bool:
        return job.status() != self._before.get(job.name)

    def ended(self, job: PlannedJob, status: str = "failed", reason: str = "", crowded: bool = False) -> bool:
        """The job's process has ended: record it as `status` where it could not; whether to run it again.

        `crowded`: others used its GPU's memory, too, so that running out of it says nothing yet.
        """
        if not self.final(job):
            if self.has_begun(job):
                job.folder.finish(status, reason)
            else:
                job.folder.close(job.settled, status, reason, self.run_id)
        found = job.folder.status()
        if crowded and found["status"] == "oom" and not self.stopped:
            job.tries -= 1
            self.board.ended(job.name, "oom", f"{found['reason']}; runs again with the GPU to itself", True)
            return True
        failed = found["status"] not in job.application.answers
        again = failed and job.tries <= self.options.retries and not self.stopped
        self.board.ended(job.name, found["status"], found["reason"], again)
        if failed and not again and self.options.failure_policy == "fail_fast":
            self.stopped = True
        return again
