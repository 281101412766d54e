"""Profiled training steps: peaks and times, simulated and measured."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing
from sweeps.report.tables.report_data import ReportData

MIB = 2**20
COLUMNS = {
    "model": ("workload", 1.0, ""),
    "B": ("B", 1.0, "{:.0f}"),
    "dropout": ("config.workload.dropout", 1.0, "{:g}"),
    "traced step, ms": ("timings_ms.total_step.p50_ms", 1.0, "{:.2f}"),
    "eager step, ms": ("profile.eager.p50_ms", 1.0, "{:.2f}"),
    "measured peak, MiB": ("profile.measured_peak_bytes", MIB, "{:.1f}"),
    "simulated peak, MiB": ("profile.simulated_peak_bytes", MIB, "{:.1f}"),
    "Σ nodes, ms": ("profile.node_time_s", 1e-3, "{:.2f}"),
    "CUDA graph, ms": ("profile.cuda_graph.p50_ms", 1.0, "{:.2f}"),
    "idle, ms": ("profile.idle_s", 1e-3, "{:.2f}"),
    "eager peak, MiB": ("profile.eager.peak_bytes", MIB, "{:.1f}"),
    "dtype": ("dtype", 1.0, ""),
    "trace, s": ("profile.trace_s", 1.0, "{:.1f}"),
    "profile, s": ("profile.profile_s", 1.0, "{:.2f}"),
}


def select(data: ReportData) -> pd.DataFrame:
    """One row a finished profile, as text under the names of COLUMNS, and its folder."""
    if data.profiles.empty:
        return data.profiles
    rows = data.profiles.sort_values(["workload", "B", "dtype", "started"])
    shown = {}
    for name, (source, unit, form) in COLUMNS.items():
        values = rows[source] if source in rows else pd.Series(index=rows.index, dtype=object)
        shown[name] = [
            "" if pd.isna(value) else form.format(float(value) / unit) if form else str(value) for value in values
        ]
    return pd.DataFrame(shown).assign(folder=rows["folder"].to_numpy())


def show(text: pd.DataFrame) -> pd.DataFrame:
    return text[list(COLUMNS)]


PROFILES = Listing(
    "profiles",
    "Profiled training steps",
    "The simulated peak comes from the step's graph and its nodes' workspaces, the measured one from the allocator. "
    "Compare the sum of the nodes' times with the step as a CUDA graph, which has no gaps between kernels, and the sum "
    "plus the idle time with the eager step.",
    select,
    show,
)
