"""How a rank, or a whole job, ended."""

from __future__ import annotations

import signal
import traceback
from dataclasses import dataclass
from typing import Any


@dataclass
class Outcome:
    """How one rank, or a whole job, ended. `status` is one of status.json's words."""

    status: str = "ok"
    reason: str = ""
    value: Any = None
    at: float = 0.0  # time.monotonic() of this host when the rank knew
    reusable: bool = True  # another job may run in the same process
    died: bool = False  # the process ended without a report, which explains what other ranks then see


def last_line(error: BaseException) -> str:
    """The last line of a traceback: type and message."""
    return traceback.format_exception_only(error)[-1].strip()


def exit_reason(code: int | None) -> str:
    if code == 255:  # what multiprocessing says when the server that forks ranks is gone too
        return "exit status 255, or killed together with other processes of its job"
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (the kernel's out-of-memory killer sends it)" if name == "SIGKILL" else "")
