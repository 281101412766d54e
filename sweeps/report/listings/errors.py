"""Errors of Y, dX and dW against float64, and whether they are within the limit."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.listings.overview import key_columns, setting_columns
from sweeps.report.tables.layers import PROBLEM, QUANTITIES
from sweeps.report.tables.report_data import ReportData
from sweeps.text import check, errors


def select(data: ReportData) -> pd.DataFrame:
    """One row a layer: the error is the layer's, which has as many rows in the table as it was timed in ways."""
    rows = data.table[data.table["passed"].notna()]
    columns = [f"{quantity.lower()}_{what}" for quantity in QUANTITIES for what in ("relative_error", "error_limit")]
    keys = [name for name in rows if name in PROBLEM]
    return rows[[*keys, *columns, "dense_relative_error", "passed", "failed_checks"]].drop_duplicates()


def show(rows: pd.DataFrame) -> pd.DataFrame:
    shown = key_columns(rows)
    for quantity in QUANTITIES:
        name = quantity.lower()
        shown[f"{quantity} (limit)"] = errors(rows[f"{name}_relative_error"], rows[f"{name}_error_limit"])
    shown["one rounding"] = errors(rows["dense_relative_error"])
    shown["check"] = [
        check(passed, failed) for passed, failed in zip(rows["passed"], rows["failed_checks"], strict=True)
    ]
    return without_empty_columns(shown.join(setting_columns(rows)))


ERRORS = Listing(
    "errors",
    "Errors",
    "‖A − A*‖ / ‖A*‖ against float64 for Y, dX and dW, and the limit that the method's roundings allow. One "
    "rounding: the error of a dense matmul on the same data. The check covers every phase that made one.",
    select,
    show,
)
