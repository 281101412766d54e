"""The options that all launchers have: keys under `hydra.launcher`. Each launcher's file adds its own."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class LauncherConf:
    """A launcher's options; `kind` is its name in LAUNCHERS."""

    _target_: str = "hydra_plugins.blockshock.Launcher"
    kind: str = MISSING
    skip_unsupported: bool = False  # record jobs that can't run as `unsupported` and go on; else the sweep is refused
    failure_policy: str = "keep_going"  # or fail_fast: the first failure ends the sweep
    retries: int = 0  # how often a job that failed is run again
    resume: str | None = None  # a sweep's folder: what is `ok` there is kept, the rest is run there
    reuse_ranks: bool = False  # jobs of one shape share rank processes: faster, isolates less; not on SLURM
    report: bool = True  # write tables, plots and report.html when the sweep ends
