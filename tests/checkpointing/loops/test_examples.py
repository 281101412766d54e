"""The scripts of docs/examples run as they are: they train, within the budget, and print the plan."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import socket
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


def in_a_process(rank: int, script: Path, folder: Path, ranks: int, port: int) -> None:
    """In one of so many `ranks`, which torchrun would tell as much."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    os.chdir(folder)
    with (folder / f"printed by {rank}").open("w") as file, contextlib.redirect_stdout(file):
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("name", NAMES)
def test_the_example_trains_within_its_budget_and_prints_the_plan(
    name: str, tmp_path: Path, forking_server: None
) -> None:
    script = EXAMPLES / f"{name}.py"
    ranks = 2 if name == "ddp" else 1
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    in_processes(in_a_process, (script, tmp_path, ranks, port), ranks)
    printed = "".join((tmp_path / f"printed by {rank}").read_text() for rank in range(ranks))
    losses = [float(found) for found in re.findall(r"\bloss'?:? '?([0-9.]+)", printed)]
    assert losses[-1] < 0.9 * losses[0]
    budgets, predicted = (
        [float(found) for found in re.findall(rf"^{word} +([0-9.]+) MiB", printed, re.MULTILINE)]
        for word in ("budget", "predicted")
    )
    assert len(budgets) == len(predicted) == (2 if name == "plain" else 1)
    assert all(peak <= budget for peak, budget in zip(predicted, budgets, strict=True))
    assert "recomputed_MiB" in printed
