"""Models over ranks: the training step of each method, what it sends, its memory, and how far its loss goes astray."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.listings.memory import remark
from sweeps.report.listings.overview import setting_columns
from sweeps.report.tables.comparisons import ALIKE
from sweeps.report.tables.layers import TRAINING
from sweeps.report.tables.models import models
from sweeps.report.tables.report_data import ReportData
from sweeps.text import bounds, mebibytes, number, times


def select(data: ReportData) -> pd.DataFrame:
    return models(data.runs, data.table)


def show(rows: pd.DataFrame) -> pd.DataFrame:
    shown = rows[["method"]].astype(str)
    shown["model"] = rows["workload"].str.replace("(its ", "(").str.replace(" over ranks)", ")")
    shown["step, ms"] = rows["step_p50_ms"].map(number)
    shown["× row-parallel"] = rows["step_speedup_row"].map(times)
    shown["peak per rank, MiB"] = rows["step_memory_peak_bytes"].map(mebibytes)
    trained = zip(rows["train_loss"], rows["train_steps"], strict=True)
    shown["loss (steps)"] = ["" if pd.isna(loss) else f"{loss:.4f} ({steps:.0f})" for loss, steps in trained]
    for column, name in (("loss_distance", "from float64"), ("dense_loss_distance", "dense from float64")):
        shown[name] = ["" if pd.isna(distance) else f"{distance:.1e}" for distance in rows[column]]
    shown["forward sends"] = rows["forward_collectives"]
    shown["backward sends"] = rows["backward_collectives"]
    shown["95% interval, ms"] = bounds(rows, "step_lo_ms", "step_hi_ms")
    shown["weights, MiB"] = rows["weight_bytes_per_rank"].map(mebibytes)
    shown = shown.join(rows[["B", "world_size"]].astype(str).rename(columns={"world_size": "P"}))
    shown = shown.join(setting_columns(rows, TRAINING).drop(columns="workload", errors="ignore"))
    return without_empty_columns(shown)


MODELS = Listing(
    "models",
    "Models over ranks",
    "A training step, and the number of collectives per pass, of all layers together. × row-parallel: speedup over "
    "dense_tp_row on the same number of ranks P. B: rows that a layer reads. Loss: after so many steps of "
    "phase=phasex_drift. From float64: the farthest that the loss was, at any of these steps, from that of a dense run "
    "in float64; next to it the same of a dense run in the same dtype.",
    select,
    show,
    remark,
    best=(("step_p50_ms", "step, ms"), ("step_memory_peak_bytes", "peak per rank, MiB")),
    among=(*ALIKE, "backend", "world_size", *TRAINING),
)
