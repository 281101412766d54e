"""What tests of sweeps share: blockshock as a user starts it, in a process of its own, and a method that misbehaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
needs_slurm = pytest.mark.skipif(
    not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True, timeout=20).returncode != 0,
    reason="no SLURM answers here; get one with: make slurm-up (as root, Debian or Ubuntu)",
)
QUICK = ("-m", "hardware=cpu", "phase=phase0_correctness", "method=dense_single", "hydra.launcher.report=false")


NO_SLURM = "no SLURM answers here; get one with: make slurm-up (as root, Debian or Ubuntu)"


@cache
def slurm_answers() -> bool:
    return bool(shutil.which("srun")) and subprocess.run(["sinfo"], capture_output=True, timeout=20).returncode == 0


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "XDG_CACHE_HOME": str(folder / "cache")}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "blockshock", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True)


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    process = start(folder, *arguments)
    _, err = process.communicate(timeout=240)
    return process.returncode, err


def statuses(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.rglob("status.json")}


def counts(folder: Path) -> Counter:
    return Counter(status["status"] for status in statuses(folder).values())


def wait_until(true: Callable[[], object], seconds: float = 200, seen: Callable[[], object] | None = None) -> None:
    """`seen`: what a failure shows of where things stand."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, ("waited too long", seen and seen())
        time.sleep(0.02)


def write_method(folder: Path, forward: str, base: str = "dense_single.DenseSingleLinear") -> list[str]:
    """A layer like `base` with `forward` (lines of Python; x, y, `tries` at hand) before its result; its overrides."""
    (folder / "method_mine.py").write_text(
        "import os, pathlib, resource, signal\n"
        "import torch\n"
        "from dataclasses import dataclass\n"
        "from blockshock.ranks import distributed\n"
        f"from blockshock.methods.{base.replace('.', ' import ')} as Base\n"
        "def tries():\n"
        "    path = pathlib.Path(__file__).with_name('tries')\n"
        "    path.write_text(path.read_text() + 'x' if path.exists() else 'x')\n"
        "    return len(path.read_text())\n"
        "@dataclass\n"
        "class Mine:\n"
        "    name: str\n"
        "    def build(self, problem, weight):\n"
        "        return MineLinear(problem, weight)\n"
        "class MineLinear(Base):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)\n"
        + "".join(f"        {line}\n" for line in forward.splitlines())
        + "        return y\n"
    )
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "conf" / "method" / "mine.yaml").write_text("_target_: method_mine.Mine\nname: mine\n")
    return [f"hydra.searchpath=[file://{folder}/conf]", "method=mine"]
