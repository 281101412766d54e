"""workload=architecture: a step of any architecture, its record under its name, and what is rejected beforehand."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

STEP = ("phase=checkpoint", "hardware=cpu", "model.dtype=fp32", "phase.timed_iters=1", "phase.warmup_iters=1")
OURS = ("method=recompute_compiled", "method.execution=eager", "workload=architecture", "workload.batch_size=4")
T5 = "workload.options={num_layers: 2, d_model: 16, d_kv: 8, d_ff: 64, num_heads: 2, vocab_size: 64}"


def test_a_step_is_planned_and_compared_with_the_unplanned_one(cli, tmp_path):
    given = ("method.memory_budget=0.95", "workload.seq_len=16", "workload.model=transformers/t5", T5)
    done = cli(*STEP, *OURS, *given, "experiment.name=any")
    assert done.code == 0, done.err
    done = cli("-m", *STEP, *OURS, *given, "experiment.name=swept", "hydra.launcher.report=false")
    assert done.code == 0, done.err
    found = sorted(tmp_path.rglob("metrics.jsonl"))
    assert any(path.parent.name.startswith("checkpoint_recompute_compiled_transformers-t5_B4-S16_") for path in found)
    for path in found:
        record = json.loads(path.read_text())
        assert record["workload"] == "transformers/t5"
        assert record["plan"]["recomputed"] > 0
        assert record["proof"]["identical"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["workload.model=t5"], "workload.model=t5: write transformers/<model type> or timm/<model name>"),
        (
            ["workload.model=transformers/t6"],
            "workload.model=transformers/t6: transformers has no such model; did you mean 't5'?",
        ),
        (
            ["workload.model=transformers/encodec"],
            "workload.model=transformers/encodec: can't be built: encodec has no head for language modelling or images",
        ),
        (
            ["workload.model=transformers/bert", "workload.options={layers: 2}"],
            "workload.options={'layers': 2}: can't be built: the configuration of bert has no 'layers'",
        ),
        (
            ["workload.model=transformers/bert", "workload.options={hidden_size: 63}"],
            "workload.options={'hidden_size': 63}: can't be built: The hidden size (63) is not a multiple of",
        ),
        (["workload.dropout=0.1"], "workload.dropout=0.1: is a key of the architecture's own; use workload.options"),
        (["hardware.world_size=2"], "hardware.world_size=2: a model's step runs on one rank"),
        (
            ["method@workload.layers_by=dense_tp_row", "hardware.world_size=2"],
            "workload.model=transformers/t5: has no layers that a method could build",
        ),
    ],
)
def test_what_cannot_run_is_one_line_before_anything_starts(cli, tmp_path, given, said):
    done = cli(*STEP, *OURS, *given)
    assert done.code == 2
    assert done.err.startswith(f"blockshock: {said}")
    assert done.err.count("\n") == 1
    assert not list(tmp_path.rglob("status.json"))


def test_a_method_of_layers_is_rejected(cli):
    done = cli("phase=phase3_train_step", "method=dense_tp_row", "hardware=cpu", "workload=architecture")
    assert done.code == 2
    assert done.err.startswith("blockshock: workload.model=transformers/t5: has no layers that a method could build")


def test_a_budget_that_is_too_small_ends_with_its_message_alone(tmp_path):
    """Semaphores of libraries (tqdm's) are taken back: the tracker of multiprocessing prints a warning of each."""
    given = (*STEP, *OURS[:2], "workload=tiny_gpt2", "method.memory_budget=0.1")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "blockshock", *given], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Error executing job")]  # Hydra's
    assert [line.partition(":")[2].strip()[:12] for line in lines if line] == ["unsupported:"]
