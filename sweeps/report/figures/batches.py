"""Memory and time of a profiled model against its batch size.

The tables behind these figures are files of the run folders, and `profiler` reads back what it wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from sweeps.report.page.page import DrawnFigure

SAME = ["workload", "dtype", "device", "config.workload.seq_len", "config.phase.optimizer"]


def draw_batches(runs: pd.DataFrame, out: Path) -> list[DrawnFigure]:
    """For each model with two batch sizes or more: batch_analysis_<model>.csv in `out`, two figures in `out`/figures.

    Raises MissingStatsError, which names the file, if a finished run lacks one; nothing is filled in.
    """
    drawn = []
    for name, folders in profiled(runs).items():
        from profiler.batch_analysis import plot_peak, plot_step_time, read_batches

        table = read_batches(folders)
        data = out / f"batch_analysis_{name}.csv"
        table.to_csv(data, index=False)
        peak = "Each bar is as high as the measured peak and shows what it consists of."
        time = "The plain step, and the sum of its nodes' times: the gap is time in which the device waits."
        for kind, plot, reading in (("peak_memory", plot_peak, peak), ("step_time", plot_step_time, time)):
            figure: Any = plot(table)
            base = out / "figures" / f"batch_{kind}_{name}"
            figure.savefig(base.with_suffix(".svg"), metadata={"Date": None})
            figure.savefig(base.with_suffix(".png"), dpi=150)
            title = f"{name}: {kind.replace('_', ' ')} against batch size"
            drawn.append(DrawnFigure(base.name, title, reading, base.with_suffix(".svg"), data))
    return drawn


def profiled(runs: pd.DataFrame) -> dict[str, dict[int, Path]]:
    """Model -> batch size -> run folder, for finished profiles that differ in batch size only; the latest of each."""
    if "profile.nodes" not in runs:
        return {}
    found = runs[runs["profile.nodes"].notna() & (runs["status"] == "ok")].sort_values("started")
    keys = [key for key in SAME if key in found]
    groups: dict[str, dict[int, Path]] = {}
    for values, rows in found.groupby(keys, dropna=False):
        folders = {int(row["B"]): Path(row["folder"]) for _, row in rows.iterrows()}
        if len(folders) > 1:
            name = str(values[0])
            label = name if name not in groups else "_".join(str(v) for v in values).replace(" ", "-")
            groups[label] = folders
    return groups
