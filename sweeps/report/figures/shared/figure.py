"""What a figure is: a selection from the measurements, a drawing of it, and one sentence on how to read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.tables.layers import METHODS
from sweeps.report.tables.report_data import ReportData

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureSpec:
    """A figure to be: what it selects, how it is drawn, and how to read it."""

    name: str  # of its files
    title: str
    reading: str  # how to read it, in one sentence
    select: Callable[[ReportData], pd.DataFrame]  # empty: there is nothing to draw
    draw: Callable[[pd.DataFrame], Figure]


def fastest(rows: pd.DataFrame, column: str, by: list[str]) -> pd.DataFrame:
    return rows.loc[rows.groupby(by)[column].idxmin()]


def ordered(methods: pd.Series) -> list[str]:
    """The methods in the order of the table, ours first."""
    names = set(methods)
    return [*(name for name in METHODS if name in names), *sorted(names - set(METHODS))]


def in_rows(best: pd.DataFrame) -> pd.DataFrame:
    """One horizontal bar a row, by world size, then in the methods' order."""
    order = {name: i for i, name in enumerate(ordered(best["method"]))}
    return best.assign(_m=best["method"].map(order)).sort_values(["world_size", "_m"]).reset_index(drop=True)
