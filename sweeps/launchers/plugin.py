"""What Hydra meets: the launcher of every kind in LAUNCHERS, and the sweeper `grid`. hydra_plugins/ registers both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write

from blockshock.cli.sweep_keys import as_typed
from blockshock.errors import ConfigError, at_least
from sweeps.launchers.launchers import LAUNCHERS

KEY = "hydra.sweeper.repeats"


class LaunchRefused(CompactHydraException):
    """A sweep that can't run as it was asked for. Every Hydra application shows it in one line."""


class JobLauncher(Launcher):
    """Imports the launcher's code only when there is a sweep to launch: single runs start faster."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.kind, self.options = LAUNCHERS[kind], options
        self.shares_equal_jobs = True  # as an optimiser may ask for in one batch: run once, two results

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        resumed = config.hydra.launcher.resume
        if resumed is not None:  # now, before a sweeper of Hydra's makes the folder of a new sweep
            with read_write(config.hydra):
                config.hydra.sweep.dir = resumed

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sweeps.launchers.launch import launch
        from sweeps.launchers.runner import Hydra

        hydra = Hydra(self.hydra_context, self.task_function, self.config)
        try:
            options = self.kind.options(**self.options)
            return launch(self.kind.runner, options, hydra, job_overrides, initial_job_idx, self.shares_equal_jobs)
        except ConfigError as error:
            raise LaunchRefused(str(error)) from error


@dataclass
class GridSweeperConf(BasicSweeperConf):
    """`cases` are what one product can't be: jobs with keys of their own, such as a method's options. Each case, by a
    name that a command line can change or delete it by, has values of keys as `params` has, and makes its own product:
    `+hydra.sweeper.cases={a: {method: dense_single}, b: {method: block_shock, method.kernel: "gather,triton"}}`."""

    _target_: str = "hydra_plugins.blockshock.Sweeper"
    cases: dict[str, Any] = field(default_factory=dict)  # name -> key -> values
    repeats: int = 1  # processes that measure each job: the whole sweep, and then the whole sweep again


class GridSweeper(BasicSweeper):
    """Every combination of the values, as in Hydra's, for each of the `cases`. Launchers of others get Hydra's whole
    procedure."""

    def __init__(self, cases: Mapping[str, Mapping[str, Any]] | None = None, repeats: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.cases, self.repeats = cases or {}, repeats

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context is not None
        arguments = as_typed(arguments)
        self.parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        _refuse_repeated(self.parser.parse_overrides(arguments))
        if not isinstance(self.launcher, JobLauncher):
            return super().sweep(arguments)
        overrides = self.parser.parse_overrides([*self._parse_config(), *arguments])
        self.launcher.shares_equal_jobs = False  # the same value twice in a list is a slip
        returns, first = [], 0
        for batch in self.split_arguments(overrides, self.max_batch_size):
            results = self.launcher.launch(batch, initial_job_idx=first)
            for result in results:
                _ = result.return_value  # raises what the job has raised
            returns.append(results)
            first += len(batch)
        return returns

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Batches of jobs. `overrides`: those of `params`, and the command line's, which have the last word."""
        params, given = overrides[: len(self.params)], overrides[len(self.params) :]
        jobs = []
        for name, case in (self.cases or {"": {}}).items():
            if not isinstance(case, Mapping):
                raise ConfigError(
                    f"hydra.sweeper.cases.{name}", case, "must be keys with their values: {method: keep_all}"
                )
            values = {key: "null" if value is None else value for key, value in case.items()}
            own = self.parser.parse_overrides([f"{key}={value}" for key, value in values.items()])
            _refuse_nothing([*params, *own, *given])
            jobs += super().split_arguments([*params, *own, *given], None)[0]
        if self.repeats != 1:
            jobs = self._repeated(jobs)
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))

    def _repeated(self, jobs: list[list[str]]) -> list[list[str]]:
        """All jobs, and then all again: what drifts over the sweep harms every configuration alike."""
        at_least(KEY, self.repeats, 1)
        assert self.config is not None
        if "repeat" not in self.config.get("experiment", {}):
            raise ConfigError(KEY, self.repeats, "needs an application whose configuration has experiment.repeat")
        if any(override.startswith("experiment.repeat=") for job in jobs for override in job):
            raise ConfigError(KEY, self.repeats, "sets experiment.repeat; leave that out, or the repeats")
        if self.config.hydra.launcher.get("reuse_ranks"):
            problem = "needs a fresh process for each; set hydra.launcher.reuse_ranks=false"
            raise ConfigError(KEY, self.repeats, problem)
        if not any(jobs) and self.config.hydra.launcher.get("resume"):
            return jobs  # those of the sweep's own list, repeats included
        again = [[f"experiment.repeat={n}"] if n else [] for n in range(self.repeats)]
        return [[*job, *number] for number in again for job in jobs]


def _refuse_repeated(overrides: Sequence[Override]) -> None:
    """A key that is swept and then given again, whose values would silently be lost. Of plain values the last counts,
    as everywhere in Hydra: a sweep may follow one."""
    by_key: dict[str, list[Override]] = {}
    for override in overrides:
        by_key.setdefault(override.get_key_element().lstrip("+~"), []).append(override)
    for key, given in by_key.items():
        if len(given) > 1 and any(override.is_sweep_override() for override in given[:-1]):
            values = ",".join(str(override.input_line).partition("=")[2] for override in given)
            raise ConfigError(key, values, f"is given {len(given)} times; give all its values at once: {key}={values}")


def _refuse_nothing(overrides: Sequence[Override]) -> None:
    """A range or a glob without any value makes a sweep without any job."""
    for override in overrides:
        if override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
            key, _, value = str(override.input_line).partition("=")
            raise ConfigError(key, value, "is empty: no jobs to run")
