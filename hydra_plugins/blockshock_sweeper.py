"""Hydra's own sweeper without its rehearsal: `hydra/sweeper=grid`, the default here.

Hydra's composes every job once to see whether it can be, and leaves it to the launcher to compose it again. Our
launchers compose and check all jobs before the first starts, so that the rehearsal only takes time, 0.1 s a job.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf  # where other plugins find it too
from hydra.core.config_store import ConfigStore

from hydra_plugins.blockshock_launchers import LocalLauncher


@dataclass
class GridSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.blockshock_sweeper.GridSweeper"


class GridSweeper(BasicSweeper):
    """Every combination of the values, as in Hydra's; launchers of others still get their batches rehearsed."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if not isinstance(self.launcher, LocalLauncher):  # SlurmLauncher is one too
            super().validate_batch_is_legal(batch)


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="block-shock")
