"""From lists of overrides to jobs: each composed with its own configuration and checked, before anything starts."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import version
from hydra._internal import config_loader_impl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, filter_overrides
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from blockshock.errors import REFUSED, ConfigError, JobFailed, at_least
from blockshock.run_folder.folder import RunFolder
from sweeps.applications.task_folder import TaskFolder

if TYPE_CHECKING:
    from sweeps.applications.application import Application


SAID = 100  # jobs composed between two lines that say how far it is: some ten seconds


@dataclass(frozen=True)
class Needs:
    """What one job asks of a machine: the keys of that name under its own `hydra.launcher`."""

    ranks: int
    gpus: int  # of all ranks together
    cpus_per_rank: int | None
    memory_gb: float | None  # of a host
    timeout_s: float | None

    @staticmethod
    def of(config: DictConfig) -> Needs:
        launcher = config.hydra.launcher
        found = Needs(**{name: launcher[name] for name in Needs.__dataclass_fields__})
        at_least("hydra.launcher.ranks", found.ranks, 1)
        at_least("hydra.launcher.gpus", found.gpus, 0)
        if found.cpus_per_rank is not None:
            at_least("hydra.launcher.cpus_per_rank", found.cpus_per_rank, 1)
        for name in ("memory_gb", "timeout_s"):
            value = getattr(found, name)
            if value is not None and not value > 0:
                raise ConfigError(f"hydra.launcher.{name}", value, "must be positive")
        return found


@dataclass
class PlannedJob:
    """One job of a sweep: what it is, what it needs, and how often it has been tried."""

    number: int
    overrides: list[str]
    config: DictConfig  # composed, with its `hydra` node
    settled: dict[str, Any]  # its configuration, resolved, without `hydra`
    refusal: str | None  # why it can't run
    needs: Needs
    application: Application
    tries: int = 0

    @cached_property
    def name(self) -> str:
        return str(self.config.hydra.sweep.subdir)

    @cached_property
    def sweep(self) -> Path:
        return Path(self.config.hydra.sweep.dir)

    @property
    def environment(self) -> dict[str, str]:
        """Its hydra.job.env_set as it is written: what it interpolates may be known only where the job runs."""
        env_set = self.config.hydra.job.env_set
        written: Any = OmegaConf.to_container(env_set, resolve=False)
        ours = f" of job {self.number}"
        return {key: f"{value}{ours * OmegaConf.is_interpolation(env_set, key)}" for key, value in written.items()}

    @property
    def folder(self) -> RunFolder:
        return self.application.folder(self.sweep / self.name)

    def is_done(self) -> bool:
        """Whether its folder holds its own result, whole: of this configuration, not of one that was there before."""
        return self.folder.is_done(self.settled)

    def is_kept(self) -> bool:
        """Whether it need not run again."""
        resumes = self.config.hydra.launcher.resume is not None
        return (resumes or self.application.keeps) and self.is_done()

    def status(self) -> dict[str, Any] | None:
        """The folder's status.json, None where there is none."""
        return self.folder.status() if (self.folder.path / "status.json").exists() else None

    def returned(self) -> JobReturn:
        """What Hydra's sweepers are given: the job's value, or the exception that says how it failed."""
        task = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        done = JobReturn(overrides=filter_overrides(self.overrides), cfg=task, working_dir=self._working_dir())
        done.hydra_cfg = OmegaConf.create({"hydra": self.config.hydra})
        done.task_name = JobRuntime.instance().get("name")
        found = self.status()
        if found and found["status"] in self.application.answers:
            folder = self.folder
            done.status = JobStatus.COMPLETED
            done.return_value = folder.value() if isinstance(folder, TaskFolder) else found.get("value")
        else:
            how = f"{found['status']}: {found['reason']}" if found else "not started"
            done.status, done.return_value = JobStatus.FAILED, JobFailed(f"{how} ({self.folder.path})")
        return done

    def _working_dir(self) -> str:
        """The folder that was the job's current one: Hydra changes to the job's where it is told to, or of old."""
        chdir = self.config.hydra.job.chdir
        if chdir is None:
            chdir = not version.base_at_least("1.2")
        return str(self.folder.path if chdir else Path.cwd())


def compose(
    hydra_context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    application: Application,
    elsewhere: bool = False,
) -> list[PlannedJob]:
    """Every job with its own configuration, numbered from `first`. `elsewhere`: they run on other machines.

    A job that can't run says so in its `refusal`. Raises ConfigError for one that has no folder to say it in.
    """
    before = HydraConfig.instance().cfg
    jobs = []
    try:
        with _shared_work(hydra_context.config_loader):
            for i, overrides in enumerate(job_overrides):
                # once the first was not rejected
                if len(job_overrides) > SAID and i and (i == 1 or i % SAID == 0):
                    print(f"composing and checking the jobs: {i} of {len(job_overrides)}", file=sys.stderr)
                jobs.append(_compose(hydra_context, config, list(overrides), first + i, application, elsewhere))
    finally:
        HydraConfig.instance().cfg = before
    return jobs


@contextmanager
def _shared_work(loader: Any) -> Iterator[None]:
    """Meanwhile `loader` reads a file once for all jobs, and merges the files of the same choices once."""
    repository, merge, list_defaults = (
        loader.repository,
        loader._compose_config_from_defaults_list,
        config_loader_impl.create_defaults_list,
    )
    merged = _MergedOnce(merge, list_defaults)
    loader.repository = _ReadOnce(repository)
    loader._compose_config_from_defaults_list = merged.config
    config_loader_impl.create_defaults_list = merged.defaults_list
    try:
        yield
    finally:
        loader.repository = repository
        del loader._compose_config_from_defaults_list  # the method is there again
        config_loader_impl.create_defaults_list = list_defaults


class _MergedOnce:
    """The configuration that Hydra merges from files, before a job's own values: the same for all jobs that choose the
    same options of groups. Hydra makes the list of the files, and merges them, anew for each."""

    def __init__(self, merge: Any, list_defaults: Any) -> None:
        self._merge, self._list_defaults = merge, list_defaults
        self._lists: dict[tuple[Any, ...], DefaultsList] = {}
        self._configs: dict[int, DictConfig] = {}  # by the id of a list's `defaults`, which live as long

    def defaults_list(self, repo: Any, config_name: Any, overrides_list: Any, **options: Any) -> DefaultsList:
        """In place of Hydra's create_defaults_list."""
        values = Overrides(repo, overrides_list).config_overrides
        choices = [override.input_line for override in overrides_list if not any(override is one for one in values)]
        sources = [str(source) for source in repo.get_sources()]  # hydra.searchpath is a value
        key = (config_name, *sorted(options.items()), *choices, *sources)
        if key not in self._lists:
            self._lists[key] = self._list_defaults(repo, config_name, overrides_list, **options)
        found = self._lists[key]
        return DefaultsList(found.defaults, found.defaults_tree, values, found.overrides)

    def config(self, defaults: Any, repo: Any) -> DictConfig:
        """In place of Hydra's _compose_config_from_defaults_list."""
        if id(defaults) not in self._configs:
            self._configs[id(defaults)] = self._merge(defaults=defaults, repo=repo)
        return copy.deepcopy(self._configs[id(defaults)])


class _ReadOnce(CachingConfigRepository):
    """Hydra's cache of configuration files, for all jobs of a sweep: Hydra itself reads them anew for each."""

    def __init__(self, delegate: Any, caches: dict[str, dict[str, Any]] | None = None) -> None:
        self.delegate = delegate  # all jobs' in common, until one has a search path of its own
        self._caches = {} if caches is None else caches
        self.cache = self._caches.setdefault("", {})

    def __deepcopy__(self, memo: object) -> _ReadOnce:
        """What each composition makes of it."""
        return _ReadOnce(self.delegate, self._caches)

    def load_config(self, config_path: str) -> Any:
        """A copy: a composition may take parts of it into the job's own configuration."""
        return copy.deepcopy(super().load_config(config_path))

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        self.delegate = copy.deepcopy(self.delegate)
        super().initialize_sources(config_search_path)
        self.cache = self._caches.setdefault(str(config_search_path), {})


def _compose(
    hydra_context: HydraContext,
    sweep: DictConfig,
    overrides: list[str],
    number: int,
    application: Application,
    elsewhere: bool,
) -> PlannedJob:
    config = hydra_context.config_loader.load_sweep_config(sweep, overrides)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.job.num = number
        config.hydra.job.id = f"{number:04d}"
        if config.hydra.launcher.resume is not None:
            config.hydra.sweep.dir = config.hydra.launcher.resume
    # For ${hydra:job.num} in a job's own keys. `set_config` would do it with a copy of all that is Hydra's.
    OmegaConf.set_readonly(config.hydra, True)
    HydraConfig.instance().cfg = config
    settled, refusal = application.settle(config, elsewhere)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.job.id = application.job_id(settled, number)
    needs = Needs(1, 0, None, None, None) if refusal else Needs.of(config)
    return PlannedJob(number, overrides, config, settled, refusal, needs, application)


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
