"""phase=checkpoint: every method on one step, its memory, its time and its proof in the run folder."""

import json

import pandas as pd
import pytest

from sweeps import load_runs

QUICK = ("hardware=cpu", "phase.timed_iters=2", "phase.warmup_iters=1", "phase=checkpoint")


def run_folder(tmp_path):
    (folder,) = (path.parent for path in tmp_path.rglob("status.json"))
    return folder


@pytest.mark.parametrize(
    ("method", "workload", "options"),
    [
        ("recompute_optimal", "tiny_resnet152", ["method.memory_budget=0.95"]),
        ("recompute_greedy", "tiny_gpt2", ["method.memory_budget=0.85"]),
        ("recompute_optimal", "tiny_llama", ["method.solver=save_matmuls"]),
    ],
)
def test_a_recomputed_step_leaves_its_plan_its_memory_and_its_proof(cli, tmp_path, method, workload, options):
    done = cli(*QUICK, f"method={method}", f"workload={workload}", *options)
    assert done.code == 0, done.err
    folder = run_folder(tmp_path)
    record = load_runs([folder]).iloc[0]
    assert record["status"] == "ok"
    batch_size = record["B"]
    decisions = pd.read_csv(folder / f"ac_decisions_bs{batch_size}.csv")
    assert (decisions["decision"] == "RECOMPUTE").sum() == record["plan.recomputed"] > 0
    before, after = (pd.read_csv(folder / f"memory_{when}.csv")["total_bytes"] for when in ("before", "after"))
    assert before.max() == record["memory.baseline_peak_bytes"]
    assert after.max() == record["plan.predicted_peak_bytes"]
    assert (folder / "memory_against_rank.png").stat().st_size > 1000
    proof = pd.read_csv(folder / "proof.csv")
    assert proof["identical"].all()
    assert record["proof.passed"]
    assert record["proof.identical"]
    assert record["proof.tensors"] == len(proof)
    assert record["plan.planning_s"] >= 0
    if record["plan.solver"] != "save_matmuls":
        assert after.max() <= record["plan.budget_bytes"] < before.max()
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["timings_ms"]["total_step"]["count"] == 2


def test_the_step_as_it_is_and_the_compiler_are_measured_in_the_same_way(cli, tmp_path):
    for method, options in (("keep_all", []), ("torch_memory_budget", ["method.memory_budget=0.5"])):
        done = cli(*QUICK, f"method={method}", "workload=tiny_llama", "experiment.name=peers", *options)
        assert done.code == 0, done.err
    runs = load_runs([tmp_path / "outputs"]).set_index("method")
    assert set(runs.index) == {"keep_all", "torch_memory_budget"}
    assert (runs["status"] == "ok").all()
    assert runs.loc["torch_memory_budget", "proof.tensors"] > 0


def test_per_block_checkpointing_is_found_to_update_batch_norm_twice(cli, tmp_path):
    done = cli(*QUICK, "method=torch_checkpoint", "workload=tiny_resnet152")
    assert done.code == 0, done.err  # a peer: recorded, not required
    folder = run_folder(tmp_path)
    record = load_runs([folder]).iloc[0]
    assert record["status"] == "ok"
    assert not record["proof.passed"]
    proof = pd.read_csv(folder / "proof.csv")
    failing = proof[~proof["passed"]]
    assert set(failing["kind"]) == {"BUFFER"}
    assert failing["name"].str.contains("running_mean|running_var|num_batches_tracked").all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["method.memory_budget=-1"], "method.memory_budget=-1"),
        (["method.memory_budget=0"], "must be positive"),
        (["method.memory_budget=24 parsecs"], "cannot be read"),
        (["method.memory_budget=1.5"], "a number of bytes, and whole"),
        (["method=recompute_greedy", "method.solver=magic"], "method.solver"),
        (["method=torch_memory_budget", "method.memory_budget=1.5"], "between 0 and 1"),
        (["method=torch_memory_budget", "method.backend=tvm"], "method.backend"),
        (["method=block_shock"], "phase=checkpoint"),
        (["phase.timing=cuda_events"], "phase.timing"),
        (["phase.timed_iters=0"], "must be at least 1"),
    ],
)
def test_what_means_nothing_is_refused_before_any_run(cli, tmp_path, arguments, expected):
    done = cli(*QUICK, *arguments)
    assert (done.code, expected in done.err) == (2, True), done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("status.json"))


def test_a_budget_below_the_floor_is_unsupported_with_the_reason(cli, tmp_path):
    cli(*QUICK, "method=recompute_optimal", "workload=tiny_gpt2", "method.memory_budget=0.01")
    status = json.loads((run_folder(tmp_path) / "status.json").read_text())
    assert status["status"] == "unsupported", status
    assert "below the minimum of" in status["reason"]
    assert "use at least 0." in status["reason"]


def test_the_phase_runs_with_its_own_defaults_on_a_cpu(cli, tmp_path):
    done = cli(*QUICK)
    assert done.code == 0, done.err
    record = load_runs([run_folder(tmp_path)]).iloc[0]
    assert record["plan.recomputed"] > 0
    assert record["plan.predicted_peak_bytes"] <= record["plan.budget_bytes"]
    assert record["proof.passed"]
