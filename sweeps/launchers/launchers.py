"""The launchers: a new one is a file beside this one and a line in the list.

Every Hydra application of the environment imports this list when it looks for plugins, so a launcher's file imports
what is heavy (torch, submitit) only in the functions that use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sweeps.launchers.local import LocalLauncherConf, LocalRunner
from sweeps.launchers.options import LauncherConf
from sweeps.launchers.slurm import SlurmLauncherConf, SlurmRunner

if TYPE_CHECKING:
    from sweeps.launchers.runner import Runner


class LauncherKind(NamedTuple):
    """`hydra/launcher=NAME`: its keys under `hydra.launcher`, and what runs jobs."""

    options: type[LauncherConf]
    runner: type[Runner]


LAUNCHERS = {
    "local": LauncherKind(LocalLauncherConf, LocalRunner),
    "slurm": LauncherKind(SlurmLauncherConf, SlurmRunner),
}
