"""Every command explains itself: what it does, an example, its options and exit statuses; and says its version."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tomllib

import pytest

from blockshock import __version__
from tests.import_graph import ROOT

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
OURS = sorted(name for name in SCRIPTS if name != "blockshock")  # Hydra prints that one's, from conf/hydra/help


def parser_of(name: str) -> argparse.ArgumentParser:
    return importlib.import_module(SCRIPTS[name].partition(":")[0])._parser()


@pytest.mark.parametrize("name", OURS)
def test_help_says_what_a_command_does_with_an_example_and_its_exit_statuses(name: str) -> None:
    parser = parser_of(name)
    said = parser.format_help()
    purpose, example, *_, last = str(parser.description).strip().split("\n\n")
    assert parser.prog == name
    assert purpose[0].isupper()
    assert purpose.endswith(".")
    assert purpose.split()[0].endswith("s"), "a verb: Shows, Checks, Writes, Tries"
    for line in example.splitlines():
        assert line.split()[0] == name
        parser.parse_args(line.partition("#")[0].split()[1:])
    assert "Exit status: 0" in last
    assert max(len(line) for line in said.splitlines()) <= 120


@pytest.mark.parametrize("name", OURS)
def test_every_option_is_explained(name: str) -> None:
    without = [action.dest for action in parser_of(name)._actions if not action.help]
    assert without == []


@pytest.mark.parametrize("name", OURS)
def test_every_command_says_its_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser_of(name).parse_args(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"block-shock {__version__} (torch ")


@pytest.mark.slow
def test_the_main_command_does_so_too() -> None:
    for flag, said in (("--version", f"block-shock {__version__} (torch "), ("--help", "Exit status: 0")):
        done = subprocess.run([sys.executable, "-m", "blockshock", flag], capture_output=True, text=True, check=True)
        assert said in done.stdout
