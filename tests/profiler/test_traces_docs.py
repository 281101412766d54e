"""The example of docs/traces.md, as a reader would copy it: alone, and on two ranks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ["bottlenecks", "stacks_and_kernels", "layer_runtime", "throughput", "memcpy_and_passes", "step_breakdown"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_documented_example_runs(ranks: int, tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "examples" / "trace_resnet.py", tmp_path)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *launcher, "trace_resnet.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "of the device time is attributed to a module" in done.stdout
    out = tmp_path / "trace_out"
    assert {path.stem for path in out.glob("*.png")} == set(FIGURES)
    suffixes = [""] if ranks == 1 else [".rank0", ".rank1"]
    for suffix in suffixes:
        steps = pd.read_csv(out / f"steps{suffix}.csv")
        assert len(steps) == 5
        assert (steps["communication_ns"] > 0).all() == (ranks == 2)  # DDP's all-reduce over gloo
        assert (steps["attributed_ns"] >= 0.99 * steps["kernel_ns"]).all()
        modules = pd.read_csv(out / f"modules{suffix}.csv")
        assert {"stem", "blocks.3.conv2", "head", "(model)", "(optimizer)"} <= set(modules["module"])
        kernels = pd.read_csv(out / f"kernels{suffix}.csv")
        names = set(kernels.loc[kernels["communication"], "name"])
        assert names >= {"c10d::allreduce_", "gloo:all_reduce"} if ranks == 2 else not names
