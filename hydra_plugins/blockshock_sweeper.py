"""Hydra's own sweeper without its rehearsal and its folder: `hydra/sweeper=grid`, the default here.

Hydra's makes the sweep's folder, writes multirun.yaml there and composes every job once to see whether it can be; the
launcher then composes it again. Our launchers compose and check all jobs before they make the folder: the rehearsal
only takes time, 0.1 s a job, and a sweep that is refused leaves nothing behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf  # where other plugins find it too
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from blockshock.errors import ConfigError
from hydra_plugins.blockshock import LocalLauncher


@dataclass
class GridSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.blockshock_sweeper.GridSweeper"


class GridSweeper(BasicSweeper):
    """Every combination of the values, as in Hydra's. Launchers of others get Hydra's whole procedure."""

    def sweep(self, arguments: list[str]) -> Any:
        if not isinstance(self.launcher, LocalLauncher):  # SlurmLauncher is one too
            return super().sweep(arguments)
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        _refuse_nothing(overrides)
        returns, first = [], 0
        for batch in self.split_arguments(overrides, self.max_batch_size):
            results = self.launcher.launch(batch, initial_job_idx=first)
            for result in results:
                _ = result.return_value  # raises what the job has raised
            returns.append(results)
            first += len(batch)
        return returns


def _refuse_nothing(overrides: Sequence[Override]) -> None:
    """A range or a glob without any value makes a sweep without any job."""
    for override in overrides:
        if override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
            key, _, value = str(override.input_line).partition("=")
            raise ConfigError(key, value, "holds no value, so that no job results")


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="block-shock")
