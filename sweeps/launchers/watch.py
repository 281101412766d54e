"""Ends a job's process early, with its last words written first: at a signal, or when its launcher is gone.

watch = begin()                             # the first thing that a job's process does
watch.begins(folder, configuration, run_id) # from now on a signal ends the job of this folder

A signal goes to any thread that does not block it, so also to those that OpenBLAS has started in an earlier import,
while the main thread may be deep in a collective. Whichever gets it, Python's handler in C writes its number into a
pipe at once (signal.set_wakeup_fd), and a thread here reads the pipe.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from contextlib import suppress
from functools import cache
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from sweeps.launchers import slurm_queue

if TYPE_CHECKING:
    from blockshock.run_folder.folder import RunFolder

WATCHED = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}  # SIGUSR2: SLURM's warning before the time limit


def begin() -> Watch:
    """The process's watch, which hears signals from now on, whatever handlers others have set before."""
    watch = _watch()
    watch.listen()
    return watch


@cache
def _watch() -> Watch:
    return Watch()


class Watch:
    """A thread that hears what the main thread could not."""

    def __init__(self) -> None:
        self.now: RunFolder | None = None
        self.max_requeues = 0
        self.over_limit = "its process hung"  # what a local launcher's SIGUSR2 means
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._hear, daemon=True, name="watch-signals")

    def listen(self) -> None:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in WATCHED:
            signal.signal(number, self._handler)
        # Processes that are started later inherit this mask: SLURM signals all of a step, and they leave it to us.
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        if not self._thread.is_alive():
            self._thread.start()
        resource_tracker.ensure_running()  # to start it, multiprocessing unblocks SIGINT and SIGTERM ...
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)  # ... whatever the mask was

    def begins(self, folder: RunFolder, plain: dict[str, Any], run_id: str) -> None:
        """From now on a signal ends the job of `folder`, which may not have written a status yet."""
        self._before = folder.status() if (folder.path / "status.json").exists() else None
        self._plain, self._run_id = plain, run_id
        self.now = folder

    def launcher(self, pid: int) -> None:
        """End this process when the one with this number has ended."""
        threading.Thread(target=self._await_end, args=(pid,), daemon=True, name="watch-launcher").start()

    def _handler(self, number: int, _: object) -> None:
        """In the main thread, where it can; only of use where something else has taken the wake-up descriptor."""
        with suppress(BlockingIOError):
            os.write(self._writer, bytes([number]))

    def _hear(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)  # this thread takes them where no other does
        while True:
            for number in os.read(self._reader, 64):
                if number in WATCHED:
                    self._signalled(number)

    def _signalled(self, number: int) -> None:
        job = slurm_queue.own_job()
        if number == signal.SIGUSR2 and not is_first_rank():
            return  # rank 0 speaks for all; SLURM then ends the others
        if job is None and number == signal.SIGUSR2:  # submitit's, long after hardware.timeout_s
            self._end("timeout", self.over_limit)
        elif job is None:
            self._end("failed", "interrupted")
        elif number == signal.SIGUSR2:
            self._out_of_time(job)
        else:
            self._slurm_ends(job)

    def _out_of_time(self, job: str) -> None:
        """Near the time limit, or about to be preempted: start over while that is allowed."""
        done = slurm_queue.own_restarts()
        reason = f"SLURM: out of time or preempted (job {job})"
        if done < self.max_requeues:
            again = f"{reason}; requeued, {done + 1} of {self.max_requeues}"
            self._say("timeout", again, requeued=True)
            try:
                slurm_queue.requeue(job)
            except RuntimeError as error:  # a cluster may forbid it
                self._end("timeout", f"{reason}; not requeued: {error}")
            os._exit(1)
        allowed = f" after {done} requeues" if self.max_requeues else ""
        self._end("timeout", f"{reason}{allowed}")

    def _slurm_ends(self, job: str) -> None:
        """SLURM writes the reason into the job's log; the controller says no more than COMPLETING by now."""
        log = ""
        for _ in range(20):
            log = slurm_queue.read_log(os.environ["SUBMITIT_FOLDER"], job)
            if slurm_queue.has_last_words(log):
                break
            time.sleep(0.1)
        status, reason = slurm_queue.how_it_ended(job, log)
        self._end(status, reason, requeued=slurm_queue.told_in(log) == slurm_queue.REQUEUED)

    def _await_end(self, pid: int) -> None:
        if hasattr(os, "pidfd_open"):
            with suppress(ProcessLookupError):
                select.select([os.pidfd_open(pid)], [], [])
        else:
            import psutil

            while psutil.pid_exists(pid):
                time.sleep(1.0)
        self._end("failed", "interrupted: the launcher was killed")

    def _say(self, status: str, reason: str, requeued: bool = False) -> None:
        """Into the log, which is all there is before a job has begun, and into the status."""
        print(f"{slurm_queue.REQUEUES if requeued else slurm_queue.OWN_WORDS}{status}: {reason}", flush=True)
        if self.now is not None:
            self.record(status, reason, requeued)

    def record(self, status: str, reason: str, requeued: bool = False) -> None:
        """Write how the job that has begun ended, unless it has written that itself."""
        assert self.now is not None
        found = self.now.status() if (self.now.path / "status.json").exists() else None
        if found is None or found == self._before:  # none, or of an earlier run
            self.now.close(self._plain, status, reason, self._run_id, requeued)
        else:
            self.now.finish(status, reason, requeued=requeued)

    def _end(self, status: str, reason: str, requeued: bool = False) -> None:
        import psutil

        try:
            self._say(status, reason, requeued)
        finally:
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            os._exit(1)


def is_first_rank() -> bool:
    """Whether this process speaks for its job: on SLURM, where all ranks run it, rank 0 does."""
    return slurm_queue.own_place()[0] == 0
