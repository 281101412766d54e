"""Planned steps under DDP and FSDP2 next to one rank's, as text."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.listings.steps.recomputation import plain
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.data_parallel import KEYS, data_parallel, within_budget
from sweeps.report.tables.steps.recomputation import MIB, WRAPPERS
from sweeps.text import number, signed

NAMES = {"": "one rank", **WRAPPERS}


def select(data: ReportData) -> pd.DataFrame:
    rows = data_parallel(data.recomputed, data.runs) if len(data.recomputed) else pd.DataFrame()
    for name in ("rank_peaks", "rank_budgets") if len(rows) else ():  # as a spreadsheet can split them
        rows[name] = rows[name].map(lambda values: ";".join("" if v is None else f"{v:.0f}" for v in values))
    return rows


def show(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text."""
    told = [key for key in KEYS if key in ("model", "device") or table[key].nunique() > 1]
    columns = {key: table[key].map(plain) for key in told} | {
        "training": table["data_parallel"].map(NAMES),
        "ranks": table["world_size"].map(plain),
        "budget": table["budget"].map(_given),
        "unplanned step, ms": table["unplanned_ms"].map(number),
        "planned step, ms": table["planned_ms"].map(number),
        "added": table["added"].map(signed),
        "more than on one rank": table["over_alone"].map(signed),
        "unplanned kernels, ms": table["unplanned_kernels_ms"].map(number),
        "planned kernels, ms": table["planned_kernels_ms"].map(number),
        "added to kernels": table["added_kernels"].map(signed),
        "more than on one rank, kernels": table["over_alone_kernels"].map(signed),
        "unplanned peak, MiB": (table["unplanned_peak_bytes"] / MIB).map(number),
        "budget, MiB": (table["budget_bytes"] / MIB).map(number),
        "predicted peak, MiB": (table["predicted_peak_bytes"] / MIB).map(number),
        "peak, MiB": (table["peak_bytes"] / MIB).map(number),
        "peak per rank, MiB": table["rank_peaks"].map(_mib),
        "gradients off by": table["gradient_error"].map(_error),
        "allowed": table["rounding_limit"].map(_error),
        "one plan": table["plans_alike"].map({True: "yes", False: "no"}),
        "collectives": table["collectives"].map(_count),
        "unplanned": table["reference_collectives"].map(_count),
    }
    return without_empty_columns(pd.DataFrame(columns).fillna(""))


def _remark(table: pd.DataFrame) -> str:
    lists = {name: table[name].map(_numbers) for name in ("rank_peaks", "rank_budgets")}
    within, measured = within_budget(table.assign(**lists))
    return f" Within their budgets: {within} of {measured} ranks' peaks." if measured else ""


def _numbers(text: str) -> list[float | None]:
    return [float(word) if word else None for word in text.split(";")]


def _given(value: object) -> str:
    return "" if pd.isna(value) else plain(value)  # type: ignore[call-overload]


def _error(value: float | None) -> str:
    return "" if pd.isna(value) else f"{value:.1e}"


def _count(value: float | None) -> str:
    return "" if pd.isna(value) else f"{value:.0f}"


def _mib(text: str) -> str:
    return ", ".join(number(float(word) / MIB) for word in text.split(";") if word)


DATA_PARALLEL = Listing(
    "data_parallel",
    "Compiled training on several ranks: what a plan adds",
    "A planned step and torch.compile's own under DDP and FSDP2, each rank with a batch of its own, next to one rank "
    "alone. Steps: the slowest rank's median. Kernels: the sum of one step's on the slowest rank, without "
    "collectives; a slow host can't delay them. Added: over the unplanned step of the same row. More than on one rank: "
    "in percentage points. Gradients off by: relative to the unplanned step's. Collectives: per step, planned and "
    "unplanned.",
    select,
    show,
    _remark,
)
