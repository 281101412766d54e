"""Forward passes: their time, and their speed next to the baselines' and to the roofline."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.listings.overview import key_columns, setting_columns
from sweeps.report.tables import clocks
from sweeps.report.tables.comparisons import ALIKE
from sweeps.report.tables.layers import COLLECTIVES, COLUMNS
from sweeps.report.tables.report_data import ReportData
from sweeps.text import bounds, number, percent, times

INTERVALS = (
    "Medians, with bootstrap 95% intervals where there are five repeats or more (jobs of the same configuration, else "
    "the blocks of one job). "
)


SPEEDUPS = (("speedup_row", "× row-parallel"), ("speedup", "× dense"))


def select(data: ReportData) -> pd.DataFrame:
    """The rows with a forward time, without the columns of the training step and of errors."""
    rows = data.table[data.table["forward_p50_ms"].notna()]
    kept = [name for name in COLUMNS if not name.startswith(("step_", "dx_", "dw_", "y_"))]
    return rows[kept].rename(columns={"forward_folder": "folder"})


def show(rows: pd.DataFrame) -> pd.DataFrame:
    shown = key_columns(rows)
    shown["forward, ms"] = rows["forward_p50_ms"].map(number)
    shown["95% interval, ms"] = bounds(rows, "forward_lo_ms", "forward_hi_ms")
    for column, name in SPEEDUPS:
        shown[name] = rows[column].map(times)
    shown = shown.join(setting_columns(rows))
    shown["repeats"] = rows["forward_repeated"]
    for column, name in SPEEDUPS:
        shown[f"{name}, 95%"] = bounds(rows, f"{column}_lo", f"{column}_hi")
    shown["TFLOP/s"] = rows["tflops"].map(number)
    shown["of the roofline"] = percent(rows["roofline_fraction"], rows["bound"])
    for name, title in zip(COLLECTIVES, ("all-reduce, ms", "all-gather, ms", "reduce-scatter, ms"), strict=True):
        shown[title] = rows[f"forward_{name}_p50_ms"].map(number)
    if rows["backward_input_p50_ms"].notna().any():
        shown["backward to X, ms"] = rows["backward_input_p50_ms"].map(number)
    return without_empty_columns(shown.join(clocks.as_text(rows, "forward_")))


def remark(rows: pd.DataFrame) -> str:
    said = "; above 100% the data was served from a cache, not from the memory that was calibrated."
    said = said if (rows["roofline_fraction"] > 1).any() else "."
    if rows["method"].eq("slide_sparse").any():
        said += " slide_sparse holds every window on one GPU: × dense compares it with methods on several."
    return said + clocks.remark(rows, "forward_")


FORWARD = Listing(
    "forward",
    "Forward pass",
    INTERVALS
    + "× dense: speedup over dense_single on one rank. × row-parallel: speedup over dense_tp_row on the same number of "
    "ranks P. TFLOP/s counts the whole matmul. Of the roofline: the least time that the machine's calibrated rates "
    "allow, divided by the measured time, and what bounds it",
    select,
    show,
    remark,
    best=(("forward_p50_ms", "forward, ms"),),
    among=(*ALIKE, "backend", "world_size"),
)
