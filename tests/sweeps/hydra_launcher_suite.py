"""Hydra's own tests of launchers, on ours: Hydra runs the same ones on its submitit, joblib and ray launchers."""

import pytest
from hydra import version
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)


@pytest.fixture(autouse=True)
def hydras_own_defaults():
    """The suite is written for applications that ask for no version; importing ours has asked for one."""
    before = version.VersionBase.instance().getbase()
    version.setbase(str(version.__compat_version__))
    yield
    version.VersionBase.instance().setbase(before)


def test_hydra_finds_the_launcher():
    assert "Launcher" in [found.__name__ for found in Plugins.instance().discover(Launcher)]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", [])])
class TestLocal(LauncherTestSuite):
    """Sweeps in this process; jobs in their own."""


@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", ["hydra.sweeper.max_batch_size=2"])])
class TestLocalInBatches(BatchedSweeperTestSuite):
    """A sweeper that launches two jobs at a time."""


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=local"])], ids=["local"])
class TestLocalIntegration(IntegrationTestSuite):
    """Applications in files of their own, started from a command line."""
