"""On four and eight ranks every method of layers and every mask that so many can share; on four, every phase of layers,
which asks no method for the number of its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps import load_runs

pytestmark = pytest.mark.slow

DENSE = "dense_tp_row,dense_tp_column,dtensor_row,dtensor_column"
SPLIT = "masked_split_dense,block_shock"
MASKS = "complement_1100_0011,complement_1001_0110,checkerboard,random_2of4,magnitude_2of4"
QUICK = ["hardware=cpu", "model.N=192", "model.K=192", "model.B=8", "hydra.launcher.reuse_ranks=true"]
ONCE = ["phase.blocks=1", "phase.warmup_iters=1", "phase.timed_iters=1"]
SWEEPS = {
    "checked": ["phase=phase0_correctness", f"method={DENSE},{SPLIT}"],
    "timed": ["phase=phase1_forward,phase2_backward_input,phase3_train_step", f"method={DENSE},{SPLIT}", *ONCE],
    "drift": ["phase=phasex_drift", f"method={DENSE},{SPLIT}", "phase.steps=3"],
    "masks": ["phase=phase0_correctness", f"method={SPLIT}", f"mask={MASKS}"],
    "windows": ["phase=phase3_train_step", f"method=block_shock,{DENSE}", "mask=window_4of6", *ONCE],
}


@pytest.mark.parametrize(
    ("sweep", "ranks"),
    [("timed", 4), ("drift", 4), ("masks", 4), *((name, 8) for name in ("checked", "masks", "windows"))],
)
def test_every_method_mask_and_phase_runs(cli: Any, tmp_path: Path, sweep: str, ranks: int) -> None:
    name = f"experiment.name={sweep}"
    done = cli("-m", *SWEEPS[sweep], *QUICK, f"hardware.world_size={ranks}", name, "hydra.launcher.report=false")
    assert done.code == 0, done.err
    runs = load_runs([tmp_path / "outputs"])
    assert set(runs.status) == {"ok"}
    assert set(runs.world_size) == {ranks}
