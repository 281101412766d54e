"""Planned steps under DDP and FSDP2: what a plan adds to them, next to what it adds on one rank."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sweeps.report.findings.finding import Finding, listed, sentence
from sweeps.report.listings.steps.data_parallel import NAMES
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.compiled_front import HOST_BOUND
from sweeps.report.tables.steps.data_parallel import ALONE, KEYS, data_parallel, within_budget
from sweeps.text import number

MOST = 8


def find(data: ReportData) -> Finding | None:
    rows = data_parallel(data.recomputed, data.runs) if len(data.recomputed) else pd.DataFrame()
    rows = rows[rows["planned_ms"].notna()] if len(rows) else rows
    if rows.empty or not (rows["data_parallel"] != ALONE).any():
        return None
    known = rows[["planned_kernels_ms", "unplanned_kernels_ms"]].notna().all(axis=None)
    by_kernels = bool(known) and bool((rows["unplanned_ms"] > HOST_BOUND * rows["unplanned_kernels_ms"]).any())
    end = "_kernels" if by_kernels else ""
    what = "the time of a step's kernels" if by_kernels else "the time of a step"
    said = []
    for model, own in rows.groupby("model", sort=False):
        of_one = own.loc[own[KEYS].eq(own[KEYS].iloc[0]).all(axis=1)]
        adds = [f"{_percent(row[f'added{end}'])} {_on(row)}" for row in of_one.to_dict("records")]
        said.append(f"the plan of {model} changes {what} by {listed(adds)}")
    within, measured = within_budget(rows[rows["data_parallel"] != ALONE])
    if measured:
        said.append(f"{within} of {measured} ranks' peaks are within the budget")
    shown = rows.head(MOST)
    numbers = {
        "model": shown["model"].astype(str),
        "training": shown["data_parallel"].map(NAMES),
        "unplanned, ms": shown[f"unplanned{end}_ms"].map(number),
        "planned, ms": shown[f"planned{end}_ms"].map(number),
        "added": shown[f"added{end}"].map(_percent),
        "more than on one rank": shown[f"over_alone{end}"].map(_percent),
    }
    return Finding("finding-data-parallel", sentence("; ".join(said)), pd.DataFrame(numbers).astype(str))


def _on(row: dict[Any, Any]) -> str:
    kind = str(row["data_parallel"])
    return "on one rank" if kind == ALONE else f"on {row['world_size']} ranks with {NAMES[kind]}"


def _percent(value: float) -> str:
    return "" if pd.isna(value) else f"{100 * value:+.1f}%"
