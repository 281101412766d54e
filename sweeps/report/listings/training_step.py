"""Training steps of a layer: their time, its parts, and the speed next to the baselines'."""

from __future__ import annotations

from functools import partial

import pandas as pd

from sweeps.report.listings.forward import INTERVALS, SPEEDUPS
from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.listings.overview import key_columns, setting_columns
from sweeps.report.tables import clocks
from sweeps.report.tables.comparisons import ALIKE
from sweeps.report.tables.layers import COLLECTIVES, COLUMNS, PARTS, TRAINING
from sweeps.report.tables.report_data import ReportData
from sweeps.text import bounds, number, percent, times


def select(data: ReportData) -> pd.DataFrame:
    """The rows with a step time, without the columns of the forward pass and of errors."""
    rows = data.table[data.table["step_p50_ms"].notna()]
    kept = [name for name in COLUMNS if not name.startswith(("forward_", "speedup", "dx_", "dw_", "y_"))]
    return rows[kept].rename(columns={"step_folder": "folder"})


def show(rows: pd.DataFrame) -> pd.DataFrame:
    shown = key_columns(rows)
    shown["step, ms"] = rows["step_p50_ms"].map(number)
    shown["95% interval, ms"] = bounds(rows, "step_lo_ms", "step_hi_ms")
    for column, name in SPEEDUPS:
        shown[name] = rows[f"step_{column}"].map(times)
    shown = shown.join(setting_columns(rows, TRAINING))
    shown["repeats"] = rows["step_repeated"]
    for column, name in SPEEDUPS:
        shown[f"{name}, 95%"] = bounds(rows, f"step_{column}_lo", f"step_{column}_hi")
    titles = ("forward", "backward", "optimizer", "compress", "rest", "all-reduce", "all-gather", "reduce-scatter")
    for part, title in zip((*PARTS, "rest", *COLLECTIVES), titles, strict=True):
        shown[f"{title}, ms"] = rows[f"step_{part}_p50_ms"].map(number)
    shown["rows/s"] = rows["step_rows_per_s"].map(number)
    shown["of the roofline"] = percent(rows["step_roofline_fraction"])
    return without_empty_columns(shown.join(clocks.as_text(rows, "step_")))


TRAINING_STEP = Listing(
    "training_step",
    "Training step",
    INTERVALS
    + "Parts are timed inside the step, each with its own clock, so their sum can exceed the step. Rest: the step "
    "minus its parts. Collectives are included in forward and backward. rows/s: rows of X per second.",
    select,
    show,
    partial(clocks.remark, prefix="step_"),
    best=(("step_p50_ms", "step, ms"),),
    among=(*ALIKE, "backend", "world_size", *TRAINING),
)
