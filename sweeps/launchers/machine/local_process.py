"""A process of the local launcher with the jobs that it runs, and how such processes are ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import submitit

    from sweeps.launchers.sweep.compose import PlannedJob

POLL_S = 0.05
GRACE_S = 10.0  # what jobs get to write their status when they are ended


@dataclass
class LocalProcess:
    """A process and the jobs it runs, one after another."""

    jobs: list[PlannedJob]
    process: submitit.Job[Any]  # submitit's local controller; its id is its pid
    gpus: tuple[int, ...]  # indices into this machine's
    slot: int | None  # on a CPU
    shares: bool  # its GPU with others
    position: int = 0

    @property
    def pid(self) -> int:
        return int(self.process.job_id)

    def last_words(self) -> str:
        """What it printed last, or what that it printed nothing means."""
        error = self.process.paths.stderr
        lines = error.read_text(errors="replace").splitlines() if error.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        killed = "killed (SIGKILL; the kernel's out-of-memory killer sends it too)"
        return f"{last[:200]} ({error})" if last else killed


def end_families(pids: Iterable[int]) -> None:
    """End these processes and all that come from them: by SIGTERM, and after ten seconds by SIGKILL."""
    roots = list(pids)
    deadline = time.monotonic() + GRACE_S
    alive = {process for pid in roots for process in _family(pid)}
    while alive and time.monotonic() < deadline:
        for pid in roots:  # the controller passes it on; again, since it forgets one while it starts its task
            _tell(pid, signal.SIGTERM)
            alive |= set(_family(pid))
        for process in alive:  # one that waits for its turn on a shared GPU is stopped
            with suppress(psutil.NoSuchProcess):
                process.resume()
        alive = set(psutil.wait_procs(alive, timeout=1.0)[1])
    for process in alive:
        process.kill()


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _tell(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
