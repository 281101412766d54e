"""The law max(2/s, 9/8) beside the measured ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.shared.panels import canvas, cut, legend, log_axes, name_panel, panels
from sweeps.report.tables.report_data import ReportData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOCAL, WHOLE = "#d55e00", "#0072b2"


def select(measured: ReportData) -> pd.DataFrame:
    return measured.law


def scatter(data: pd.DataFrame) -> Figure:
    """Measured against predicted ratio, a pair of marks a size and mask; the line is the law."""
    from matplotlib.lines import Line2D

    found, title = cut(panels(data, []), _message(data))
    figure, axes = canvas(len(found), 5.4 if len(found) == 1 else 4.4, 4.6, title)
    columns = ["predicted", "local_ratio", "ratio", "local_ratio_hi", "predicted_hi"]
    low = min(0.95, 0.93 * data[["predicted", "local_ratio", "ratio", "local_ratio_lo"]].min().min())
    high = 1.08 * data[columns].max().max()
    for axis, (label, rows) in zip(axes, found, strict=True):
        axis.plot([low, high], [low, high], color="#888888", lw=1.3, zorder=1)
        axis.axhline(1.0, color="#888888", lw=0.8, ls=(0, (2, 2)), zorder=1)
        sure = rows[rows[["predicted_lo", "local_ratio_lo"]].notna().all(axis=1)]
        if not sure.empty:
            axis.errorbar(
                sure["predicted"],
                sure["local_ratio"],
                yerr=_reach(sure, "local_ratio"),
                xerr=_reach(sure, "predicted"),
                fmt="none",
                color=LOCAL,
                lw=1,
                capsize=2,
            )
        axis.scatter(rows["predicted"], rows["local_ratio"], c=LOCAL, marker="o", s=34, alpha=0.85, zorder=3)
        axis.scatter(rows["predicted"], rows["ratio"], facecolors="none", edgecolors=WHOLE, marker="s", s=34, zorder=3)
        axis.set(xlim=(low, high), ylim=(low, high), xlabel="predicted: max(2/s, 9/8)", ylabel="measured")
        log_axes(axis, x=True, y=True)
        axis.set_aspect("equal")
        name_panel(axis, label)
    marks = [
        Line2D([], [], color=LOCAL, marker="o", linestyle="", label="rank-local matmul"),
        Line2D([], [], color=WHOLE, marker="s", markerfacecolor="none", linestyle="", label="whole forward"),
        Line2D([], [], color="#888888", lw=1.3, label="the model"),
        Line2D([], [], color="#888888", lw=0.8, ls=(0, (2, 2)), label="tie"),
    ]
    legend(figure, marks)
    return figure


def _message(data: pd.DataFrame) -> str:
    off = (data["local_ratio"] / data["predicted"] - 1).abs().median()
    return (
        f"Time over row-parallel's on two ranks, cuSPARSELt: the model is off by {off:.0%} (median) without all-reduce"
    )


def _reach(rows: pd.DataFrame, name: str) -> list[pd.Series]:
    return [(rows[name] - rows[f"{name}_lo"]).clip(lower=0), (rows[f"{name}_hi"] - rows[name]).clip(lower=0)]


LAW = FigureSpec(
    "law",
    "The model max(2/s, 9/8) against the measurements",
    "A filled mark on the line is a rank-local matmul as slow as the model says from the sparse speedup s measured on "
    "one rank; open marks add the all-reduce, which both methods pay, and so lie nearer to a tie.",
    select,
    scatter,
)
