"""What every command does first: it says its version, and notices packages of the user's that hide ours."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import blockshock
from tests.import_graph import ROOT

COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MAIN = "from blockshock.cli.main import main; main()"


def run(code: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`code` as a console script runs: without the working directory on Python's path."""
    command = [sys.executable, "-P", "-c", code, *arguments]
    environment = {**os.environ, "HYDRA_FULL_ERROR": "0", **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_our_version_and_torchs(command, monkeypatch, capsys):
    module, function = COMMANDS[command].split(":")
    monkeypatch.setattr(sys, "argv", [command, "--version"])
    with pytest.raises(SystemExit) as stop:
        getattr(importlib.import_module(module), function)()
    assert stop.value.code == 0
    release = torch.__version__.split("+")[0]
    assert capsys.readouterr().out.startswith(f"block-shock {blockshock.__version__} (torch {release}")


def test_the_version_is_printed_without_importing_torch(tmp_path):
    at_exit = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    done = run(f"{at_exit}; {MAIN}", "--version", cwd=tmp_path)
    assert done.stdout.splitlines()[1:] == ["False"]


def test_nothing_is_searched_for_cycles_at_the_end(tmp_path):
    at_exit = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0))"
    done = run(f"{at_exit}; {MAIN}", "modle.N=64", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "True\n")


@pytest.mark.parametrize("hiding", ["sweeps.py", "profiler/__init__.py", "checkpointing/__init__.py"])
def test_a_users_module_that_hides_ours_is_named_before_any_work(hiding, tmp_path):
    file = tmp_path / hiding
    file.parent.mkdir(exist_ok=True)
    file.touch()
    done = run(MAIN, "-m", "hardware=cpu", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    name = hiding.removesuffix(".py").split("/")[0]
    expected = f"blockshock: {file} hides the package '{name}' of block-shock: rename it or take it off PYTHONPATH\n"
    assert (done.returncode, done.stderr) == (2, expected)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_ranks_and_jobs_do_not_import_from_the_working_directory(tmp_path):
    """They start with `python -c` and `python -m`, which would find what lies there before our packages."""
    for name in ("blockshock", "sweeps", "profiler", "checkpointing"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not ours')")
    job = ("hardware=cpu", "phase=phase0_correctness", "model.N=32", "model.B=4", "hydra.launcher.report=false")
    done = run(MAIN, "-m", *job, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path.parent / "cache"))
    assert done.returncode == 0, done.stderr


def test_a_command_ends_without_a_word_of_the_libraries_that_it_loaded() -> None:
    """Triton's counts what is left of its objects."""
    code = "from blockshock.cli.startup import end_at_once; end_at_once(); import torch._dynamo, triton._C.libtriton"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
