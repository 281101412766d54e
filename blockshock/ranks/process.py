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
        connection.send(outcome)
        if outcome.status != "ok":
            sys.stdout.flush()
            sys.stderr.flush()
            end_process(1)  # peers may hang in a collective; destructors of process groups would wait for them


def end_process(status: int) -> None:
    """End without destructors, but for what multiprocessing has to take back: it warns of each semaphore that is left,
    and libraries make some (tqdm has one for its bars)."""
    with suppress(Exception):
        multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]
    os._exit(status)


def _end_with_parent() -> None:
    """A thread that ends this rank when the process that asked for it is gone, also after its SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        mpc.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
