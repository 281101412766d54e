"""Profiled training steps: a table of them, and for a model at several batch sizes its memory and time against those.

The tables behind the batch analysis are files of the run folders, and `profiler` reads back what it wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from sweeps.page import Picture

MIB = 2**20
COLUMNS = {
    "model": ("workload", 1.0, ""),
    "B": ("B", 1.0, "{:.0f}"),
    "dtype": ("dtype", 1.0, ""),
    "dropout": ("config.workload.dropout", 1.0, "{:g}"),
    "simulated peak, MiB": ("profile.simulated_peak_bytes", MIB, "{:.1f}"),
    "measured peak, MiB": ("profile.measured_peak_bytes", MIB, "{:.1f}"),
    "eager peak, MiB": ("profile.eager.peak_bytes", MIB, "{:.1f}"),
    "Σ nodes, ms": ("profile.node_time_s", 1e-3, "{:.2f}"),
    "CUDA graph, ms": ("profile.cuda_graph.p50_ms", 1.0, "{:.2f}"),
    "idle, ms": ("profile.idle_s", 1e-3, "{:.2f}"),
    "eager step, ms": ("profile.eager.p50_ms", 1.0, "{:.2f}"),
    "traced step, ms": ("timings_ms.total_step.p50_ms", 1.0, "{:.2f}"),
    "trace, s": ("profile.trace_s", 1.0, "{:.1f}"),
    "profile, s": ("profile.profile_s", 1.0, "{:.2f}"),
}
SAME = ["workload", "dtype", "device", "config.workload.seq_len", "config.phase.optimizer"]


def profile_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a finished profile, as text under the names of COLUMNS; no columns if there is none."""
    if "profile.nodes" not in runs:
        return pd.DataFrame()
    found = runs[runs["profile.nodes"].notna()].sort_values(["workload", "B", "dtype", "started"])
    shown = {}
    for name, (source, unit, form) in COLUMNS.items():
        values = found[source] if source in found else pd.Series(index=found.index, dtype=object)
        shown[name] = [
            "" if pd.isna(value) else form.format(float(value) / unit) if form else str(value) for value in values
        ]
    return pd.DataFrame(shown)


def draw_batches(runs: pd.DataFrame, out: Path) -> list[Picture]:
    """For each model with two batch sizes or more: batch_analysis_<model>.csv in `out`, two figures in `out`/figures.

    Raises MissingStatsError, which names the file, if a finished run lacks one; nothing is filled in.
    """
    pictures = []
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
            pictures.append(Picture(base.name, title, reading, base.with_suffix(".svg"), data))
    return pictures


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
