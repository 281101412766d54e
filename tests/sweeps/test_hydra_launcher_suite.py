"""Hydra's own tests of launchers (hydra_launcher_suite.py) pass on ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_graph import ROOT

SUITE = Path(__file__).with_name("hydra_launcher_suite.py")


@pytest.mark.timeout(900)
def test_hydras_own_suites_are_green_on_the_local_launcher():
    """In a process of their own: they replace Hydra's singletons, which our tests of the command line share."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUITE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
