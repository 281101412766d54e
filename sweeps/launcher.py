"""What happens to the jobs of a sweep on this machine: all are composed and checked first, then run one by one.

Hydra finds the class through hydra_plugins/. Every job runs in rank processes of its own, so a crash or an
out-of-memory harms no other job; finished jobs of a sweep with the same name are not measured again.
"""

from __future__ import annotations

import fcntl
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


class OneByOne(Launcher):
    """Runs jobs in the order of the sweep, with a progress bar, and writes the report at the end."""

    def __init__(self, skip_unsupported: bool = False, reuse_ranks: bool = False, report: bool = True) -> None:
        self.skip_unsupported, self.reuse_ranks, self.report = skip_unsupported, reuse_ranks, report

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one job for each list of overrides. Refuses them all if one can't run and none may be skipped."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        from blockshock.job import reusing_ranks
        from blockshock.record import RunFolder

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [self._compose(list(o), initial_job_idx + i) for i, o in enumerate(job_overrides)]
        refused = [reason for _, reason in jobs if reason]
        if refused and not self.skip_unsupported:
            self._refuse(refused, len(jobs))
        sweeps = sorted({Path(config.hydra.sweep.dir) for config, _ in jobs})
        locks = [_lock(sweep) for sweep in sweeps]
        returns: list[JobReturn] = []
        kept = 0
        ended: Counter[str] = Counter()
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
        ranks = reusing_ranks() if self.reuse_ranks else nullcontext()
        with Progress(*columns, refresh_per_second=4) as progress, ranks:
            bar = progress.add_task("", total=len(jobs))
            for config, reason in jobs:
                progress.update(bar, description=_title(config))
                folder = _folder(config)
                kept += _is_done(folder)
                returns.append(self._run(config, reason))
                status = RunFolder(folder).status()
                ended[status["status"]] += 1
                if status["status"] not in ("ok", "unsupported"):
                    progress.console.print(
                        f"{status['status']}: {config.hydra.job.id}: {status['reason']}", style="red"
                    )
                progress.advance(bar)
        for lock in locks:
            lock.close()
        print(", ".join(f"{count} {status}" for status, count in ended.items()), file=sys.stderr)
        if kept:
            print(f"{kept} were measured before and kept; another experiment.name measures anew", file=sys.stderr)
        if self.report and ended["ok"]:
            from sweeps.report import write_report

            for sweep in sweeps:
                print(f"report: {write_report([sweep], sweep / 'report')}")
        return returns

    def _compose(self, overrides: list[str], number: int) -> tuple[DictConfig, str | None]:
        """The job's own configuration, and why it can't run."""
        from blockshock.config import job_label
        from blockshock.config import plain as plain_config
        from blockshock.errors import ConfigError
        from blockshock.main import check

        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.job.id = f"{number:04d}"
        reason = None
        try:
            plain = check(config).config
        except ConfigError as error:
            reason = str(error)
            plain = plain_config(config)
        with open_dict(config):
            config.hydra.job.id = job_label(plain)
        return config, reason

    def _refuse(self, reasons: list[str], jobs: int) -> None:
        from blockshock.errors import REFUSED

        for reason, count in Counter(reasons).items():
            print(f"blockshock: {reason}" + (f" ({count} jobs)" if count > 1 else ""), file=sys.stderr)
        hint = "take them out, or record and skip them with hydra.launcher.skip_unsupported=true"
        print(f"blockshock: {len(reasons)} of {jobs} jobs can't run, none was started; {hint}", file=sys.stderr)
        sys.exit(REFUSED)

    def _run(self, config: DictConfig, reason: str | None) -> JobReturn:
        from blockshock.config import plain as plain_config
        from blockshock.record import RunFolder
        from blockshock.resolvers import run_id

        folder = RunFolder(_folder(config))
        done = JobReturn(cfg=config, status=JobStatus.COMPLETED)
        done.return_value = None
        if reason:
            folder.refuse(plain_config(config), reason, run_id())
            return done
        if _is_done(folder.path):
            done.return_value = folder.status().get("value")
            return done
        return run_job(
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.hydra_context,
        )


def _folder(config: DictConfig) -> Path:
    return Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir


def _is_done(folder: Path) -> bool:
    """Whether this very job has been measured: a folder's name holds the hash of its configuration."""
    from blockshock.record import RunFolder

    return (folder / "status.json").exists() and RunFolder(folder).status()["status"] == "ok"


def _lock(sweep: Path) -> IO[str]:
    """The sweep's folder to ourselves, until the file is closed or this process ends, however it ends."""
    from blockshock.errors import REFUSED

    sweep.mkdir(parents=True, exist_ok=True)
    lock = open(sweep / ".lock", "w")  # noqa: SIM115 - held while the sweep runs
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(
            f"blockshock: {sweep}: another sweep is writing here; wait for it or set experiment.name", file=sys.stderr
        )
        sys.exit(REFUSED)
    return lock


def _title(config: DictConfig) -> str:
    model, workload = config.model, config.workload
    if "batch_size" in workload:
        return f"{config.phase.name} {config.method.name} {workload.name} B={workload.batch_size}"
    return f"{config.phase.name} {config.method.name} N={model.N} B={model.B} P={config.hardware.world_size}"
