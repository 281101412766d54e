"""Where Hydra looks for plugins: it finds them in a package of this name only. The code is in sweeps/launchers/."""

from hydra.core.config_store import ConfigStore

from sweeps.launchers.launchers import LAUNCHERS
from sweeps.launchers.plugin import GridSweeper, GridSweeperConf, JobLauncher


class Launcher(JobLauncher):
    """`hydra/launcher=NAME` for every name in LAUNCHERS; Hydra asks for a class of this module."""


class Sweeper(GridSweeper):
    """`hydra/sweeper=grid`."""


for _name, _kind in LAUNCHERS.items():
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_kind.options, provider="block-shock")
ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="block-shock")
