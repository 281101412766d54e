"""Measure the memory/time front of a model: PyTorch's ways first, then our plans where they can be compared.

    python -m tests.checkpointing.compiled.measure_front outputs/front workload=gpt2 hydra.launcher.jobs_per_gpu=7

The budgets are the peaks of the baselines that no other baseline dominates, one below the lowest, and some between, ten
in all, and everything kept. What is measured already is not measured again, so it can be interrupted. Report:
`blockshock-report outputs/front`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

from sweeps import load_runs
from sweeps.report.tables.steps.compiled_front import OURS, PLAIN, front
from sweeps.report.tables.steps.recomputation import MIB, recomputed

BUDGETS = 10
BELOW = 0.97  # of the lowest baseline's peak
APART = 1.003  # of the peak before: one budget does for both
FASTER = 0.995  # of the time of what needs less memory: otherwise a baseline is as good as dominated


def budgets_of(points: pd.DataFrame) -> list[int]:
    """MiB, ascending, from the points of one model's baselines; empty where none did what torch.compile does."""
    baselines = points[(points["kind"] != OURS) & points["alike"]].sort_values(["peak_bytes", "step_p50_ms"])
    if baselines.empty:
        return []
    chosen, fastest = [], float("inf")
    for peak, ms in zip(baselines["peak_bytes"] // MIB, baselines["step_p50_ms"], strict=True):
        if ms < FASTER * fastest:
            chosen.append(int(peak))
            fastest = ms
    plain = baselines.loc[baselines["kind"] == PLAIN, "peak_bytes"].max()
    highest = int(max(plain // MIB if plain == plain else 0, chosen[0]))  # everything kept needs no more
    peaks = sorted({peak for peak in chosen if peak < highest} | {highest})
    apart = [peak for previous, peak in zip([0, *peaks], peaks, strict=False) if peak > APART * previous]
    chosen = [int(BELOW * apart[0]), *apart]
    while len(chosen) < BUDGETS:
        wide = max(range(len(chosen) - 1), key=lambda i: chosen[i + 1] / chosen[i])
        between = round((chosen[wide] * chosen[wide + 1]) ** 0.5)
        if between in chosen:
            break
        chosen.insert(wide + 1, between)
    return chosen


def sweep(folder: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "blockshock", "-m", f"hydra.sweep.dir={folder}", *overrides]
    status = subprocess.run(command).returncode
    if status > 1:  # 1: a job failed, and the others are measured
        sys.exit(status)


def main() -> None:
    if len(sys.argv) < 3 or "=" in sys.argv[1]:
        sys.exit(__doc__)
    folder, overrides = Path(sys.argv[1]), sys.argv[2:]
    only_one = ["~hydra.sweeper.cases.ours_in_chunks", 'hydra.sweeper.cases.ours={method.memory_budget: "1"}']
    sweep(folder / "baselines", "+sweep=compiled_front", *only_one, *overrides)
    budgets = budgets_of(front(recomputed(load_runs([folder / "baselines"]))))
    if not budgets:
        sys.exit("no baseline has a peak and a time: a GPU measures them")
    ours = [override for override in overrides if "hydra.sweeper.cases" not in override]
    timing = ["phase.timing=cuda_events", "phase.timed_iters=60", "phase.warmup_iters=5"]
    written = ",".join(f"{budget}MiB" for budget in budgets)
    sweep(
        folder / "ours",
        *("phase=checkpoint", "method=recompute_compiled", f"method.memory_budget={written}", "experiment.name=ours"),
        *("hydra.launcher.skip_unsupported=true", "hydra.launcher.reuse_ranks=true"),
        *(setting for setting in timing if not any(setting.split("=")[0] in override for override in ours)),
        *ours,
    )


if __name__ == "__main__":
    main()
