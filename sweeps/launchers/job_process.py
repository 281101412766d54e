"""The other side of a launcher: one composed job, or several of one shape, in a process started for it.

The launcher pickles a `Submission`; submitit starts `run` with it in a fresh process (under SLURM: on every rank).
A job's folder is claimed by a lock, so that no two processes measure it at once, and a job that is `ok` already is
left as it is. Whatever ends the process early is written to status.json before it goes: a signal of SLURM, the death
of the launcher, a Ctrl-C. What can't be caught (SIGKILL) is found by the launcher, by the batch script's last line
(`python -m sweeps.launchers.job_process FOLDER STATUS`) or by the next look at the folder.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.launchers import slurm_queue

if TYPE_CHECKING:
    from blockshock.run_folder.folder import RunFolder

_WATCHED = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}  # SIGUSR2: SLURM's warning before the time limit


@dataclass
class Submission:
    """What a fresh process needs to run jobs as Hydra would have."""

    jobs: list[
        tuple[Any, dict[str, Any]]
    ]  # composed DictConfig with its `hydra` node, and settled as the folder keeps it
    task_function: Callable[[Any], Any]
    callbacks: Any
    run_id: str
    environment: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()  # this job's share of the machine's; empty: all
    launcher: int | None = None  # the process whose end ends this one
    reuse_ranks: bool = False  # the jobs run one after another in the same rank processes
    max_requeues: int = 0


def run(payload: bytes, path: list[str], folders: list[str]) -> None:
    """Run the pickled Submission. `path`: where the launcher finds modules; `folders`: the jobs' run folders."""
    watch = _Watch()
    sys.path += [entry for entry in path if entry not in sys.path]
    import cloudpickle

    from blockshock import ranks
    from blockshock.cli import resolvers

    resolvers.register()  # before a configuration with interpolations is unpickled
    submission: Submission = cloudpickle.loads(payload)
    os.environ |= {**submission.environment, "BLOCKSHOCK_RUN_ID": submission.run_id}
    if submission.cores:
        os.sched_setaffinity(0, submission.cores)
    if submission.launcher is not None:
        watch.launcher(submission.launcher)
    watch.max_requeues = submission.max_requeues
    resolvers.run_id.cache_clear()
    if ranks.launched():
        ranks.share_run_id(submission.run_id)
    else:
        ranks.start_forking_server(submission.reuse_ranks)  # it and this process import torch side by side
    from blockshock.jobs.job import reusing_ranks

    with reusing_ranks() if submission.reuse_ranks else nullcontext():
        for config, plain in submission.jobs:
            _run_one(config, plain, submission, watch)


def _run_one(config: Any, plain: dict[str, Any], submission: Submission, watch: _Watch) -> None:
    from hydra.core.utils import run_job, setup_globals
    from hydra.types import HydraContext

    from blockshock.cli.main import JobFailed
    from blockshock.errors import ConfigError
    from blockshock.run_folder.folder import RunFolder

    setup_globals()
    folder = RunFolder(Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir)
    first = _is_first_rank()
    if folder.is_done():
        return
    with folder.claim() if first else nullcontext(True) as ours:
        if not ours:
            raise RuntimeError(f"{folder.path}: another process is running this job")
        if slurm_queue.own_job() and slurm_queue.own_restarts() > submission.max_requeues:
            if first:
                reason = f"SLURM: requeued more than {submission.max_requeues} times (hydra.launcher.max_requeues)"
                folder.close(plain, "failed", reason, submission.run_id)
            return
        watch.begins(folder, plain, submission.run_id)
        context = HydraContext(config_loader=None, callbacks=submission.callbacks)
        done = run_job(
            task_function=submission.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=context,
        )
        error = done._return_value if isinstance(done._return_value, Exception) else None
        if isinstance(error, ConfigError):  # this machine is not what the launcher's was
            folder.close(plain, "unsupported", str(error), submission.run_id)
        elif error is not None and not isinstance(error, JobFailed):
            from blockshock.ranks.pool import last_line

            folder.close(plain, "failed", last_line(error), submission.run_id)
            if len(submission.jobs) == 1:
                raise error
        watch.now = None


def _is_first_rank() -> bool:
    return int(os.environ.get("SLURM_PROCID", 0)) == 0


class _Watch:
    """A thread that hears what the main thread, deep in a collective, could not: signals, and the launcher's death."""

    def __init__(self) -> None:
        self.now: RunFolder | None = None
        self.max_requeues = 0
        # Threads and processes started later inherit the mask: only the thread below takes these signals. The tracker
        # comes first, since to start it multiprocessing unblocks SIGINT and SIGTERM, whatever the mask was.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        threading.Thread(target=self._signals, daemon=True, name="watch-signals").start()

    def begins(self, folder: RunFolder, plain: dict[str, Any], run_id: str) -> None:
        """From now on a signal ends the job of `folder`, which may not have written a status yet."""
        self._before = folder.status() if (folder.path / "status.json").exists() else None
        self._plain, self._run_id = plain, run_id
        self.now = folder

    def launcher(self, pid: int) -> None:
        threading.Thread(target=self._launcher, args=(pid,), daemon=True, name="watch-launcher").start()

    def _signals(self) -> None:
        while True:
            number = signal.sigwait(_WATCHED)
            if number == signal.SIGUSR2 and not _is_first_rank():
                continue  # rank 0 speaks for all; SLURM then ends the others
            job = slurm_queue.own_job()
            if job is None and number == signal.SIGUSR2:  # submitit's, long after hardware.timeout_s
                self._end("timeout", "its process hung")
            elif job is None:
                self._end("failed", "interrupted")
            elif number == signal.SIGUSR2:
                self._out_of_time(job)
            else:
                self._end(*self._why(job))

    def _out_of_time(self, job: str) -> None:
        """Near the time limit, or about to be preempted: start over while that is allowed."""
        done = slurm_queue.own_restarts()
        reason = f"SLURM: out of time or preempted (job {job})"
        if done < self.max_requeues:
            self._say("timeout", f"{reason}; requeued, {done + 1} of {self.max_requeues}")
            slurm_queue.requeue(job)
            os._exit(1)
        allowed = f" after {done} requeues" if self.max_requeues else ""
        self._end("timeout", f"{reason}{allowed}")

    @staticmethod
    def _why(job: str) -> tuple[str, str]:
        """SLURM writes the reason into the job's log; the controller says no more than COMPLETING by now."""
        for _ in range(20):
            log = slurm_queue.read_log(os.environ["SUBMITIT_FOLDER"], job)
            if slurm_queue.has_last_words(log):
                break
            time.sleep(0.1)
        return slurm_queue.how_it_ended(job, log)

    def _launcher(self, pid: int) -> None:
        if hasattr(os, "pidfd_open"):
            with suppress(ProcessLookupError):
                select.select([os.pidfd_open(pid)], [], [])
        else:
            import psutil

            while psutil.pid_exists(pid):
                time.sleep(1.0)
        self._end("failed", "interrupted: the launcher was killed")

    def _say(self, status: str, reason: str) -> None:
        print(
            f"{slurm_queue.OWN_WORDS}{status}: {reason}", flush=True
        )  # the log is all there is before a job has begun
        if self.now is None:
            return
        found = self.now.status() if (self.now.path / "status.json").exists() else None
        if found == self._before:
            self.now.close(self._plain, status, reason, self._run_id)
        else:
            self.now.finish(status, reason)

    def _end(self, status: str, reason: str) -> None:
        import psutil

        try:
            self._say(status, reason)
        finally:
            for child in psutil.Process().children(recursive=True):
                child.kill()
            os._exit(1)


def main() -> None:
    """The batch script's last line: say why, in the folders of jobs whose processes could not."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    from blockshock.run_folder.folder import RunFolder

    job = slurm_queue.own_job()
    assert job is not None, "runs at the end of a SLURM batch script"
    why = slurm_queue.how_it_ended(job, slurm_queue.read_log(sys.argv[1], job), sys.argv[2])
    paths = JobPaths(sys.argv[1], job_id=job)
    for folder in DelayedSubmission.load(paths.submitted_pickle).args[2]:
        RunFolder(folder).finish(*why)


if __name__ == "__main__":
    main()
