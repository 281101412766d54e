"""What a command does when nobody reads its output any more: `blockshock --help | head -3`.

with closed_pipe_ends_quietly():
    print(help_text)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BY_SIGPIPE = 128 + signal.SIGPIPE  # the exit status of other programs whose reader has gone


@contextmanager
def closed_pipe_ends_quietly() -> Iterator[None]:
    """Exit without a trace where standard output is a pipe that has been closed."""
    try:
        yield
        sys.stdout.flush()  # here, and not at exit, where Python would print a trace
    except BrokenPipeError:
        leave_closed_pipe()
        sys.exit(BY_SIGPIPE)


def leave_closed_pipe() -> None:
    """Whatever is printed from now on goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
