"""phase=trace: any method and workload, tables, figures and the record in the run folder."""

import json
from pathlib import Path

import pandas as pd
import pytest

from sweeps import load_runs
from sweeps.report.command import write_report
from sweeps.text import number

FIGURES = {"bottlenecks", "stacks_and_kernels", "layer_runtime", "throughput", "memcpy_and_passes", "step_breakdown"}
STEPS = ("phase.timed_iters=4", "phase.trace_iters=3", "phase.warmup_iters=1")


def folder_of(tmp_path: Path) -> Path:
    (status,) = tmp_path.rglob("status.json")
    return status.parent


def parts_of(folder: Path, rank: str = "") -> pd.DataFrame:
    return pd.read_csv(folder / f"steps{rank}.csv")


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["method=block_shock", "model.N=128", "model.B=32"], {"(model)", "(optimizer)"}),
        (["method=keep_all", "workload=tiny_gpt2", "phase.stacks=sampled"], {"transformer.h.0.attn.c_attn", "lm_head"}),
    ],
)
def test_a_trace_of_a_layer_and_of_a_model(cli, tmp_path, arguments, modules):
    done = cli("phase=trace", *arguments, *STEPS, "hardware=cpu")
    assert done.code == 0, done.err
    folder = folder_of(tmp_path)
    assert {path.stem for path in folder.glob("*.png")} == FIGURES
    table = pd.read_csv(folder / "modules.csv")
    assert modules <= set(table["module"])
    assert {"forward", "backward", "optimizer"} <= set(table["region"])
    assert (table.loc[table["region"] == "backward", "flops_total"].max()) > 0
    steps = parts_of(folder)
    work = steps[["forward_ns", "backward_ns", "optimizer_ns", "other_ns", "exposed_communication_ns", "idle_ns"]]
    assert (work.sum(axis=1) == steps["step_ns"]).all()
    json.loads((folder / "trace.json").read_text())
    record = load_runs([folder]).iloc[0]
    assert record["trace.steps"] == 3
    assert record["trace.attributed"] >= 0.99
    assert record["trace.step_ms"][0] == pytest.approx(steps["step_ns"].median() / 1e6)
    assert (record["timings_ms.traced_step.count"], record["timings_ms.total_step.count"]) == (3, 4)
    expected = record["timings_ms.traced_step.p50_ms"] / record["timings_ms.total_step.p50_ms"] - 1
    assert record["trace.slowdown"] == pytest.approx(expected)
    assert "is attributed to a module" in done.out


def test_two_ranks_each_write_their_own_and_see_their_communication(cli, tmp_path):
    size = ("model.N=128", "model.B=32", "hardware.world_size=2")
    done = cli("phase=trace", "method=dense_tp_row", *size, *STEPS, "hardware=cpu")
    assert done.code == 0, done.err
    folder = folder_of(tmp_path)
    for rank in (".rank0", ".rank1"):
        steps = parts_of(folder, rank)
        assert (steps["communication_ns"] > 0).all()
        assert (
            steps["exposed_communication_ns"] + steps["overlapped_communication_ns"] == steps["communication_ns"]
        ).all()
        kernels = pd.read_csv(folder / f"kernels{rank}.csv")
        reduced = kernels[kernels["communication"] & (kernels["name"] == "c10d::allreduce_") & (kernels["step"] >= 0)]
        assert len(reduced) == 3  # one all-reduce a step, in the layer's forward
        assert set(zip(reduced["module"], reduced["region"], strict=True)) == {("(model)", "forward")}
        assert (folder / f"trace{rank}.json").exists()
    assert not (folder / "steps.csv").exists()
    assert {path.stem for path in folder.glob("*.png")} >= FIGURES - {"memcpy_and_passes"}
    record = load_runs([folder]).iloc[0]
    assert len(record["trace.exposed_communication_ms"]) == 2
    write_report([folder], tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert "Traced training steps" in text
    assert "Nothing has been measured" not in text
    slowest = max(record["trace.step_ms"])
    assert f"| {number(slowest)} |" in (tmp_path / "report" / "tables" / "traces.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["workload=tiny_gpt2"], "set workload.dropout=0"),
        (["method=keep_all"], "method=keep_all is for a model's training step; use workload=resnet152"),
        (["phase.backend=nsight"], "phase.backend=nsight: allowed: kineto, cupti"),
        (["phase.backend=cupti"], "CUPTI records NVIDIA GPUs; on a CPU use kineto"),
        (["phase.stacks=all"], "phase.stacks=all: allowed: auto, sampled, traced, none"),
        (["phase.timed_iters=0"], "must be at least 1"),
        (["phase.top_n=0"], "must be at least 1"),
        (["method=keep_all", "workload=tiny_gpt2", "hardware.world_size=2"], "runs on one rank"),
    ],
)
def test_what_cannot_be_traced_is_refused(cli, tmp_path, arguments, expected):
    done = cli("phase=trace", *arguments, "hardware=cpu")
    assert (done.code, expected in done.err) == (2, True), done.err
    assert not list(tmp_path.rglob("status.json"))
