"""One rank's run of one job, from the process group to the outcome. Imported by the server that forks ranks."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blockshock.config import Job, load_job
from blockshock.errors import ConfigError
from blockshock.jobs.correctness import CheckFailed
from blockshock.jobs.execution import Execution
from blockshock.measure import environment
from blockshock.measure.cpu import available_cpus
from blockshock.measure.turns import turn
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo, launched
from blockshock.ranks.outcome import Outcome, last_line
from blockshock.run_folder.folder import RunFolder

log = logging.getLogger("blockshock")


def run_rank(
    info: RankInfo,
    config: dict[str, Any],
    run_dir: str,
    run_id: str,
    say: Callable[[str], None],
) -> Outcome:
    """Run the job on this rank and say how it ended. `say` passes rank 0's progress on to whoever shows it."""
    folder = RunFolder(run_dir)
    # what torchrun or srun has started prints to its launcher
    _log_to(folder.log_path(info.rank), say if info.rank == 0 else None, redirect=launched() is None)
    job: Job | None = None
    try:
        job = load_job(config)
        if info.rank == 0:  # the other ranks write none before they have met this one
            folder.clear(job.phase)
        hardware = job.hardware
        threads = hardware.threads_per_rank or max(1, available_cpus() // info.local_world_size)
        device = distributed.initialize(info, hardware.device, hardware.backend, threads, hardware.timeout_s)
        if info.rank == 0:
            folder.write_json("env.json", environment.describe(device))
        with turn():
            value = job.phase.run(Execution(job, device, folder, run_id))
        distributed.barrier()
        leaves_tracing = hardware.device == "cuda" and getattr(job.phase, "traces_kernels", False)
        return Outcome("ok", value=value, reusable=not leaves_tracing)
    except ConfigError as error:  # found only with the data at hand, such as a mask that is not complementary
        log.exception("refused")
        return Outcome("unsupported", str(error))
    except CheckFailed as error:
        log.error("%s", error)
        return Outcome("failed", str(error))
    except Exception as error:
        log.exception("failed")
        if is_out_of_memory(error):
            return Outcome("oom", f"rank {info.rank}: out of memory with {_sizes(job)}: {last_line(error)}")
        return Outcome("failed", f"rank {info.rank}: {last_line(error)}")
    finally:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        sys.stdout.flush()
        sys.stderr.flush()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the host had no memory left: libraries report it in words of their own, as RuntimeErrors."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    words = ("out of memory", "can't allocate memory", "alloc_failed")  # CUDA and NCCL; the CPU allocator; cuBLAS
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def _sizes(job: Job | None) -> str:
    if job is None:
        return "unknown sizes"
    m = job.model
    ranks = job.hardware.world_size
    return f"N={m.N} K={m.K} B={m.B} {m.dtype} on {ranks} rank{'s' * (ranks > 1)}"


def _log_to(path: Path, say: Callable[[str], None] | None, redirect: bool) -> None:
    """Log to `path`; with `redirect` all that is printed goes there too, native crashes included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if redirect:
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(file, 1)
        os.dup2(file, 2)
        faulthandler.enable(file=file)
    handlers: list[logging.Handler] = [logging.FileHandler(path)]
    if say is not None:
        handlers.append(_Relay(say))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = handlers


class _Relay(logging.Handler):
    """Passes messages, without time and level, to whoever shows progress."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())
