"""Traced training steps: where their time went, of the rank with the longest step."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sweeps.report.listings.listing import Listing
from sweeps.report.tables.report_data import ReportData

PARTS = ("step", "forward", "backward", "optimizer", "other", "exposed_communication", "idle")


def select(data: ReportData) -> pd.DataFrame:
    """One row a finished trace, as text. Times are medians over the steps."""
    if data.traces.empty:
        return data.traces
    rows = data.traces.sort_values(["method", "workload", "N", "B", "world_size", "started"])
    return pd.DataFrame([_row(row) for row in rows.to_dict("records")])


def show(text: pd.DataFrame) -> pd.DataFrame:
    return text


def _row(run: dict[Any, Any]) -> dict[str, str]:
    steps = run["trace.step_ms"]
    slowest = steps.index(max(steps))
    size = f"N={run['N']:.0f} B={run['B']:.0f}" if not pd.isna(run["N"]) else f"B={run['B']:.0f}"
    row = {"method": f"{run['method']} ({run['workload']})", "size": size, "dtype": run["dtype"]}
    row |= {"ranks": f"{run['world_size']:.0f}", "back end": run["trace.backend"]}
    row |= {f"{part.replace('_', ' ')}, ms": f"{run[f'trace.{part}_ms'][slowest]:.3f}" for part in PARTS}
    attributed = run["trace.attributed"]
    row |= {"kernels": f"{run['trace.kernels'][slowest]}", "slower by": f"{run['trace.slowdown']:.1%}"}
    return row | {"attributed": "" if pd.isna(attributed) else f"{attributed:.2%}"}


TRACES = Listing(
    "traces",
    "Traced training steps",
    "Medians over the traced steps of the slowest rank. Forward to idle add up to the step. Slower by: what tracing "
    "added to the step. Attributed: the share of device time attributed to a module, the loss, the optimizer or a "
    "collective.",
    select,
    show,
)
