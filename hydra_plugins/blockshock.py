"""Where Hydra looks for launchers: it finds plugins in a package of this name only. The code is in sweeps/launchers/.

`hydra/launcher=local` and `hydra/launcher=slurm`; the dataclasses are their options.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sweeps.launchers.options import LocalLauncherConf, SlurmLauncherConf


class LocalLauncher(Launcher):
    """Imports the launcher's code only when there is a sweep to launch: single runs start faster."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sweeps.launchers.launch import launch
        from sweeps.launchers.local import LocalRunner
        from sweeps.launchers.runner import Hydra

        hydra = Hydra(self.hydra_context, self.task_function, self.config)
        return launch(LocalRunner, LocalLauncherConf(**self.options), hydra, job_overrides, initial_job_idx)


class SlurmLauncher(LocalLauncher):
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sweeps.launchers.launch import launch
        from sweeps.launchers.runner import Hydra
        from sweeps.launchers.slurm import SlurmRunner

        hydra = Hydra(self.hydra_context, self.task_function, self.config)
        return launch(SlurmRunner, SlurmLauncherConf(**self.options), hydra, job_overrides, initial_job_idx)


for _name, _node in (("local", LocalLauncherConf), ("slurm", SlurmLauncherConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="block-shock")
