"""The benchmark itself, on a CPU: what it measures, refuses, keeps and counts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from blockshock.bench import run
from blockshock.bench.targets import law, ratios, verdicts
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
    assert not (tmp_path / "bench" / "targets.md").exists()


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


def rows(part: str, times: dict[str, dict[tuple[int, int], float]], **given: Any) -> pd.DataFrame:
    """Hand-made records: {contender: {(N, B): µs}}."""
    return pd.DataFrame(
        {
            **{"part": part, "method": name.split("/")[0], "variant": name.partition("/")[2], "world_size": 2},
            **{"N": N, "B": B, "p50_us": time, "copy_gbs": 4000.0, **given},
        }
        for name, of_cells in times.items()
        for (N, B), time in of_cells.items()
    )


def verdict(table: pd.DataFrame, target: str) -> pd.Series:
    return verdicts(table).set_index("target").loc[target]


def test_a_products_mean_is_geometric_and_its_worst_cell_is_named():
    cells = {(64, 16): 10.0, (64, 32): 20.0, (128, 16): 30.0}
    slower = {(64, 16): 10.0, (64, 32): 40.0, (128, 16): 30.0}
    table = rows("product", {"half_k_dense": cells, "checkerboard/auto": slower})
    mean = verdict(table, "product, checkerboard, over half-K dense: geometric mean")
    assert mean["measured"] == pytest.approx(2 ** (1 / 3))
    assert (mean["cells"], mean["met"]) == (3, False)
    worst = verdict(table, "product, checkerboard, over half-K dense: worst cell")
    assert (worst["measured"], worst["worst cell"]) == (2.0, "N=64 B=32: 2.000")
    assert "2.000 | 1.25 | **missed** | 3 | N=64 B=32: 2.000 |" in run._markdown(verdicts(table))  # targets.md
    assert run._shown(verdicts(table)).row_count == 2


def test_random_patterns_are_held_against_the_bytes_that_they_must_read():
    N, B = 4096, 16
    floor_us = (9 / 16 * N * N * 2 + 2 * (B * N + B * N)) / 4e12 * 1e6
    table = rows("product", {"random_2of4/auto": {(N, B): 1.2 * floor_us, (N, 256): 1e9}})
    found = verdict(table, "product, random 2-of-4, B <= 64, over the bytes floor")
    assert found["measured"] == pytest.approx(1.2)
    assert found["met"]
    assert found["cells"] == 1


@pytest.mark.parametrize(("fast", "met"), [(4, True), (3, False)])
def test_a_share_of_cells_is_a_lower_bound(fast, met):
    cells = [(64, B) for B in (1, 2, 3, 4, 5)]
    ours = {cell: 0.9 if i < fast else 1.0 for i, cell in enumerate(cells)}
    table = rows("forward", {"block_shock/1100": ours, "dtensor_row": dict.fromkeys(cells, 1.0)})
    found = verdict(table, "forward over dtensor_row: share of cells <= 0.9")
    assert found["measured"] == pytest.approx(fast / 5)
    assert found["met"] == met
    assert verdict(table, "forward over dtensor_row: worst cell")["met"]


def test_the_peer_must_be_slower_everywhere_and_five_times_at_small_batches():
    ours = {(64, 256): 1.0, (64, 1024): 1.0}
    table = rows("forward", {"block_shock/1100": ours, "torch_semi_structured": {(64, 256): 5.5, (64, 1024): 0.9}})
    assert verdict(table, "torch_semi_structured over ours, B <= 256")["met"]
    everywhere = verdict(table, "torch_semi_structured over ours")
    assert (everywhere["measured"], everywhere["met"]) == (0.9, False)


def test_the_chosen_all_reduce_is_held_against_the_better_of_two():
    table = rows("all_reduce", {"nccl": {(4096, 16): 20.0}, "two_shot": {(4096, 16): 10.0}}, bytes=2**17, chosen=False)
    table["eager_p50_us"] = 30.0
    table.loc[table["method"] == "nccl", "chosen"] = True
    assert verdict(table, "all-reduce chosen over the better of NCCL, two-shot")["measured"] == 2.0
    assert verdict(table, "all-reduce up to 2 MiB over eager NCCL")["measured"] == pytest.approx(2 / 3)
    without = verdicts(table.drop(columns="eager_p50_us"))  # --no-eager
    assert without["target"].tolist() == ["all-reduce chosen over the better of NCCL, two-shot"]


def test_the_law_predicts_the_slower_of_its_two_bounds_and_the_collective():
    times = {"dense": 40.0, "half_k_dense": 20.0, "all_reduce": 10.0, "dense_tp_row": 30.0}
    sparse = {"sparse_half": 25.0, "block_shock": 35.0}  # s = 1.6: 2/s = 1.25
    names = {name: {(64, 16): time} for name, time in (times | sparse).items()}
    found = law(rows("law", names)).iloc[0]
    assert found["predicted"] == pytest.approx((1.25 * 20 + 10) / 30)
    assert found["error"] == pytest.approx(0)
    names["sparse_half"] = {(64, 16): 20.0}  # s = 2: 9/8 bounds
    found = law(rows("law", names)).iloc[0]
    assert found["predicted"] == pytest.approx((9 / 8 * 20 + 10) / 30)
    shared = verdict(rows("law", names), "the law: share of cells within 5%")
    assert shared["measured"] == float(abs(35 / 30 / found["predicted"] - 1) <= 0.05)


def test_where_half_of_a_product_takes_more_than_half_of_its_time_the_parts_still_add_up():
    times = {"dense": 16.0, "half_k_dense": 11.0, "sparse_half": 25.0, "all_reduce": 20.0}
    times |= {"dense_tp_row": 31.0, "block_shock": 45.0}  # nothing but the parts
    table = rows("law", {name: {(64, 16): time} for name, time in times.items()})
    found = law(table).iloc[0]
    assert found["parts_error"] == pytest.approx(0)
    assert found["error"] == pytest.approx(45 / 31 / ((2 * 25 / 16 * 11 + 20) / 31) - 1)
    assert not verdict(table, "the law: share of cells within 5%")["met"]
    assert verdict(table, "the sum of the measured parts: share of cells within 5%")["met"]


def test_records_that_lack_contenders_give_no_verdict_on_them():
    for part, name in (("forward", "dtensor_row"), ("train", "dtensor_row"), ("law", "dense"), ("backward", "x/dX")):
        table = rows(part, {name: {(64, 16): 1.0}}, state_bytes=1, dense_state_bytes=2)
        assert verdicts(table).empty, part


def test_a_cell_measured_twice_counts_with_its_median():
    table = pd.concat([rows("train", {"a": {(64, 16): time}}) for time in (1.0, 5.0, 2.0)])
    assert math.isclose(ratios(table, "train").loc[(2, 64, 16), "a"], 2.0)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_is_held_against_float64_before_it_is_timed(pools, world_size, dtype):
    right, wrong = pools(world_size).run(collective_tasks.checked_sums, dtype).value
    assert 0 < right["relative_error"] < torch.finfo(dtype).eps
    if world_size == 2:  # one addition: rounded once
        assert right["relative_error"] == pytest.approx(right["dense_relative_error"])
    assert "gloo: the sum's relative error is" in wrong
