"""The life of one rank that was started here: tasks from a pipe, until it closes or a task fails."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection as mpc
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.synchronize import SemLock

from blockshock.ranks.launched import STARTED_HERE, RankInfo
from blockshock.ranks.outcome import Outcome, last_line

INTERRUPTS = {signal.SIGINT, signal.SIGTERM}


def serve(info: RankInfo, connection: mpc.Connection) -> None:
    """Run tasks from `connection`, and answer each with its Outcome."""
    os.environ[STARTED_HERE] = "1"
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    for number in INTERRUPTS:  # a Ctrl-C, or the end of a SLURM step, reaches the parent too, which ends its ranks
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    while True:
        try:
            task, args = connection.recv()
        except EOFError:
            return
        try:
            outcome = task(info, *args, say=connection.send)
        except BaseException as error:  # whatever it was, the parent must hear of it
            traceback.print_exc()
            outcome = Outcome("failed", f"rank {info.rank}: {last_line(error)}")
        outcome.at = time.monotonic()
        if outcome.status != "ok":
            take_back_semaphores()  # now: the parent ends this process once it hears of it
        connection.send(outcome)
        if outcome.status != "ok":
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # peers may hang in a collective; destructors of process groups would wait for them


def take_back_semaphores() -> None:
    """Before an end without finalizers: multiprocessing warns of each that is left, and libraries make some (tqdm has
    one for its bars). Other finalizers may wait for a thread."""
    with suppress(Exception):  # of names that are multiprocessing's own
        for finalizer in list(multiprocessing.util._finalizer_registry.values()):  # type: ignore[attr-defined]
            if finalizer._callback == SemLock._cleanup:  # type: ignore[attr-defined]
                finalizer()


def _end_with_parent() -> None:
    """A thread that ends this rank when the process that asked for it is gone, also after its SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        mpc.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
