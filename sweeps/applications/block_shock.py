"""Block-Shock's own jobs, as `hydra.launcher.application` of conf/ names them: checked, recorded, reported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from blockshock import ranks
from blockshock.cli import resolvers
from blockshock.cli.main import check, settled
from blockshock.config import check_place
from blockshock.config import plain as plain_config
from blockshock.errors import ConfigError, JobFailed
from blockshock.run_folder import contents
from blockshock.run_folder.files import printable
from blockshock.run_folder.folder import RunFolder
from blockshock.run_folder.naming import config_hash, job_label
from sweeps.applications.application import Place
from sweeps.text import shown


class BlockShock:
    """A job writes its own run folder; what this class adds is said beside each method."""

    answers: tuple[str, ...] = ("ok", "oom", "unsupported")  # a sweep over batch sizes may end at the memory's limit
    keeps = True
    startup_s = 300.0  # a job watches its own hardware.timeout_s; the launcher takes its process to hang after that

    def settle(self, config: DictConfig, elsewhere: bool) -> tuple[dict[str, Any], str | None]:
        """Every `auto` has its value. Raises ConfigError for a job that has no folder to say that it can't run."""
        check_place(config.experiment)
        try:
            return check(config, elsewhere).config, None
        except ConfigError as error:
            return plain_config(config), str(error)

    def job_id(self, settled: dict[str, Any], number: int) -> str:
        return job_label(settled)

    def folder(self, path: Path) -> RunFolder:
        return RunFolder(path)

    def obstacle(self, folder: RunFolder, settled: dict[str, Any]) -> str | None:
        """Another configuration's run there stays."""
        return contents.obstacle(folder.path, config_hash(settled))

    def forget(self, folder: RunFolder) -> None:
        """A job replaces what is there when it starts."""

    def command(self) -> list[str]:
        return ["blockshock"]

    def report(self, sweeps: Sequence[Path]) -> None:
        """One in each sweep's folder. Where that can't be, a line says so: the sweeper still gets its values."""
        from sweeps.report.command import report_in_short

        for path in sweeps:
            try:
                for line in report_in_short([path], path / "report"):
                    print(printable(line))
            except (OSError, ValueError) as error:
                again = shlex.join(["blockshock-report", shown(path), "--out", "FOLDER"])
                print(f"no report in {shown(path)}: {error}; write it elsewhere with: {again}", file=sys.stderr)

    @contextmanager
    def session(self, run_id: str, reuse_ranks: bool, jobs: Sequence[dict[str, Any]]) -> Iterator[None]:
        """Ranks join those that srun has started, or are forked from a server that imports torch meanwhile."""
        resolvers.use_run_id(ranks.share_run_id(run_id))
        if ranks.launched() is None:
            ranks.start_forking_server(reuse_ranks, {job["phase"]["name"] for job in jobs})
        from blockshock.jobs.job import reusing_ranks

        with reusing_ranks() if reuse_ranks else nullcontext():
            yield

    def run(self, place: Place, task: Callable[[], JobReturn]) -> None:
        """The job has recorded how it ended, unless it ended before it could."""
        with settled(place.settled):
            error = task()._return_value
        if isinstance(error, ConfigError):  # this machine is not what the launcher's was
            place.folder.close(place.settled, "unsupported", str(error), place.run_id)
        elif isinstance(error, Exception) and not isinstance(error, JobFailed):
            from blockshock.ranks.outcome import last_line

            place.folder.close(place.settled, "failed", last_line(error), place.run_id)
            raise error
