"""The benchmark itself, on a CPU: what it measures, refuses, keeps and counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from blockshock.bench import run
from tests.blockshock import collective_tasks

QUICK = ("--n", "64", "--iters", "2", "--rounds", "2")
cpu = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="measures on the GPUs where there are some")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`bench("--parts", "product")`: its status, stdout and stderr. Its folder is tmp_path/bench."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def start(*arguments: str) -> tuple[int, str, str]:
        try:
            status = run.main([*arguments, "--out", str(tmp_path / "bench")])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return start


def records(folder: Path) -> pd.DataFrame:
    return pd.read_json(folder / "bench" / "metrics.jsonl", lines=True)


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bench" / "status.json").read_text())


@cpu
def test_one_rank_measures_every_mask_beside_the_half_k_product(bench, tmp_path):
    code, out, _ = bench("--parts", "product,backward", "--batch", "8", *QUICK)
    assert code == 0, out
    rows = records(tmp_path)
    for part, variants in (("product", {"auto"}), ("backward", {"dX", "dW"})):
        found = rows[(rows["part"] == part) & (rows["mask"] != "")]
        assert set(zip(found["mask"], found["variant"], strict=True)) == {(m, v) for m in run.MASKS for v in variants}
        assert "half_k_dense" in set(rows.loc[rows["part"] == part, "method"])
        assert (found["relative_error"] < 1e-5).all()
    assert (rows["p50_us"] > 0).all()
    assert rows["rounds_us"].map(len).eq(2).all()
    assert status(tmp_path)["status"] == "ok"
    assert "The targets are for GPUs" in out


@cpu
def test_two_ranks_compare_whole_layers_with_the_peers(bench, tmp_path):
    code, out, _ = bench("--parts", "forward,train", "--ranks", "2", "--batch", "8", *QUICK)
    assert code == 0, out
    rows = records(tmp_path)
    peers = {"dtensor_row", "dtensor_column", "dense_tp_row", "dense_tp_column"}
    ours = {"block_shock/1100", "block_shock/checkerboard", "block_shock/random"}
    for part in ("forward", "train"):  # what needs a GPU is left out, with a line
        names = {f"{row.method}/{row.variant}".rstrip("/") for row in rows[rows["part"] == part].itertuples()}
        assert names == peers | ours
    assert "without torch_semi_structured: " in out
    train = rows[rows["part"] == "train"].set_index("variant")
    # weight, gradient and two moments of half of W, and AdamW's step counter
    assert train.loc["1100", "state_bytes"] == 4 * 4 * 64 * 64 // 2 + 4
    assert train.loc["1100", "dense_state_bytes"] == 4 * 4 * 64 * 64
    assert set(rows["world_size"]) == {2}


@cpu
def test_a_run_that_fails_keeps_its_cells_and_the_next_measures_only_the_others(bench, tmp_path):
    arguments = ("--parts", "product", "--masks", "checkerboard", *QUICK)
    code, _, err = bench(*arguments, "--batch", f"8,{1 << 50}")  # more memory than can be addressed
    assert code == 1
    assert "blockshock.bench: " in err
    assert status(tmp_path)["status"] in ("failed", "oom")
    kept = records(tmp_path)
    assert set(kept["B"]) == {8}
    code, out, _ = bench(*arguments, "--batch", "8,16")
    assert (code, status(tmp_path)["status"]) == (0, "ok")
    assert "1/1 product N=64 B=16" in out
    both = records(tmp_path)
    assert both["B"].tolist() == [8] * len(kept) + [16] * len(kept)
    assert both["p50_us"].head(len(kept)).tolist() == kept["p50_us"].tolist()
    assert bench(*arguments, "--batch", "8,16")[0] == 0
    assert len(records(tmp_path)) == len(both)


@cpu
def test_an_interrupted_run_leaves_whole_cells(bench, tmp_path, monkeypatch):
    arguments = ("--parts", "product", "--masks", "checkerboard", "--batch", "8,16,24", *QUICK)

    class Interrupting(run.Console):
        def print(self, *objects: Any, **options: Any) -> None:
            if str(objects[0]).startswith("2/3"):
                raise KeyboardInterrupt
            super().print(*objects, **options)

    with monkeypatch.context() as patched:
        patched.setattr(run, "Console", Interrupting)
        assert bench(*arguments)[0] == 1
    assert status(tmp_path)["status"] == "failed"
    assert status(tmp_path)["reason"] == "interrupted; cells that had finished are kept"
    kept = records(tmp_path)  # the first, and what the rank did before it was ended
    assert 8 in set(kept["B"])
    assert kept.groupby("B").size().nunique() == 1
    assert bench(*arguments)[0] == 0
    assert records(tmp_path).groupby("B").size().to_dict() == dict.fromkeys((8, 16, 24), int((kept["B"] == 8).sum()))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--parts", "produkt"), "did you mean 'product'?"),
        (("--parts", "product", "--ranks", "2"), "one rank's work"),
        (("--parts", "forward"), "needs an even number"),
        (("--n", "12x"), "--n=12x: must be positive whole numbers"),
        (("--n", "6"), "--n=6: must be multiples of 4"),
        (("--batch", "0"), "--batch=0: must be positive"),
        (("--masks", "chequerboard"), "did you mean 'checkerboard'?"),
        (("--iters", "0"), "--iters=0: must be at least 1"),
        (("--rounds", "-1"), "--rounds=-1: must be at least 1"),
        (("--dtype", "int3"), "invalid choice: 'int3'"),
        pytest.param(("--parts", "law", "--ranks", "2"), "--parts=law: is about cuSPARSELt's products", marks=cpu),
        pytest.param(("--parts", "all_reduce", "--ranks", "2"), "needs GPUs", marks=cpu),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_arguments_are_refused_before_anything_is_written(bench, tmp_path, arguments, told):
    code, out, err = bench(*arguments)
    assert (code, out) == (2, "")
    assert told in err.splitlines()[-1]
    assert len(err.splitlines()) == 1 or err.startswith("usage:")
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize("there", ["sweep.json", "a_job/status.json"])
def test_a_folder_of_other_runs_is_refused_and_left_as_it_was(bench, tmp_path, there):
    path = tmp_path / "bench" / there
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    code, _, err = bench("--parts", "product", *QUICK)
    assert (code, "holds other runs; choose a folder of its own" in err) == (2, True)
    assert [p for p in (tmp_path / "bench").rglob("*") if p.is_file()] == [path]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_is_held_against_float64_before_it_is_timed(pools, world_size, dtype):
    right, wrong = pools(world_size).run(collective_tasks.checked_sums, dtype).value
    assert 0 < right["relative_error"] < torch.finfo(dtype).eps
    if world_size == 2:  # one addition: rounded once
        assert right["relative_error"] == pytest.approx(right["dense_relative_error"])
    assert "gloo: the sum's relative error is" in wrong
