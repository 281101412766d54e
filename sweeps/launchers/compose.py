"""From lists of overrides to jobs: each composed with its own configuration and checked, before anything starts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from blockshock.cli.main import JobFailed, check
from blockshock.config import check_place
from blockshock.config import plain as plain_config
from blockshock.errors import REFUSED, ConfigError
from blockshock.run_folder.folder import RunFolder
from blockshock.run_folder.naming import job_label


@dataclass
class PlannedJob:
    """One job of a sweep: what it is, what it needs, and how often it has been tried."""

    number: int
    overrides: list[str]
    config: DictConfig  # composed, with its `hydra` node
    plain: dict[str, Any]  # resolved, as the run folder keeps it
    refusal: str | None  # why it can't run
    tries: int = 0

    @property
    def name(self) -> str:
        return str(self.config.hydra.sweep.subdir)

    @property
    def sweep(self) -> Path:
        return Path(self.config.hydra.sweep.dir)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.sweep / self.name)

    @property
    def ranks(self) -> int:
        return int(self.plain["hardware"]["world_size"])

    @property
    def gpus(self) -> int:
        """One a rank; none on a CPU."""
        return self.ranks if self.plain["hardware"]["device"] == "cuda" else 0

    @property
    def timeout_s(self) -> float:
        return float(self.plain["hardware"]["timeout_s"])

    def status(self) -> dict[str, Any] | None:
        """The folder's status.json, None where there is none."""
        return self.folder.status() if (self.folder.path / "status.json").exists() else None

    def returned(self) -> JobReturn:
        """What Hydra's sweepers are given: the job's value, or the exception that says how it failed."""
        task = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        done = JobReturn(overrides=filter_overrides(self.overrides), cfg=task, working_dir=str(Path.cwd()))
        done.hydra_cfg = OmegaConf.create({"hydra": self.config.hydra})
        done.task_name = self.config.hydra.job.name
        found = self.status()
        if found and found["status"] in ("ok", "oom", "unsupported"):  # out of memory is an answer too
            done.status, done.return_value = JobStatus.COMPLETED, found.get("value")
        else:
            how = f"{found['status']}: {found['reason']}" if found else "not started"
            done.status, done.return_value = JobStatus.FAILED, JobFailed(f"{how} ({self.folder.path})")
        return done


def compose(
    hydra_context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    elsewhere: bool = False,
) -> list[PlannedJob]:
    """Every job with its own configuration, numbered from `first`. `elsewhere`: they run on other machines.

    A job that can't run says so in its `refusal`. Raises ConfigError for one that has no folder to say it in.
    """
    return [
        _compose(hydra_context, config, list(overrides), first + i, elsewhere)
        for i, overrides in enumerate(job_overrides)
    ]


def _compose(
    hydra_context: HydraContext, sweep: DictConfig, overrides: list[str], number: int, elsewhere: bool
) -> PlannedJob:
    config = hydra_context.config_loader.load_sweep_config(sweep, overrides)
    with open_dict(config):
        config.hydra.job.num = number
        config.hydra.job.id = f"{number:04d}"
    check_place(config.experiment)
    refusal = None
    try:
        plain = check(config, elsewhere).config
    except ConfigError as error:
        refusal = str(error)
        plain = plain_config(config)
    with open_dict(config):
        config.hydra.job.id = job_label(plain)
    return PlannedJob(number, overrides, config, plain, refusal)


def refuse_impossible(jobs: Sequence[PlannedJob]) -> None:
    """Exit with every reason if a job can't run."""
    reasons = Counter(job.refusal for job in jobs if job.refusal)
    if not reasons:
        return
    for reason, count in reasons.items():
        print(f"blockshock: {reason}" + (f" ({count} jobs)" if count > 1 else ""), file=sys.stderr)
    hint = "take them out, or record and skip them with hydra.launcher.skip_unsupported=true"
    print(
        f"blockshock: {reasons.total()} of {len(jobs)} jobs can't run, none was started; {hint}",
        file=sys.stderr,
    )
    sys.exit(REFUSED)
