"""The examples that docs/extending.md links to run as they stand."""

import json
import shutil
import sys
from pathlib import Path

import torch

from blockshock.kernels import KERNELS, make
from tests.blockshock.test_packing import half_mask

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples" / "extending"


def test_the_pages_method_mask_workload_and_phase_run_in_one_job(cli, tmp_path, monkeypatch):
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = cli(
        "hardware=cpu", f"hydra.searchpath=[file://{tmp_path}/conf]", "model.N=32", "model.B=4",
        "method=twice", "mask=outer", "workload=signs", "phase=cold",
    )  # fmt: skip
    assert done.code == 0, done.err
    (metrics,) = (tmp_path / "outputs").rglob("metrics.jsonl")
    record = json.loads(metrics.read_text())
    assert [record[key] for key in ("method", "mask", "workload", "phase")] == ["twice", "outer", "signs", "cold"]
    assert set(record["timings_ms"]) == {"build", "forward"}
    refused = cli("hardware=cpu", f"hydra.searchpath=[file://{tmp_path}/conf]", "method=twice", "hardware.world_size=2")
    assert (refused.code, "twice runs on one rank" in refused.err) == (2, True)
    assert sys.path[0] == str(tmp_path)


def test_the_pages_kernel_multiplies_by_the_masked_matrix(monkeypatch):
    names: dict = {}
    exec((EXAMPLES / "by_rows.py").read_text(), names)
    monkeypatch.setitem(KERNELS, "by_rows", names["ByRows"])
    generator = torch.Generator().manual_seed(0)
    mask = half_mask("random", 12, 16, generator)
    weight, x = (torch.randn(rows, 16, generator=generator, dtype=torch.float64) for rows in (12, 5))
    kernel = make("by_rows", mask, None, 5, torch.float64)
    values = kernel.adopt(kernel.layout.pack(weight))
    torch.testing.assert_close(kernel.matmul(x, values), x @ (weight * mask).t(), rtol=0, atol=1e-12)


def test_the_pages_all_reduce_is_a_reduction_under_its_name():
    names: dict = {}
    exec((EXAMPLES / "reduce_broadcast.py").read_text(), names)
    made = names["ReduceThenBroadcast"].build(None, 8, None)
    assert (made.name, made.backend, made.symmetric) == ("reduce_broadcast", "nccl", False)
