"""The scripts of docs/examples run as they are: they train, within the budget, and print the plan."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_graph import ROOT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "docs" / "examples"
ALONE = [sys.executable]
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STARTED_BY = {"plain": ALONE, "trainer": ALONE, "ddp": TWO_RANKS, "lora": ALONE}


def test_every_example_of_the_page_is_run_here() -> None:
    page = (ROOT / "docs" / "training-loop.md").read_text()
    assert set(re.findall(r"\]\(examples/(\w+)\.py\)", page)) == STARTED_BY.keys()


@pytest.mark.parametrize("name", STARTED_BY)
def test_the_example_trains_within_its_budget_and_prints_the_plan(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*STARTED_BY[name], str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(found) for found in re.findall(r"\bloss'?:? '?([0-9.]+)", done.stdout)]
    assert losses[-1] < 0.9 * losses[0]
    budgets, predicted = (
        [float(found) for found in re.findall(rf"^{word} +([0-9.]+) MiB", done.stdout, re.MULTILINE)]
        for word in ("budget", "predicted")
    )
    assert len(budgets) == len(predicted) == (2 if name == "plain" else 1)
    assert all(peak <= budget for peak, budget in zip(predicted, budgets, strict=True))
    assert "recomputed_MiB" in done.stdout
