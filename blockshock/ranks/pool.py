"""The ranks of one job, started here.

Ranks are forked from a server process that has imported torch already, so a two-rank job costs a tenth of a second and
not two imports of torch; each still is a process of its own, which can crash or run out of memory without harm to the
next job.

    with RankPool(world_size=2) as pool:
        outcomes = pool.run(task, argument)        # task(rank: RankInfo, argument) runs on every rank
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.connection as mpc
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blockshock.errors import JobFailed
from blockshock.ranks import forking
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome, exit_reason
from blockshock.ranks.process import serve

CONNECT_S = 10.0
GRACE_S = 2.0  # what the other ranks get to report after one has failed; then they are killed


def check_loopback() -> None:
    """JobFailed where a connection within this host fails: PyTorch's store would try again for half an hour."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=CONNECT_S).close()
    except OSError as error:
        raise JobFailed(
            f"ranks find one another at 127.0.0.1, which does not answer ({error.strerror or error}): "
            "bring this host's loopback interface up (ip link set lo up)"
        ) from error


@dataclass
class _Rank:
    process: Any
    connection: mpc.Connection
    outcome: Outcome | None = None
    pending: bool = field(default=True)


class RankPool:
    """`world_size` rank processes of this host that run one task after another until one of them fails.

    A pool whose job failed is closed: its ranks may hang in a collective, so the next job gets new ones.
    """

    def __init__(self, world_size: int) -> None:
        check_loopback()
        context = forking.context()
        self.world_size = world_size
        self._ranks: list[_Rank] = []
        with forking.interrupts_wait(), socket.create_server(("127.0.0.1", 0)) as store:
            for rank in range(world_size):
                info = RankInfo(rank, rank, world_size, world_size, store.getsockname(), None if rank else store)
                ours, theirs = context.Pipe()
                process = context.Process(target=serve, args=(info, theirs), name=f"rank{rank}", daemon=True)
                process.start()
                theirs.close()
                self._ranks.append(_Rank(process, ours))
        self.alive = True
        # At exit, multiprocessing asks its daemons to end by the signal that ranks ignore, and waits: for ever where a
        # second interrupt has cut `close` short.
        atexit.register(self.kill)

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
        reason = f"rank {number} died: {exit_reason(rank.process.exitcode)}"
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
        atexit.unregister(self.kill)
