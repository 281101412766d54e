"""The options that all launchers have: keys under `hydra.launcher`. Each launcher's file adds its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

# An application's own values for these keys, whichever launcher is chosen: hydra/needs/job.yaml of its configuration.
_DEFAULTS = ("_self_", {"optional /hydra/needs@_here_": "job"})


@dataclass
class LauncherConf:
    """A launcher's options; `kind` is its name in LAUNCHERS.

    What a job needs may be an interpolation, which every job resolves with its own configuration:
    `hydra.launcher.gpus=${trainer.devices}`.
    """

    defaults: list[Any] = field(default_factory=lambda: list(_DEFAULTS))
    _target_: str = "hydra_plugins.blockshock.Launcher"
    kind: str = MISSING
    application: str = "sweeps.applications.application.HydraApplication"  # a class that describes its jobs
    # what one job needs
    ranks: int = 1  # processes of a job: on SLURM one task each; on this machine the job starts them itself
    gpus: int = 0  # GPUs of a job
    cpus_per_rank: int | None = None  # cores per rank
    memory_gb: float | None = None  # memory per host
    timeout_s: float | None = None  # a job that runs longer ends as `timeout`
    # how jobs are run
    skip_unsupported: bool = False  # record jobs that can't run as `unsupported`; else the sweep is rejected
    failure_policy: str = "keep_going"  # keep_going | fail_fast: the first failure ends the sweep
    retries: int = 0  # how often a failed job runs again
    resume: str | None = None  # a sweep's folder: jobs that are `ok` there are kept, the others run there
    reuse_ranks: bool = False  # jobs of one shape share rank processes: faster, less isolated; not on SLURM
    report: bool = True  # write the report when the sweep ends
    dry_run: bool = False  # list jobs, folders, needs and sbatch scripts; start nothing
