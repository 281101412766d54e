"""Profiled training steps: a table of them, and for a model at several batch sizes its memory and time against those.

The tables behind the batch analysis are files of the run folders, and `profiler` reads back what it wrote.
"""

from __future__ import annotations

import pandas as pd

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


def profile_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a finished profile, as text under the names of COLUMNS; no columns if there is none."""
    found = runs.sort_values(["workload", "B", "dtype", "started"])
    shown = {}
    for name, (source, unit, form) in COLUMNS.items():
        values = found[source] if source in found else pd.Series(index=found.index, dtype=object)
        shown[name] = [
            "" if pd.isna(value) else form.format(float(value) / unit) if form else str(value) for value in values
        ]
    return pd.DataFrame(shown)
