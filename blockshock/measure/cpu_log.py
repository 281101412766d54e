"""What kept the host's processors busy while something was timed: this job, other processes, other virtual machines.

    log = CpuLog(device)
    ...                               # what is timed
    record["cpu"] = log.summary()     # a collective

A step of many small kernels takes as long as the host needs to launch them, and a busy host needs longer.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch

from blockshock.ranks import distributed

STAT = Path("/proc/stat")
BOOT = Path("/proc/sys/kernel/random/boot_id")  # the same for all processes of a host
DISTURBING = 0.5  # cores

log = logging.getLogger("blockshock")


class CpuLog:
    """The CPU time of this process, and of the whole host, since the log was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start = _now()

    def summary(self) -> dict[str, float | None]:
        """Cores that were busy on average: `own` with the job's ranks, `others` with other processes, `stolen` by the
        hypervisor. Of several hosts the largest. Without /proc/stat the last two stay None. A collective.
        """
        elapsed, *spent = (now - then for now, then in zip(_now(), self._start, strict=True))
        host = zlib.crc32(BOOT.read_bytes()) if BOOT.exists() else 0
        mine = torch.tensor([host, *(s / elapsed for s in spent)], dtype=torch.float64, device=self.device)
        by_host: dict[float, list[list[float]]] = {}
        for rank in distributed.gather_tensors(mine):
            number, *cores = rank.tolist()
            by_host.setdefault(number, []).append(cores)
        own = {number: sum(cores[0] for cores in ranks) for number, ranks in by_host.items()}
        if not STAT.exists():
            return {"own": max(own.values()), "others": None, "stolen": None}
        others = max(max(cores[1] for cores in ranks) - own[number] for number, ranks in by_host.items())
        stolen = max(cores[2] for ranks in by_host.values() for cores in ranks)
        found: dict[str, float | None] = {"own": max(own.values()), "others": max(0.0, others), "stolen": stolen}
        if self.device.type == "cuda" and distributed.rank() == 0:  # a CPU that computes is rarely left alone
            warn(found)
        return found


def warn(found: Mapping[str, float | None]) -> None:
    """Say who may have disturbed a timing."""
    for name, who in (("others", "other processes"), ("stolen", "other virtual machines")):
        used = found[name]
        if used is not None and used > DISTURBING:
            log.warning("%s kept %.1f cores busy during the timing: what the host limits may be slower", who, used)


def _now() -> tuple[float, float, float, float]:
    """Seconds: a clock's, of this process on all its cores, of all processes, and stolen."""
    seconds = (time.perf_counter(), time.process_time())
    if not STAT.exists():
        return *seconds, 0.0, 0.0
    # user nice system idle iowait irq softirq steal, in ticks (proc(5))
    user, nice, system, _, _, irq, softirq, stolen = (int(word) for word in STAT.read_text().split(maxsplit=9)[1:9])
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return *seconds, (user + nice + system + irq + softirq) * tick_s, stolen * tick_s
