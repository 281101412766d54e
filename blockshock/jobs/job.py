"""One job from a checked configuration to a finished run folder, in the process that the user or a launcher started.

It supervises the ranks, and imports no torch for that: each of a sweep's many small jobs would wait for it twice.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockshock.config import HardwareConfig
from blockshock.errors import JobFailed
from blockshock.ranks.launched import RankInfo, joined_store, launched
from blockshock.ranks.outcome import Outcome, last_line
from blockshock.ranks.pool import RankPool
from blockshock.ranks.process import take_back_semaphores
from blockshock.run_folder.folder import RunFolder

log = logging.getLogger("blockshock")
LAST_WORD_S = 10.0  # what a rank whose peer is gone waits for the peer, or SLURM, to say why
_IN_A_LAUNCHERS_JOB = "SUBMITIT_EXECUTOR" in os.environ
_LOST_PEER = re.compile(r"Connection (reset|closed)|remote process exited", re.IGNORECASE)  # gloo's and NCCL's words


def execute(
    config: dict[str, Any],
    run_dir: str | os.PathLike[str],
    run_id: str,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Run the job on ranks that exist or are started here, and leave its folder with a final status.

    `config`: a Job's, in which every `auto` has its value. `say` hears of progress; under torchrun or srun, on rank 0.
    """
    folder = RunFolder(Path(run_dir).absolute())
    if launched():
        return _execute_joined(config, folder, run_id, say)
    hardware = HardwareConfig(**config["hardware"])
    outcome = Outcome("failed", "interrupted")
    try:
        folder.start(config, run_id)
        outcome = _pool_for(hardware).run(
            _run_rank, config, str(folder.path), run_id, timeout_s=hardware.timeout_s, on_message=say
        )
    except JobFailed as error:
        outcome = Outcome("failed", str(error))
        raise
    except Exception as error:
        outcome = Outcome("failed", last_line(error))
        raise
    finally:  # also when interrupted: then no rank stays behind and the folder says so
        folder.finish(outcome.status, outcome.reason, outcome.value)
        if outcome.status != "ok" or not outcome.reusable or not _keep_ranks:
            close_ranks()
    return outcome


def _run_rank(info: RankInfo, config: dict[str, Any], run_dir: str, run_id: str, say: Callable[[str], None]) -> Outcome:
    """What a rank is told to do, by a name that this process knows without importing torch."""
    from blockshock.jobs.rank import run_rank

    return run_rank(info, config, run_dir, run_id, say)


_pools: dict[tuple[Any, ...], RankPool] = {}
_keep_ranks = False


@contextmanager
def reusing_ranks() -> Iterator[None]:
    """Let jobs with the same world size and device run one after another in the same rank processes.

    Saves CUDA contexts and communicators, seconds a job, at the price of isolation: what a job leaves in the process
    (allocator, loaded kernels) the next one finds. Ranks are never reused after a job that failed, or one that traced
    its kernels: CUPTI may stay in the process, and launches then take longer (pytorch issue 144455).
    """
    global _keep_ranks
    _keep_ranks = True
    try:
        yield
    finally:
        _keep_ranks = False
        close_ranks()


def _pool_for(hardware: HardwareConfig) -> RankPool:
    key = (hardware.world_size, hardware.device, hardware.backend, hardware.threads_per_rank)
    pool = _pools.get(key)
    if pool is None or not pool.alive:
        close_ranks()  # one pool at a time: idle ranks would hold GPU memory and cores
        pool = _pools[key] = RankPool(hardware.world_size)
    return pool


def close_ranks() -> None:
    while _pools:
        _, pool = _pools.popitem()
        pool.close()


def _execute_joined(config: dict[str, Any], folder: RunFolder, run_id: str, say: Callable[[str], None]) -> Outcome:
    """Under torchrun or srun: this process is one rank. Rank 0 opens and closes the folder; any rank may fail it."""
    from blockshock.ranks.distributed import shutdown

    info = launched()
    assert info is not None
    store = joined_store()
    if info.rank == 0:
        folder.start(config, run_id)
        store.set("blockshock/started", "1")
    store.wait(["blockshock/started"])

    def terminated(*_: object) -> None:
        folder.finish("failed", f"rank {info.rank}: terminated (SIGTERM)")
        os._exit(1)

    if not _IN_A_LAUNCHERS_JOB:  # there sweeps/launchers/watch.py hears signals
        signal.signal(signal.SIGTERM, terminated)
    outcome = _run_rank(info, config, str(folder.path), run_id, say)
    if _LOST_PEER.search(outcome.reason) and _IN_A_LAUNCHERS_JOB:
        time.sleep(LAST_WORD_S)  # the cause is another rank's: SLURM ends us meanwhile, and watch.py says why
    if outcome.status != "ok" or info.rank == 0:
        folder.finish(outcome.status, outcome.reason, outcome.value)
    if outcome.status != "ok":
        log.error("%s", outcome.reason)
        take_back_semaphores()
        os._exit(1)  # peers may hang in a collective; the launcher ends them once a rank has failed
    shutdown()
    return outcome
