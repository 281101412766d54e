"""The scripts of docs/examples run as they are: they train, within the budget, and print the plan."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpointing.loops.loop import in_processes
from tests.import_graph import ROOT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "docs" / "examples"
NAMES = ("plain", "trainer", "ddp", "lora")


def test_every_example_of_the_page_is_run_here() -> None:
    page = (ROOT / "docs" / "training-loop.md").read_text()
    assert set(re.findall(r"\]\(examples/(\w+)\.py\)", page)) == {*NAMES}


def on_two_ranks(script: Path, folder: Path) -> str:
    """What it prints, started by torchrun."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_a_process(_: int, script: Path, folder: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    os.chdir(folder)
    with (folder / "printed").open("w") as file, contextlib.redirect_stdout(file):
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("name", NAMES)
def test_the_example_trains_within_its_budget_and_prints_the_plan(
    name: str, tmp_path: Path, forking_server: None
) -> None:
    script = EXAMPLES / f"{name}.py"
    if name == "ddp":
        printed = on_two_ranks(script, tmp_path)
    else:
        in_processes(in_a_process, (script, tmp_path))
        printed = (tmp_path / "printed").read_text()
    losses = [float(found) for found in re.findall(r"\bloss'?:? '?([0-9.]+)", printed)]
    assert losses[-1] < 0.9 * losses[0]
    budgets, predicted = (
        [float(found) for found in re.findall(rf"^{word} +([0-9.]+) MiB", printed, re.MULTILINE)]
        for word in ("budget", "predicted")
    )
    assert len(budgets) == len(predicted) == (2 if name == "plain" else 1)
    assert all(peak <= budget for peak, budget in zip(predicted, budgets, strict=True))
    assert "recomputed_MiB" in printed
