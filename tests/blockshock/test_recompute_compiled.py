"""method=recompute_compiled: planned as it compiles, recorded with its plan, and the step that torch.compile makes."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from blockshock.jobs.correctness import CheckFailed
from blockshock.methods.recompute_compiled import RecomputeCompiled
from blockshock.methods.shared.eager_step import EagerStep
from blockshock.phases.checkpoint import _require
from profiler.models import build
from sweeps import load_runs

QUICK = ("hardware=cpu", "phase=checkpoint", "phase.timed_iters=1", "phase.warmup_iters=1")
OURS = (*QUICK, "method=recompute_compiled", "method.execution=eager")


def run_folder(tmp_path):
    (folder,) = (path.parent for path in tmp_path.rglob("status.json"))
    return folder


@pytest.mark.parametrize(
    ("workload", "solver", "budget"), [("tiny_gpt2", "optimal", 0.85), ("tiny_resnet152", "greedy", 0.95)]
)
def test_a_planned_step_leaves_its_plan_and_is_the_compiled_step_to_the_bit(cli, tmp_path, workload, solver, budget):
    done = cli(*OURS, f"workload={workload}", f"method.solver={solver}", f"method.memory_budget={budget}")
    assert done.code == 0, done.err
    folder = run_folder(tmp_path)
    record = load_runs([folder]).iloc[0]
    assert record["plan.predicted_peak_bytes"] <= record["plan.budget_bytes"]
    assert record["plan.budget_bytes"] == int(budget * record["memory.baseline_peak_bytes"])
    assert record["plan.predicted_added_s"] > 0
    decisions = pd.read_csv(folder / "plan.csv")["decision"]
    assert (decisions == "recompute").sum() == record["plan.recomputed"] > 0
    assert record["proof.identical"]
    assert record["proof.gradient_error"] == record["proof.buffer_error"] == 0
    assert record["step.variant"] == f"{solver}, eager"


@pytest.mark.slow
def test_a_loss_in_chunks_trains_alike_and_is_named_in_the_record(cli, tmp_path):
    done = cli(*OURS, "workload=tiny_gpt2", "method.memory_budget=1.0", "method.chunked_loss=4")
    assert done.code == 0, done.err
    record = load_runs([run_folder(tmp_path)]).iloc[0]
    assert record["step.variant"] == "optimal, eager, loss in 4 chunks"
    assert record["proof.trains_alike"]
    assert not record["proof.identical"]  # the sums are others


def test_a_budget_below_the_floor_is_unsupported_and_names_the_lowest(cli, tmp_path):
    cli(*OURS, "workload=tiny_gpt2", "method.memory_budget=0.01")
    status = json.loads((run_folder(tmp_path) / "status.json").read_text())
    assert status["status"] == "unsupported", status
    assert status["reason"].startswith("method.memory_budget=0.01: that is ")
    assert "below the minimum of" in status["reason"]
    assert "use at least" in status["reason"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("method.memory_budget=0", "must be positive"),
        ("method.memory_budget=8 apples", "cannot be read"),
        ("method.solver=save_matmuls", "method.solver=save_matmuls: allowed: optimal, greedy"),
        ("method.execution=aot_eager", "allowed: inductor, eager"),
        ("method.chunked_loss=0", "method.chunked_loss=0: must be a positive whole number, auto, plain, or null"),
        ("method.chunked_loss=all", "method.chunked_loss=all: must be a positive whole number, auto, plain, or null"),
        ("method.chunked_loss=2.5", "method.chunked_loss=2.5: Value '2.5' of type 'float' is incompatible"),
        (
            "method.mode=reduce-overhead",
            "CUDA graphs need a GPU and method.execution=inductor: use method.mode=default",
        ),
        ("method.mode=max-autotune", "allowed: default, reduce-overhead"),
    ],
)
def test_what_means_nothing_is_refused_before_any_run(cli, tmp_path, argument, expected):
    done = cli(*OURS, argument)
    assert (done.code, expected in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not list(tmp_path.rglob("status.json"))


@pytest.mark.parametrize("execution", ["inductor", "eager"])
def test_a_step_that_draws_other_masks_fails_whatever_runs_it(execution):
    task = build("tiny_gpt2")
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    masks = torch.Generator().manual_seed(1)

    def redrawn(*batch):
        torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=masks)))
        return task.loss_fn(task.model, *batch)

    method = RecomputeCompiled(name="recompute_compiled", execution=execution)
    proof = EagerStep(task, optimizer, redrawn).verify(task.batch)
    with pytest.raises(CheckFailed, match="differs from the unchanged one"):
        _require(proof, method)
    _require(EagerStep(task, optimizer, lambda *batch: task.loss_fn(task.model, *batch)).verify(task.batch), method)


def test_other_rounding_passes_where_kernels_are_fused_and_fails_where_they_are_not():
    task = build("tiny_vit", dropout=0.0)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)

    def unfused(*batch):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return task.loss_fn(task.model, *batch)

    proof = EagerStep(task, optimizer, unfused).verify(task.batch)
    _require(proof, RecomputeCompiled(name="recompute_compiled", execution="inductor"))
    with pytest.raises(CheckFailed):
        _require(proof, RecomputeCompiled(name="recompute_compiled", execution="eager"))
