"""The other side of a launcher: one composed job, or several of one shape, in a process started for it.

The launcher pickles a `Submission`; `command()` and its FOLDER run it (under SLURM: on every rank). A job's folder is
claimed by a lock, so that no two processes measure it at once, and a job that is `ok` already is left as it is.
Whatever ends the process early is written to status.json before it goes: watch.py. What can't be caught (SIGKILL) is
found by the launcher, by the batch script's last line (the same command with an exit code) or by the next look at the
folder.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.launchers import slurm_queue, watch

PICKLE_S = 60.0  # what the pickle of a job that has started already gets to appear on a shared file system

if TYPE_CHECKING:
    from blockshock.run_folder.folder import RunFolder
    from sweeps.applications.application import Application


def command() -> list[str]:
    """What starts a job's process, before its arguments. It finds our packages where this process has, installed or
    not, and after everything that Python finds by itself.
    """
    home = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.append({home!r}); from sweeps.launchers.job_process import main; main()"
    return [sys.executable, "-u", "-c", code]


def interpreter() -> str:
    """What submitit is to start a job's process with, in place of Python and its own module.

    Its own handler of signals would swallow a SIGTERM until a job has begun; here the watch begins first.
    """
    return shlex.join(command())


@dataclass
class Shared:
    """What all jobs of a launch are given alike: Hydra's own state, and what it calls."""

    task_function: Callable[[Any], Any]
    callbacks: list[Any]  # None: one that could not be pickled
    singletons: Any  # of Hydra, OmegaConf's resolvers among them
    folder: str  # the launcher's current one: relative paths start there, whatever a batch script has done


@dataclass
class Submission:
    """What a fresh process needs to run jobs as Hydra would have."""

    jobs: list[
        tuple[Any, dict[str, Any]]
    ]  # composed DictConfig with its `hydra` node, and settled as the folder has it
    shared: bytes  # a pickled Shared
    application: Application
    run_id: str
    environment: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()  # this job's share of the machine's; empty: all
    launcher: int | None = None  # the process whose end ends this one
    reuse_ranks: bool = False  # the jobs run one after another in the same rank processes
    max_requeues: int = 0
    over_limit: str = "its process hung"  # the reason where the launcher ends it after its time limit
    shares: tuple[str, int] | None = None  # the folder and number of the jobs that share a GPU: measure/turns.py


def run(payload: bytes, path: list[str], folders: list[str]) -> None:
    """Run the pickled Submission. `path`: where the launcher finds modules; `folders`: the jobs' run folders."""
    watching = watch.begin()
    sys.path += [entry for entry in path if entry not in sys.path]
    import cloudpickle
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from omegaconf.errors import OmegaConfBaseException

    from blockshock import ranks

    submission: Submission = cloudpickle.loads(payload)
    os.environ |= submission.environment
    if submission.cores:
        os.sched_setaffinity(0, submission.cores)
    if submission.shares:
        from blockshock.measure.turns import share

        share(*submission.shares)
    if submission.launcher is not None:
        watching.launcher(submission.launcher)
    watching.max_requeues, watching.over_limit = submission.max_requeues, submission.over_limit
    ranks.forget_launch(own_step=slurm_queue.own_job() is not None)
    shared: Shared = cloudpickle.loads(submission.shared)
    Singleton.set_state(shared.singletons)
    os.chdir(shared.folder)
    # Hydra sets it when a job's task begins, which is too late for ranks' server. All jobs of a process have the same.
    first, _ = submission.jobs[0]
    HydraConfig.instance().set_config(first)
    with suppress(OmegaConfBaseException):  # the job fails of it when it begins, and says so in its folder
        os.environ |= {**first.hydra.job.env_set, **submission.environment}
    settled_jobs = [settled for _, settled in submission.jobs]
    with submission.application.session(submission.run_id, submission.reuse_ranks, settled_jobs):
        for (config, settled), folder in zip(submission.jobs, folders, strict=True):
            _run_one(config, settled, Path(folder), submission, shared, watching)


def _run_one(
    config: Any, settled: dict[str, Any], path: Path, submission: Submission, shared: Shared, watching: watch.Watch
) -> None:
    from hydra.core.utils import JobReturn, run_job, setup_globals
    from hydra.types import HydraContext

    from sweeps.applications.application import Place, how_it_failed

    application = submission.application
    setup_globals()
    folder = application.folder(path)
    first = watch.is_first_rank()
    if folder.is_done(settled):
        return
    with folder.claim() if first else nullcontext(True) as ours:
        if not ours:
            raise RuntimeError(f"{folder.path}: another process is running this job")
        if first and folder.is_done(settled):  # by the process that held the folder until now
            return
        problem = application.obstacle(folder, settled)
        if problem:
            raise RuntimeError(f"{folder.path} {problem}")
        if slurm_queue.own_job() and slurm_queue.own_restarts() > submission.max_requeues:
            if first:
                reason = f"SLURM: requeued more than {submission.max_requeues} times (hydra.launcher.max_requeues)"
                folder.close(settled, "failed", reason, submission.run_id)
            return
        watching.begins(folder, settled, submission.run_id)
        context = HydraContext(config_loader=None, callbacks=_callbacks(config, shared.callbacks))

        def task() -> JobReturn:
            return run_job(
                task_function=shared.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                hydra_context=context,
            )

        rank, ranks, restarts = slurm_queue.own_place()
        try:
            application.run(Place(folder, settled, submission.run_id, rank, ranks, restarts), task)
        except Exception as error:  # whatever the job raises: the next one of this process does not suffer for it
            if first:
                watching.record(*how_it_failed(error, rank))
            if len(submission.jobs) == 1:
                raise
            traceback.print_exception(error)
        if first and not folder.has_ended():
            watching.record("failed", "it left no status: its folder was deleted while it ran")
        watching.now = None


def _callbacks(config: Any, handed: list[Any]) -> Any:
    """The launcher's callbacks, and a new one from the configuration for each that could not be handed over."""
    from hydra._internal.callbacks import Callbacks

    found = Callbacks()
    made = Callbacks(config).callbacks if None in handed else handed
    found.callbacks = [new if old is None else old for old, new in zip(handed, made, strict=True)]
    return found


def main() -> None:
    """`[submitit's options] FOLDER`: run this process's job. `FOLDER CODE`: it has ended with that exit code."""
    if sys.argv[-1].isdecimal() and len(sys.argv) == 3:
        record_end(Path(sys.argv[1]), sys.argv[2])
    else:
        run_submitted(sys.argv[-1])


def run_submitted(folder: str) -> None:
    """What `python -m submitit.core._submit FOLDER` does, with signals heard from the beginning."""
    watch.begin()
    os.environ["SUBMITIT_FOLDER"] = folder
    from submitit import JobEnvironment
    from submitit.core.utils import DelayedSubmission, cloudpickle_dump, temporary_save_path

    environment = JobEnvironment()
    paths = environment.paths
    print(f"{slurm_queue.STARTS}{environment}", flush=True)
    deadline = time.monotonic() + PICKLE_S
    while not paths.submitted_pickle.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    try:
        result = ("success", DelayedSubmission.load(paths.submitted_pickle).result())
    except Exception:  # whatever the task raises, submitit's job.result() hands it on
        result = ("error", traceback.format_exc())
    with temporary_save_path(paths.result_pickle) as unfinished:
        cloudpickle_dump(result, unfinished)
    if result[0] == "error":
        sys.exit(result[1])


def record_end(folder: Path, code: str) -> None:
    """The batch script's last line: say why, in the folders of jobs whose processes could not."""
    import cloudpickle
    from submitit.core.utils import DelayedSubmission, JobPaths

    job = slurm_queue.own_job()
    assert job is not None, "runs at the end of a SLURM batch script"
    log = slurm_queue.read_log(folder, job)
    status, reason = slurm_queue.how_it_ended(job, log, code)
    requeued = slurm_queue.told_in(log) == slurm_queue.REQUEUED
    payload, path, folders = DelayedSubmission.load(JobPaths(folder, job_id=job).submitted_pickle).args
    sys.path += [entry for entry in path if entry not in sys.path]
    submission: Submission = cloudpickle.loads(payload)
    for (_, settled), where in zip(submission.jobs, folders, strict=True):
        run_folder = submission.application.folder(Path(where))
        if _has_begun(run_folder, submission.run_id):
            if not run_folder.is_requeued():
                run_folder.finish(status, reason, requeued=requeued)
        else:  # not a line of it ran, or only its imports
            run_folder.close(settled, status, reason, submission.run_id, requeued)


def _has_begun(folder: RunFolder, run_id: str) -> bool:
    """Whether the folder's status is this launch's, or one that it may not replace: a result, or another process's."""
    from blockshock.run_folder.contents import STATUS

    if not (folder.path / STATUS).exists():
        return False
    found = folder.status()
    return found.get("run_id") == run_id or found["status"] == "ok" or folder.is_claimed()
