"""Recomputed training steps, as text."""

from __future__ import annotations

import pandas as pd

from sweeps.report.tables.recomputation import MIB, MS
from sweeps.text import number


def recomputation_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text; columns that say nothing are left out."""
    columns = {
        "model": table["model"],
        "B": table["B"].map(lambda value: f"{value:.0f}"),
        "dtype": table["dtype"],
        "tokens a row": table["seq_len"].map(_plain),
        "method": table["variant"],
        "budget": table["budget"].map(_plain),
        "peak, MiB": (table["peak_bytes"] / MIB).map(number),
        "of keep_all's peak": _percent(table["peak_bytes"] / table["keep_all_peak_bytes"]),
        "above static, MiB": (table["above_static_bytes"] / MIB).map(number),
        "step, ms": table["step_p50_ms"].map(number),
        "95% interval, ms": _interval(table["step_lo_ms"], table["step_hi_ms"]),
        "× keep_all's time": table["slowdown"].map(lambda value: "" if pd.isna(value) else f"{value:.2f}×"),
        "predicted peak, MiB": (table["predicted_peak_bytes"] / MIB).map(number),
        "predicted step, ms": (table["predicted_step_s"] / MS).map(number),
        "added (predicted), ms": (table["predicted_added_s"] / MS).map(number),
        "added at least (LP), ms": (table["bound_added_s"] / MS).map(number),
        "recomputed": _share(table["recomputed"], table["activations"]),
        "planning, s": table["planning_s"].map(number),
        "same numbers": [_same(a, b) for a, b in zip(table["identical"], table["passed"], strict=True)],
    }
    shown = pd.DataFrame(columns).astype(str)
    return shown[[name for name in shown if (shown[name] != "").any()]]


def _same(identical: object, passed: object) -> str:
    if identical == "":
        return ""
    return "to the bit" if identical else "within the baseline's spread" if passed else "FAIL: different"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _percent(share: pd.Series) -> pd.Series:
    return share.map(lambda value: "" if pd.isna(value) else f"{value:.0%}")


def _interval(low: pd.Series, high: pd.Series) -> list[str]:
    return ["" if pd.isna(a) else f"{number(a)} – {number(b)}" for a, b in zip(low, high, strict=True)]


def _share(part: pd.Series, whole: pd.Series) -> list[str]:
    return ["" if pd.isna(a) or pd.isna(b) else f"{a:.0f} of {b:.0f}" for a, b in zip(part, whole, strict=True)]
