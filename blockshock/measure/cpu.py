"""The host's processors: what they are called, and how many of them this process may keep busy.

A container's CPU quota (cgroup v1 or v2) shows in no count of cores: threads beyond it are stopped for most of every
period, so a job that starts one for each core is slower than one that obeys.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
CPU_INFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def available_cpus() -> int:
    """Whole CPUs that this process may keep busy: those of its affinity mask, or its quota where that is less."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota() -> float | None:
    """CPU seconds a second that this process's cgroup, and every group above it, allow; None without a limit."""
    limits: list[float] = []
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2: one hierarchy, in a folder of its own where both versions are mounted
            for root in (CGROUPS, CGROUPS / "unified"):
                limits += [limit for folder in _upwards(root, group) if (limit := _limit_v2(folder)) is not None]
        elif "cpu" in controllers.split(","):
            for root in (CGROUPS / controllers, CGROUPS / "cpu"):
                limits += [limit for folder in _upwards(root, group) if (limit := _limit_v1(folder)) is not None]
    return min(limits, default=None)


def _upwards(root: Path, group: str) -> list[Path]:
    """The folders of a group and of those above it. In a container only the root may be there, which is the group's."""
    own = root / group.lstrip("/")
    return [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]


def _limit_v2(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")  # `max 100000` or `150000 100000`: microseconds of a period
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _limit_v1(folder: Path) -> float | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None  # -1: no limit


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # no such group, or not shown to this process: it says nothing of a limit
        return []
