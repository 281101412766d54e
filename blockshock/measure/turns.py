"""Turns on a GPU that several jobs share: while one measures, the processes of the others are stopped.

environment = share(folder)       # in a job's process: it is one of those that share what `folder` stands for
with turn():                      # in its ranks: the GPU and the cores to ourselves
    with aside():                 # what is not measured, such as compiling: another job may measure meanwhile
        ...

Where a job shares nothing both do nothing. Others are stopped by SIGSTOP, so that neither their kernels nor their
compilers' threads disturb a measurement. If the process whose turn it is dies, whatever kills it, a shell that waits at
the end of a pipe lets the others go on.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any

import psutil

SHARED = "BLOCKSHOCK_SHARED_GPU"  # "folder:number of the job's process:most jobs that share it", for a job's ranks
REST_S = 0.03  # for so long no kernel may have waited for another process's
WAITED_S = 5e-4  # of a launch and its end; time slices of other processes are longer
GIVE_UP_S = 30.0
# The last line's processes go on when the pipe ends; a line of its own in the background, so that no one's child is it.
_GUARD = 'exec 3<&0; (while read -r pids <&3; do last=$pids; done; [ -z "$last" ] || kill -CONT $last) 2>/dev/null &'


def share(folder: str | os.PathLike[str], jobs: int) -> None:
    """Make this process, with those that it starts, one of at most `jobs` that share what `folder` stands for.

    Waits while another measures.
    """
    os.environ[SHARED] = f"{folder}:{os.getpid()}:{jobs}"
    ours = _ours()
    assert ours is not None
    with ours.locked():
        name = Path(folder) / str(os.getpid())
        name.write_text(str(psutil.Process().create_time()))


def jobs_that_share() -> int:
    """How many jobs may share this one's GPU; 1 where it has it alone."""
    ours = _ours()
    return ours.jobs if ours else 1


@contextmanager
def turn() -> Iterator[None]:
    """Wait for our turn, then nothing but this runs on what we share."""
    ours = _ours()
    if ours is None or ours.has_turn:
        yield
        return
    ours.take()
    try:
        yield
    finally:
        ours.give()


@contextmanager
def aside() -> Iterator[None]:
    """Within a turn: let others have theirs meanwhile. What a compiler times (inductor's autotuning) takes a turn."""
    ours = _ours()
    if ours is None or not ours.has_turn:
        yield
        return
    if _computes_on_gpu():
        _autotune_in_turn()
    ours.give()
    try:
        yield
    finally:
        ours.take()


class Turns:
    """This process's side of it."""

    def __init__(self, folder: Path, job: int, jobs: int) -> None:
        self.folder, self.job, self.jobs = folder, job, jobs
        self.has_turn = False
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        self._guard: Any = None  # the end of the pipe that a shell reads
        self._stopped: list[psutil.Process] = []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The lock ends with this process, and no child inherits it: POSIX's, not flock."""
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def take(self) -> None:
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            self._stop_others()
            if _computes_on_gpu():
                wait_for_rest()
        except BaseException:
            self.give()
            raise
        self.has_turn = True

    def give(self) -> None:
        self.has_turn = False
        for process in reversed(self._stopped):  # children first: a parent may wait for them with a limit
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self._stopped = []
        self._tell_guard()
        fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _stop_others(self) -> None:
        """Parents first; then what they had started meanwhile."""
        found = self._others()
        while found:
            self._stopped += found
            self._tell_guard()
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            known = {process.pid for process in self._stopped}
            found = [process for process in self._others() if process.pid not in known]

    def _others(self) -> list[psutil.Process]:
        roots = []
        for entry in self.folder.iterdir():
            if not entry.name.isdecimal() or int(entry.name) == self.job:
                continue
            try:
                started = str(psutil.Process(int(entry.name)).create_time())
            except psutil.NoSuchProcess:
                started = ""
            if started == entry.read_text():
                roots.append(int(entry.name))
            else:  # its process has ended, and the number may be another's now
                entry.unlink()
        return _families(roots)

    def _tell_guard(self) -> None:
        if self._guard is None:
            command = ["/bin/sh", "-c", _GUARD]
            shell = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
            shell.wait()
            self._guard = shell.stdin
        self._guard.write(" ".join(str(process.pid) for process in self._stopped) + "\n")
        self._guard.flush()


def wait_for_rest() -> None:
    """Until the current GPU runs no kernels of others: theirs that were queued still run after they were stopped.

    Raises RuntimeError after 30 s.
    """
    import torch

    probe = torch.zeros(1, device="cuda")
    began = quiet_since = time.perf_counter()
    while (now := time.perf_counter()) - quiet_since < REST_S:
        probe.add_(1)
        torch.cuda.synchronize()
        if time.perf_counter() - now > WAITED_S:
            quiet_since = time.perf_counter()
        if now - began > GIVE_UP_S:
            raise RuntimeError(f"the GPU does not come to rest in {GIVE_UP_S:g} s: another program computes on it")


def _families(roots: Collection[int]) -> list[psutil.Process]:
    """The processes of these numbers and all that come from them, parents first; one look at the system's list."""
    children: dict[int, list[psutil.Process]] = defaultdict(list)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            children[process.ppid()].append(process)
            if process.pid in roots:
                found.append(process)
    for process in found:  # grows
        found += children[process.pid]
    return found


def _computes_on_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def _ours() -> Turns | None:
    said = os.environ.get(SHARED)
    return _turns(said, os.getpid()) if said else None


@cache
def _turns(said: str, _pid: int) -> Turns:
    """Of a process: a rank is forked from one that may have had its own."""
    folder, job, jobs = said.rsplit(":", 2)
    return Turns(Path(folder), int(job), int(jobs))


@cache
def _autotune_in_turn() -> None:
    from torch._inductor.runtime.benchmarking import benchmarker

    measured = benchmarker.benchmark_gpu

    @wraps(measured)
    def alone(*args: Any, **options: Any) -> Any:
        with turn():
            return measured(*args, **options)

    vars(benchmarker)["benchmark_gpu"] = alone
