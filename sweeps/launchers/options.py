"""The options of `hydra/launcher=local` and `hydra/launcher=slurm`, which are their keys under `hydra.launcher`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LauncherConf:
    """What both launchers understand."""

    skip_unsupported: bool = False  # record jobs that can't run as `unsupported` and go on; else the sweep is refused
    failure_policy: str = "keep_going"  # or fail_fast: the first failure ends the sweep
    retries: int = 0  # how often a job that failed is run again
    resume: str | None = None  # a sweep's folder: what is `ok` there is kept, the rest is run there
    reuse_ranks: bool = (
        False  # jobs of one shape share rank processes: saves seconds a job, isolates less; not on SLURM
    )
    report: bool = True  # write tables, plots and report.html when the sweep ends


@dataclass
class LocalLauncherConf(LauncherConf):
    _target_: str = "hydra_plugins.blockshock.LocalLauncher"
    max_parallel: int | None = None  # jobs at once; default: as many as the GPUs allow, one on a CPU
    use_busy_gpus: bool = False  # also those on which another process runs


@dataclass
class SlurmLauncherConf(LauncherConf):
    _target_: str = "hydra_plugins.blockshock.SlurmLauncher"
    wait: bool = True  # show progress until all have ended; false: return once the jobs are in the queue
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    ranks_per_node: int = 8  # at most; on GPU nodes the GPUs of one
    cpus_per_rank: int | None = None
    memory_gb: float | None = None  # of a node
    timeout_min: int | None = None  # of a job; default: hardware.timeout_s and five minutes to start
    array_parallelism: int = 256  # jobs of one array that run at once
    max_requeues: int = 3  # of a job that was preempted or ran out of time; it then starts over
    signal_delay_s: int = 90  # how long before the time limit a job is told
    setup: list[str] = field(default_factory=list)  # shell lines before the job: module load, source activate
    sbatch: dict[str, Any] = field(default_factory=dict)  # further parameters: {mail-type: END, exclude: n7}
    poll_s: float = 5.0  # how often the queue is asked
