"""The phase diagram: where families of 2:4 splits are faster than dense, and how well measured parts predict it."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from sweeps.report.findings.finding import Finding, sentence
from sweeps.report.tables.diagram.forward_parts import NOT_LOCATED
from sweeps.report.tables.diagram.phase_diagram import FASTER, OPEN, SLOWER, phase_diagram
from sweeps.report.tables.report_data import ReportData
from sweeps.text import counted


def find(data: ReportData) -> Finding | None:
    cells = phase_diagram(data.runs)
    if cells.empty:
        return None
    said: list[str] = []
    for family, own in cells.groupby("family", sort=True):
        faster, ratio = int(own["decided"].eq(FASTER).sum()), own["ratio"]
        sizes = f"at {faster} of {counted(len(own), 'size')} ({ratio.min():.2f} to {ratio.max():.2f}"
        if said:
            said.append(f"{family} {sizes})")
        else:
            said.append(f"{family} are faster than the best dense method {sizes} times its time)")
    timed = cells[cells["within"].notna()]
    if len(timed):
        within = int(timed["within"].eq(True).sum())
        open_cells = int(_reasons(timed).map(lambda reasons: NOT_LOCATED in reasons).sum())
        part = f"{within} of {counted(len(timed), 'cell')} within 5% of what their measured parts predict"
        located = len(timed) - within - open_cells
        said.append(f"{part}, {located} miss it in a part that the table names, {open_cells} in none that was timed")
    return Finding("finding-phase-diagram", sentence("; ".join(said)), _numbers(cells))


def _numbers(cells: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for family, own in cells.groupby("family", sort=True):
        timed = own[own["within"].notna()]
        reasons = Counter(reason for each in _reasons(timed) for reason in each)
        rows.append(
            {
                "family": family,
                "cells": str(len(own)),
                **{name: str(int(own["decided"].eq(name).sum())) for name in (FASTER, OPEN, SLOWER)},
                "ratio": f"{own['ratio'].min():.2f} – {own['ratio'].max():.2f}",
                "within 5%": f"{int(timed['within'].eq(True).sum())} of {len(timed)}",
                "misses lie in": ", ".join(f"{name} {count}" for name, count in reasons.most_common()),
            }
        )
    return pd.DataFrame(rows)


def _reasons(cells: pd.DataFrame) -> pd.Series:
    """Of each cell the kinds of reason for which one of its two forwards misses: `clock`, `launch overhead`, ..."""
    return pd.Series(
        [
            {why.split(":")[0] for why in pair if isinstance(why, str) and why}
            for pair in cells[["why", "dense_why"]].to_numpy()
        ],
        index=cells.index,
        dtype=object,
    )
