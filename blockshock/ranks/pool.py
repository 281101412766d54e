"""The ranks of one job: join those that torchrun or srun started, or start them here.

Ranks started here are forked from a server process that has imported torch already, so a two-rank job costs a tenth
of a second and not two imports of torch; each still is a process of its own, which can crash or run out of memory
without harm to the next job.

    with RankPool(world_size=2) as pool:
        outcomes = pool.run(task, argument)        # task(rank: RankInfo, argument) runs on every rank
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection as mpc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from typing import Any

from blockshock.ranks.launched import STARTED_HERE, RankInfo

GRACE_S = 2.0  # what the other ranks get to report after one has failed; then they are killed
PRELOAD = ["blockshock.jobs.rank"]  # what the server that forks ranks imports, once
PRELOAD_FOR_MANY = ["torch._dynamo"]  # what autograd functions and optimizers import at first use, a second or two
_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}


@dataclass
class Outcome:
    """How one rank, or a whole job, ended. `status` is one of status.json's words."""

    status: str = "ok"
    reason: str = ""
    value: Any = None
    at: float = 0.0  # time.monotonic() of this host when the rank knew
    died: bool = False  # the process ended without a word, which explains what its peers then report


@dataclass
class _Rank:
    process: Any
    connection: mpc.Connection
    outcome: Outcome | None = None
    pending: bool = field(default=True)


def start_forking_server(many_jobs: bool = False) -> None:
    """Start the server that forks ranks now: it imports torch while its user does something else."""
    _context(many_jobs)
    with _interrupts_wait():
        forkserver.ensure_running()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold interrupts back meanwhile: one halfway through a request would make the server that forks ranks stumble.

    What is started here inherits the mask. So a Ctrl-C does not stop the server in the middle of its imports either; it
    ends with this process.
    """
    resource_tracker.ensure_running()  # to start it, multiprocessing unblocks SIGINT and SIGTERM whatever the mask was
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context(many_jobs: bool) -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD + PRELOAD_FOR_MANY * many_jobs)
    return context


class RankPool:
    """`world_size` rank processes of this host that run one task after another until one of them fails.

    A pool whose job failed is closed: its ranks may hang in a collective, so the next job gets new ones.
    """

    def __init__(self, world_size: int, many_jobs: bool = False) -> None:
        import torch.distributed as dist

        context = _context(many_jobs)
        self.world_size = world_size
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._ranks: list[_Rank] = []
        with _interrupts_wait():
            for rank in range(world_size):
                info = RankInfo(rank, rank, world_size, world_size, ("127.0.0.1", self._store.port))
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(info, theirs), name=f"rank{rank}", daemon=True)
                process.start()
                theirs.close()
                self._ranks.append(_Rank(process, ours))
        self.alive = True

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error:  # an interrupt: ranks are in the middle of something
            self.kill()
        self.close()

    def run(
        self,
        task: Callable[..., Any],
        *args: Any,
        timeout_s: float | None = None,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> Outcome:
        """`task(info, *args)` on every rank; the first failure's outcome, else rank 0's.

        `task` must be importable. A rank that raises, exits or is killed fails the job; the others then get
        GRACE_S seconds before they are killed.
        """
        for rank in self._ranks:
            rank.pending, rank.outcome = True, None
            with contextlib.suppress(BrokenPipeError):  # it has died since its last job: its sentinel says so below
                rank.connection.send((task, args))
        deadline = time.monotonic() + timeout_s if timeout_s else None
        failure: Outcome | None = None
        while any(rank.pending for rank in self._ranks):
            wait = max(0.0, deadline - time.monotonic()) if deadline else None
            ready = mpc.wait([w for r in self._ranks if r.pending for w in (r.connection, r.process.sentinel)], wait)
            if not ready:
                if failure is None:
                    failure = Outcome("timeout", f"ran longer than {timeout_s:g} s")
                break
            for number, rank in enumerate(self._ranks):
                if rank.pending and (rank.connection in ready or rank.process.sentinel in ready):
                    self._receive(number, rank, on_message)
            failed = [r.outcome for r in self._ranks if r.outcome and r.outcome.status != "ok"]
            if failed and failure is None:
                deadline = time.monotonic() + GRACE_S
            if failed:  # the first to fail is the cause; a later one may report only that its peer is gone
                failure = min(failed, key=lambda outcome: (not outcome.died, outcome.at))
        if failure:
            self.kill()
            return failure
        return self._ranks[0].outcome or Outcome("failed", "rank 0 reported nothing")

    def _receive(self, number: int, rank: _Rank, on_message: Callable[[str], None]) -> None:
        try:
            if rank.connection.poll():
                message = rank.connection.recv()
                if isinstance(message, Outcome):
                    rank.pending, rank.outcome = False, message
                else:
                    on_message(message)
                return
        except (EOFError, ConnectionError):
            pass  # the rank's end of the pipe is gone, and so is the rank
        rank.process.join()
        rank.pending = False
        reason = f"rank {number} died: {_exit_reason(rank.process.exitcode)}"
        rank.outcome = Outcome("failed", reason, at=time.monotonic(), died=True)

    def close(self) -> None:
        """Let idle ranks end by themselves; kill those that do not."""
        for rank in self._ranks:
            rank.connection.close()
        for rank in self._ranks:
            rank.process.join(GRACE_S)
        self.kill()

    def kill(self) -> None:
        self.alive = False
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.join()


def _exit_reason(code: int | None) -> str:
    if code == 255:  # what multiprocessing says when the server that forks ranks is gone too
        return "exit status 255, or killed together with other processes of its job"
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (the kernel's out-of-memory killer sends it)" if name == "SIGKILL" else "")


def _serve(info: RankInfo, connection: mpc.Connection) -> None:
    """The life of a rank: tasks from the pipe until it closes or a task fails."""
    os.environ[STARTED_HERE] = "1"
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    for number in _INTERRUPTS:  # a Ctrl-C, or the end of a SLURM step, reaches the parent too, which ends its ranks
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
            os._exit(1)  # peers may hang in a collective; destructors of process groups would wait for them


def last_line(error: BaseException) -> str:
    """The last line of a traceback: type and message."""
    return traceback.format_exception_only(error)[-1].strip()


def _end_with_parent() -> None:
    """A thread that ends this rank when the process that asked for it is gone, also after its SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        mpc.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
