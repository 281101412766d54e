"""`hydra.launcher.dry_run=true`: every job with its folder, what it needs and whether it would run; nothing starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.text import clock, counted, shown

if TYPE_CHECKING:
    from sweeps.launchers.runner import Runner
    from sweeps.launchers.sweep.compose import PlannedJob


def dry_run(runner: Runner, jobs: Sequence[PlannedJob]) -> str:
    """The listing, ready to print."""
    lines = [_line(job) for job in jobs]
    to_run = [job for job in jobs if not job.refusal and not job.is_kept()]
    count = (
        f"{counted(len(to_run), 'job')} of {len(jobs)} to run" if len(to_run) < len(jobs) else counted(len(jobs), "job")
    )
    return "\n".join([*lines, f"dry run: {count}, none started", *([runner.plan(to_run)] if to_run else [])])


def _line(job: PlannedJob) -> str:
    state = "can't run: " + job.refusal if job.refusal else "ok already, kept" if job.is_kept() else _needs(job)
    return f"{shown(job.sweep / job.name)}  [{' '.join(job.overrides)}]  {state}"


def _needs(job: PlannedJob) -> str:
    needs = job.needs
    parts = [counted(needs.ranks, "rank"), counted(needs.gpus, "GPU")]
    if needs.cpus_per_rank is not None:
        parts.append(f"{counted(needs.cpus_per_rank, 'core')} per rank")
    if needs.memory_gb is not None:
        parts.append(f"{needs.memory_gb:g} GiB per host")
    limited = needs.timeout_s is not None and math.isfinite(needs.timeout_s)
    parts.append(f"at most {clock(needs.timeout_s)}" if limited and needs.timeout_s else "no time limit")
    return ", ".join(parts)
