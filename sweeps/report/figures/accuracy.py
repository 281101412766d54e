"""Errors of one application, and how they grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec, ordered
from sweeps.report.figures.shared.panels import (
    KEYS,
    canvas,
    cut,
    legend,
    line_style,
    log_axes,
    method_handles,
    name_panel,
    panels,
    rank_handles,
)
from sweeps.report.figures.shared.style import palette
from sweeps.report.tables.layers import QUANTITIES
from sweeps.report.tables.report_data import ReportData

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MARKS = {"Y": "o", "dX": "s", "dW": "^"}


def select_errors(measured: ReportData) -> pd.DataFrame:
    """A row a method, setting and quantity checked: its relative error and the limit."""
    table, found = measured.table, []
    kept = [
        "method",
        "world_size",
        "N",
        "K",
        "B",
        "kernel",
        "mask",
        "options",
        *(key for key in KEYS if key not in ("timing_mode", "flush_l2")),
    ]
    for quantity in QUANTITIES:
        names = {f"{quantity.lower()}_relative_error": "error", f"{quantity.lower()}_error_limit": "limit"}
        part = table[[*kept, *names]].rename(columns=names).assign(quantity=quantity)
        found.append(part[part["error"] > 0].drop_duplicates())
    return pd.concat(found, ignore_index=True)


def errors(data: pd.DataFrame) -> Figure:
    """A row a method, a mark a quantity; the short black line is the largest limit of that quantity."""
    from matplotlib.lines import Line2D

    names = ordered(data["method"])
    found, title = cut(panels(data, []), _message(data))
    figure, axes = canvas(len(found), 4.6, 0.55 * len(names) + 0.7, title)
    colours = palette(data["method"])
    offsets = {quantity: 0.25 * (i - 1) for i, quantity in enumerate(QUANTITIES)}
    for axis, (label, rows) in zip(axes, found, strict=True):
        for quantity in QUANTITIES:
            part = rows[rows["quantity"] == quantity]
            heights = part["method"].map(names.index) + offsets[quantity]
            axis.scatter(part["error"], heights, c=part["method"].map(colours), marker=MARKS[quantity], s=28, alpha=0.7)
            limit = part.groupby("method")["limit"].max()
            axis.scatter(limit, limit.index.map(names.index) + offsets[quantity], marker="|", c="black", s=60)
        log_axes(axis, x=True)
        axis.set_yticks(range(len(names)), names, fontsize="small")
        axis.set(xlabel="relative error", ylim=(len(names) - 0.4, -0.6))
        axis.grid(visible=False, axis="y")
        name_panel(axis, label)
    kinds = [
        Line2D([], [], color="#555555", linestyle="", marker=mark, label=name)
        for name, mark in MARKS.items()
        if (data["quantity"] == name).any()
    ]
    legend(figure, [*kinds, Line2D([], [], color="black", linestyle="", marker="|", markersize=9, label="limit")])
    return figure


def _message(data: pd.DataFrame) -> str:
    worst = (data["error"] / data["limit"]).max()
    return f"Relative error against float64: at most {worst:.0%} of what the roundings allow"


def select_drift(measured: ReportData) -> pd.DataFrame:
    """The runs of one method and world size together, step by step: least, median and largest error."""
    keys = [key for key in KEYS if key in measured.drift]
    groups = measured.drift.groupby([*keys, "N", "K", "B", "mode", "method", "world_size", "step"])
    found = groups["error"].agg(["min", "median", "max"]).join(groups["dense_error"].median())
    return found.reset_index()


def drift(data: pd.DataFrame) -> Figure:
    """Relative error of Y against the number of steps; dashed, what a dense layer in the same dtype drifts."""
    from matplotlib.lines import Line2D

    found, title = cut(panels(data, ["N", "B"], ["mode"]), _drift_message(data), most=9)
    colours, order = palette(data["method"]), ordered(data["method"])
    widths = {name: 4.0 - 2.8 * i / max(1, len(order) - 1) for i, name in enumerate(order)}  # equal curves stay visible
    figure, axes = canvas(len(found), 4.4, 3.3, title)
    for axis, (label, rows) in zip(axes, found, strict=True):
        several = rows.set_index(["method", "world_size", "step"]).sort_index()
        for method in order:
            for world_size in sorted(set(rows.loc[rows["method"] == method, "world_size"])):
                curve = several.loc[(method, world_size)]
                colour, style = colours[method], line_style(world_size)
                axis.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.18, lw=0)
                axis.plot(curve.index, curve["median"], color=colour, linestyle=style, lw=widths[method], zorder=3)
        dense = rows.groupby("step")["dense_error"].median()
        axis.plot(dense.index, dense, color="#b0b0b0", lw=1.4, ls=(0, (6, 3)), zorder=5)
        log_axes(axis, y=True)
        axis.set(xlabel="step", ylabel="relative error of Y")
        name_panel(axis, label)
    reference = Line2D([], [], color="#b0b0b0", lw=1.4, ls=(0, (6, 3)), label="dense, same dtype")
    legend(figure, [*method_handles(colours, order), reference, *rank_handles(data["world_size"])])
    return figure


def _drift_message(data: pd.DataFrame) -> str:
    last = data[data["step"] == data["step"].max()]
    worst = (last["median"] / last["dense_error"]).max()
    return (
        f"Drift from exact arithmetic: after {last['step'].iloc[0]:.0f} steps at most {worst:.2f} times a dense layer's"
    )


ERRORS = FigureSpec(
    "errors",
    "Errors",
    "Further left is more exact: each mark is one layer's error in Y, dX or dW against float64, and the short upright "
    "line is what the roundings allow (docs/method.md); a mark right of its line is a failed check.",
    select_errors,
    errors,
)
DRIFT = FigureSpec(
    "drift",
    "Drift",
    "A line is the median run of a method, with a band from its smallest to its largest: the error against float64 as "
    "it feeds back step by step; a line on the grey dashed one drifts no more than a dense layer in the same dtype.",
    select_drift,
    drift,
)
