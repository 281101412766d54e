"""What a command does when nobody reads its output any more: `blockshock --help | head -3`.

with closed_pipe_ends_quietly():      # or @closed_pipe_ends_quietly() above a command
    print(help_text)
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BY_SIGPIPE = 128 + signal.SIGPIPE  # the exit status of other programs whose reader has gone


@contextmanager
def closed_pipe_ends_quietly() -> Iterator[None]:
    """Exit without a trace where standard output is a pipe that has been closed."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, and not at exit, where Python would print a trace
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        leave_closed_pipe()
        sys.exit(BY_SIGPIPE)


def _reader_has_gone() -> bool:
    """Whether it is standard output that is broken, and no other pipe."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def leave_closed_pipe() -> None:
    """Whatever is printed from now on goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
