"""Recomputed training steps, as text."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.recomputation import MIB, MS, SETTING
from sweeps.text import bounds, number, times


def select(data: ReportData) -> pd.DataFrame:
    return data.recomputed


def recomputation_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text; columns that say nothing are left out."""
    columns = {
        "method": table["variant"],
        "budget": table["budget"].map(plain),
        "model": table["model"],
        "B": table["B"].map(lambda value: f"{value:.0f}"),
        "data parallelism": table["data_parallel"],
        "step, ms": table["step_p50_ms"].map(number),
        "95% interval, ms": bounds(table, "step_lo_ms", "step_hi_ms"),
        "× keep_all's time": table["slowdown"].map(times),
        "peak, MiB": (table["peak_bytes"] / MIB).map(number),
        "of keep_all's peak": _percent(table["peak_bytes"] / table["keep_all_peak_bytes"]),
        "same numbers": list(map(_same, *(table[name] for name in NUMBERS))),
        "dtype": table["dtype"],
        "autocast": table["autocast"],
        "tokens a row": table["seq_len"].map(plain),
        "above static, MiB": (table["above_static_bytes"] / MIB).map(number),
        "reserved, MiB": (table["reserved_peak_bytes"] / MIB).map(number),
        "kernels, ms": table["kernels_ms"].map(number),
        "first step, s": table["first_step_s"].map(number),
        "predicted peak, MiB": (table["predicted_peak_bytes"] / MIB).map(number),
        "predicted step, ms": (table["predicted_step_s"] / MS).map(number),
        "added (predicted), ms": (table["predicted_added_s"] / MS).map(number),
        "added at least (LP), ms": (table["bound_added_s"] / MS).map(number),
        "recomputed": _share(table["recomputed"], table["activations"]),
        "planning, s": table["planning_s"].map(number),
    }
    return without_empty_columns(pd.DataFrame(columns))


def _same(identical: object, passed: object, alike: object, gradient_error: float, buffer_error: float) -> str:
    if identical == "":
        return ""
    if identical or passed:
        return "bitwise" if identical else "within the baseline's spread"
    if pd.isna(gradient_error):
        return "FAIL: different"
    off = f"gradients off by {gradient_error:.1e}"
    if alike in (True, ""):
        return off
    return f"FAIL: {off}" + ("" if pd.isna(buffer_error) else f", statistics by {buffer_error:.1e}")


NUMBERS = ("identical", "passed", "trains_alike", "gradient_error", "buffer_error")


def plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _percent(share: pd.Series) -> pd.Series:
    return share.map(lambda value: "" if pd.isna(value) else f"{value:.0%}")


def _share(part: pd.Series, whole: pd.Series) -> list[str]:
    return ["" if pd.isna(a) or pd.isna(b) else f"{a:.0f} of {b:.0f}" for a, b in zip(part, whole, strict=True)]


RECOMPUTATION = Listing(
    "recomputation",
    "Recomputation",
    "Of each setting, method and memory budget. Predicted: by the plan's cost model. LP: the linear program's lower "
    "bound on the time that any plan within the budget adds. Same numbers: the rewritten step's loss, gradients and "
    "states against the plain step's; of a compiled step, whose rounding differs, the error of its gradients relative "
    "to their norm. First step: with compilation.",
    select,
    recomputation_table,
    best=(("step_p50_ms", "step, ms"), ("peak_bytes", "peak, MiB")),
    among=tuple(SETTING),
)
