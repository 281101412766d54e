"""On four and eight ranks every method of layers and every mask that so many can share; on four, every phase of layers,
which asks no method for the number of its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blockshock.measure import calibration
from blockshock.measure.calibration import Rates
from sweeps import load_runs

pytestmark = pytest.mark.slow

DENSE = "dense_tp_row,dense_tp_column,dtensor_row,dtensor_column"
SPLIT = "masked_split_dense,block_shock"
MASKS = "complement_1100_0011,complement_1001_0110,checkerboard,random_2of4,magnitude_2of4"
QUICK = ["hardware=cpu", "model.N=192", "model.K=192", "model.B=8", "hydra.launcher.reuse_ranks=true"]
TIMED = "phase1_forward,phase2_backward_input,phase3_train_step"
ONCE = {"phase.blocks": 1, "phase.warmup_iters": 1, "phase.timed_iters": 1}
MASKED = {"phase": "phase0_correctness", "method": SPLIT, "mask": MASKS}
CASES: dict[int, dict[str, dict[str, object]]] = {
    4: {
        "timed": {"phase": TIMED, "method": f"{DENSE},{SPLIT}", **ONCE},
        "drift": {"phase": "phasex_drift", "method": f"{DENSE},{SPLIT}", "phase.steps": 3},
        "masks": MASKED,
    },
    8: {
        "checked": {"phase": "phase0_correctness", "method": DENSE},
        "masks": MASKED,
        "windows": {"phase": "phase3_train_step", "method": f"block_shock,{DENSE}", "mask": "window_4of6", **ONCE},
    },
}
JOBS = {4: 18 + 6 + 10, 8: 4 + 10 + 5}


@pytest.mark.parametrize("ranks", [4, 8])
def test_every_method_mask_and_phase_runs(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """Four ranks measure what the machine can do; for eight, which take as long for each two, it is known."""
    if ranks == 8:
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))  # the jobs'
            patch.setattr(calibration, "measure", lambda dtype, device: Rates(10.0, 0.1, 1.0))
            patch.setattr(calibration.distributed, "world_size", lambda: ranks)
            calibration.rates(torch.float32, torch.device("cpu"), "gloo")
    cases = {
        name: ", ".join(
            f"{key}: '{value}'" if isinstance(value, str) else f"{key}: {value}" for key, value in case.items()
        )
        for name, case in CASES[ranks].items()
    }
    given = ", ".join(f"{name}: {{{case}}}" for name, case in cases.items())
    options = [f"hardware.world_size={ranks}", "hydra.launcher.report=false"]
    done = cli("-m", f"+hydra.sweeper.cases={{{given}}}", *QUICK, *options)
    assert done.code == 0, done.err
    runs = load_runs([tmp_path / "outputs"])
    assert set(runs.status) == {"ok"}
    assert set(runs.world_size) == {ranks}
    assert runs.drop_duplicates(["phase", "method", "mask"]).shape[0] == JOBS[ranks]
