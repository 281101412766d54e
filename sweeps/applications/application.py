"""What a launcher asks of the application whose jobs it runs, and the answers of one that knows nothing of launchers.

Any Hydra application is a `HydraApplication`: a job is a call of its task function in a process of its own, which ends
`ok` with a value or `failed` with an error. `hydra.launcher.application` names another class, as Block-Shock's own
configuration does, where a job has more to say: records, a check before it starts, ranks that jobs share, a report.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from blockshock.errors import ConfigError
from blockshock.run_folder.folder import RunFolder
from sweeps.applications.task_folder import TaskFolder


@dataclass(frozen=True)
class Place:
    """Which job a process runs, and where its result belongs."""

    folder: RunFolder  # its path is absolute
    settled: dict[str, Any]
    run_id: str
    rank: int = 0  # of this process among those that the launcher has started for the job: SLURM's tasks
    ranks: int = 1
    restarts: int = 0  # how often SLURM has started the job over

    @property
    def try_(self) -> str:
        """The same for all ranks of one start of the job, and different for each start."""
        return f"{self.run_id} {self.restarts}"


class Application(Protocol):
    """One instance lives in the launcher and one in every job's process."""

    answers: tuple[str, ...]  # statuses that are a result: a sweeper gets the job's value, no exception
    keeps: bool  # a job that is `ok` is not run again where its sweep is, also without hydra.launcher.resume
    startup_s: float  # what a job may take beside its hydra.launcher.timeout_s

    def settle(self, config: DictConfig, elsewhere: bool) -> tuple[dict[str, Any], str | None]:
        """A job's resolved configuration without `hydra`, and why it can't run. `elsewhere`: on other machines."""

    def job_id(self, settled: dict[str, Any], number: int) -> str:
        """`hydra.job.id`, which may name the job's folder."""

    def folder(self, path: Path) -> RunFolder:
        """Where a job's status lies."""

    def obstacle(self, folder: RunFolder, settled: dict[str, Any]) -> str | None:
        """Why the job can't write into its folder."""

    def forget(self, folder: RunFolder) -> None:
        """Called before a job runs where another result lies: no one may take that for the new one."""

    def command(self) -> list[str]:
        """How a user starts this program again, without its arguments."""

    def report(self, sweeps: Sequence[Path]) -> None:
        """Write the reports of sweeps that have ended, and say where they are."""

    def session(self, run_id: str, reuse_ranks: bool, jobs: Sequence[dict[str, Any]]) -> Any:
        """A context manager around all `jobs` of one process, given as settled."""

    def run(self, place: Place, task: Callable[[], JobReturn]) -> None:
        """Run `task` in a job's process and leave the folder with a final status. Raises what the task has raised."""


class HydraApplication:
    """Any Hydra application: status.json and log.rank0.txt in Hydra's own folder of the job, and nothing else."""

    answers: tuple[str, ...] = ("ok",)
    keeps = False  # its code may have changed: the same folder again means to run again, as with Hydra's launchers
    startup_s = 0.0

    def settle(self, config: DictConfig, elsewhere: bool) -> tuple[dict[str, Any], str | None]:
        picked = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        picked._set_parent(config._get_parent())
        try:
            settled = OmegaConf.to_container(picked, resolve=True)
        except (
            OmegaConfBaseException
        ):  # a key that no one reads may hold what can't be resolved, as in any run of Hydra
            settled = OmegaConf.to_container(picked, resolve=False)
        assert isinstance(settled, dict)
        return {str(key): value for key, value in settled.items()}, None

    def job_id(self, settled: dict[str, Any], number: int) -> str:
        return str(number)

    def folder(self, path: Path) -> RunFolder:
        return TaskFolder(path)

    def obstacle(self, folder: RunFolder, settled: dict[str, Any]) -> str | None:
        return None

    def forget(self, folder: RunFolder) -> None:
        assert isinstance(folder, TaskFolder)
        folder.forget()

    def command(self) -> list[str]:
        given = len(sys.argv) - 1
        return sys.orig_argv[:-given] if given else list(sys.orig_argv)

    def report(self, sweeps: Sequence[Path]) -> None:
        """What a task has measured, we can't know."""

    @contextmanager
    def session(self, run_id: str, reuse_ranks: bool, jobs: Sequence[dict[str, Any]]) -> Iterator[None]:
        yield

    def run(self, place: Place, task: Callable[[], JobReturn]) -> None:
        folder, rank = place.folder, place.rank
        assert isinstance(folder, TaskFolder)
        if rank == 0:
            folder.begin(place.settled, place.run_id)
        with _printing_to(folder.log_path(rank)):
            done = task()
            error = None if done.status == JobStatus.COMPLETED else done._return_value
            if error is not None:
                traceback.print_exception(error)
        if error is not None:
            folder.finish(*how_it_failed(error, rank))
            raise error
        if rank:
            folder.rank_is_done(rank, place.try_)
            return
        # Once the status is `ok`, a rank that starts late would find its job done, and the failure of one that is slow
        # would be lost. A rank that fails takes this one with it (srun --kill-on-bad-exit), so the wait has an end.
        while not folder.ranks_are_done(place.ranks, place.try_):
            time.sleep(0.2)
        folder.finish_with(done.return_value)


def application_named(target: str) -> Application:
    """The application that `hydra.launcher.application` names by its import path."""
    module, _, name = target.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError("hydra.launcher.application", target, f"can't be imported: {error}") from error
    missing = [method for method in _METHODS if not hasattr(made, method)]
    if missing:
        raise ConfigError(
            "hydra.launcher.application", target, f"has no {missing[0]}; see sweeps/applications/application.py"
        )
    found: Application = made
    return found


_METHODS: Sequence[str] = [*Application.__annotations__, *(n for n in vars(Application) if not n.startswith("_"))]


def how_it_failed(error: BaseException, rank: int) -> tuple[str, str]:
    """(status, reason). torch need not be there: its exception is known by name, others of CUDA and NCCL by words."""
    last = traceback.format_exception_only(error)[-1].strip()
    reason = f"rank {rank}: {last}" if rank else last
    no_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    no_memory = no_memory or (isinstance(error, RuntimeError) and "out of memory" in str(error).lower())
    return "oom" if no_memory else "failed", reason


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """What is printed, also by libraries and child processes, goes to this file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    kept = os.dup(1), os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        _flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
