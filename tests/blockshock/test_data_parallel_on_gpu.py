"""workload.data_parallel on two GPUs: the allocator's peak of each rank, and NCCL's kernels apart from the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEP = (
    "phase=checkpoint",
    "phase.timing=cuda_events",
    "phase.warmup_iters=8",
    "workload=gpt2",
    "workload.batch_size=4",
)


@pytest.mark.gpus
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_each_ranks_peak_is_within_its_budget_and_no_collective_is_repeated(
    cli: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    plan = ("method=recompute_compiled", "method.memory_budget=0.7", "hydra.run.dir=run")
    done = cli("hardware=local_gpu", "hardware.world_size=2", *STEP, *plan, f"workload.data_parallel={kind}")
    assert done.code == 0, done.err
    [record] = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["plan"]["recomputed"] > 0
    assert record["ranks"]["alike"]
    assert record["ranks"]["plans_alike"]
    assert record["proof"]["trains_alike"]
    assert len(record["each_rank"]) == 2
    for own in record["each_rank"]:
        assert 0 < own["peak_bytes"] <= own["budget_bytes"]
        assert 0 < own["collectives"] == own["reference_collectives"]
        assert own["kernels_ms"] > 0
        assert own["collectives_ms"] > 0
    assert record["device_ms"] == max(own["kernels_ms"] for own in record["each_rank"])
