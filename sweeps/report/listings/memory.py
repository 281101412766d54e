"""Memory per rank: weights, gradients, optimizer state and peaks."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.listings.overview import key_columns, setting_columns
from sweeps.report.tables.comparisons import ALIKE
from sweeps.report.tables.layers import TIMED, TRAINING
from sweeps.report.tables.report_data import ReportData
from sweeps.text import mebibytes

SIZES = {
    "step_memory_peak_bytes": "peak training, MiB",
    "forward_memory_peak_bytes": "peak forward, MiB",
    "weight_bytes_per_rank": "weights, MiB",
    "gradient_bytes_per_rank": "gradients, MiB",
    "optimizer_bytes_per_rank": "optimizer, MiB",
}


def select(data: ReportData) -> pd.DataFrame:
    """The keys and SIZES of the rows that have a size."""
    rows = data.table[data.table[list(SIZES)].notna().any(axis=1)]
    keys = [name for name in rows if name in {*TIMED, *TRAINING}]
    folders = rows["step_folder"].where(rows["step_folder"].notna(), rows["forward_folder"])
    return rows[[*keys, *SIZES, "memory_peak_kind"]].assign(folder=folders)


def show(rows: pd.DataFrame) -> pd.DataFrame:
    shown = key_columns(rows)
    for column, name in SIZES.items():
        shown[name] = rows[column].map(mebibytes)
    return without_empty_columns(shown.join(setting_columns(rows, TRAINING)))


def remark(rows: pd.DataFrame) -> str:
    resident = rows["memory_peak_kind"].astype(str).str.startswith("resident").any()
    return " Peaks on a CPU are the process's resident set, Python and PyTorch included." if resident else ""


MEMORY = Listing(
    "memory",
    "Memory",
    "Per rank; the largest of all ranks.",
    select,
    show,
    remark,
    best=tuple(SIZES.items()),
    among=(*ALIKE, "backend", "world_size", *TRAINING),
)
