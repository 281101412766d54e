"""Where Hydra looks for launchers: it finds plugins in a package of this name only. The code is in sweeps/."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from sweeps.launcher import OneByOne


class LocalLauncher(OneByOne):
    """Hydra insists that a launcher's `_target_` starts with `hydra_plugins.`."""


@dataclass
class LocalLauncherConf:
    _target_: str = "hydra_plugins.blockshock_launchers.LocalLauncher"
    skip_unsupported: bool = (
        False  # record jobs that can't run as `unsupported` and go on, instead of refusing the sweep
    )
    reuse_ranks: bool = (
        False  # jobs with as many ranks share rank processes: saves seconds a job on GPUs, isolates less
    )
    report: bool = True  # write tables, plots and report.html when the sweep ends


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="block-shock")
