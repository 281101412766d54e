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
STEPS = 10  # whose losses are averaged in a figure


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
    """The layers' runs of one method and world size together, step by step: least, median and largest error."""
    return _by_step(measured.drift[measured.drift["loss"].isna()], "error", "dense_error")


def select_losses(measured: ReportData) -> pd.DataFrame:
    """The models' runs of one method and world size together: how far the loss is from float64's, a mean over STEPS."""
    curves = measured.drift[measured.drift["loss"].notna()].sort_values("step")
    smooth = {name: _smooth(curves, name) for name in ("loss_distance", "dense_loss_distance")}
    return _by_step(curves.assign(**smooth), "loss_distance", "dense_loss_distance")


def _smooth(curves: pd.DataFrame, name: str) -> pd.Series:
    return curves.groupby("folder")[name].transform(lambda run: run.rolling(STEPS, min_periods=1).mean())


def _by_step(curves: pd.DataFrame, value: str, dense: str) -> pd.DataFrame:
    """`min`, `median`, `max` of the value over the runs that are alike, and `dense`, which is a run of its own."""
    keys = [key for key in KEYS if key in curves]
    groups = curves.groupby([*keys, "N", "K", "B", "mode", "method", "world_size", "step"])
    return groups[value].agg(["min", "median", "max"]).join(groups[dense].median().rename("dense")).reset_index()


def drift(data: pd.DataFrame) -> Figure:
    """Relative error of Y against the number of steps; dashed, what a dense layer in the same dtype drifts."""
    return _against_steps(data, ["N", "B"], "relative error of Y", _drift_message(data))


def losses(data: pd.DataFrame) -> Figure:
    """How far the training loss is from float64's, against steps; dashed, a dense run in the same dtype."""
    label = f"|loss - float64's|, mean of {STEPS} steps"
    return _against_steps(data, ["B"], label, _loss_message(data))


def _against_steps(data: pd.DataFrame, sizes: list[str], label: str, message: str) -> Figure:
    from matplotlib.lines import Line2D

    found, title = cut(panels(data, sizes, ["mode"]), message, most=9)
    colours, order = palette(data["method"]), ordered(data["method"])
    widths = {name: 4.0 - 2.8 * i / max(1, len(order) - 1) for i, name in enumerate(order)}  # equal curves stay visible
    figure, axes = canvas(len(found), 4.4, 3.3, title)
    for axis, (name, rows) in zip(axes, found, strict=True):
        several = rows.set_index(["method", "world_size", "step"]).sort_index()
        for method in order:
            for world_size in sorted(set(rows.loc[rows["method"] == method, "world_size"])):
                curve = several.loc[(method, world_size)]
                colour, style = colours[method], line_style(world_size)
                axis.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.18, lw=0)
                axis.plot(curve.index, curve["median"], color=colour, linestyle=style, lw=widths[method], zorder=3)
        dense = rows.groupby("step")["dense"].median()
        axis.plot(dense.index, dense, color="#b0b0b0", lw=1.4, ls=(0, (6, 3)), zorder=5)
        log_axes(axis, y=True)
        axis.set(xlabel="step", ylabel=label)
        name_panel(axis, name)
    reference = Line2D([], [], color="#b0b0b0", lw=1.4, ls=(0, (6, 3)), label="dense, same dtype")
    legend(figure, [*method_handles(colours, order), reference, *rank_handles(data["world_size"])])
    return figure


def _drift_message(data: pd.DataFrame) -> str:
    last = data[data["step"] == data["step"].max()]
    worst = (last["median"] / last["dense"]).max()
    return (
        f"Drift from exact arithmetic: after {last['step'].iloc[0]:.0f} steps at most {worst:.2f} times a dense layer's"
    )


def _loss_message(data: pd.DataFrame) -> str:
    """Each run at its farthest; dense runs that round in another order differ from each other, too."""
    steps = f"{data['step'].max():.0f} steps"
    keys = [key for key in (*KEYS, "N", "K", "B") if key in data]
    is_dense = data["method"].str.startswith(("dense", "dtensor"))
    dense = (
        data["dense"].where(~is_dense, data[["dense", "max"]].max(axis=1)).groupby([data[key] for key in keys]).max()
    )
    ours = data[data["method"] == "block_shock"].groupby(keys)["max"].max()
    if ours.empty:
        return f"Training loss over {steps}, next to that of a dense run in float64"
    times = (ours / dense).max()
    if times <= 1:
        return f"Over {steps} Block-Shock's training loss stays as near to float64's as that of dense runs"
    return f"Over {steps} Block-Shock's training loss is up to {times:.2f} times as far from float64's as dense runs'"


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
LOSSES = FigureSpec(
    "losses",
    "Training loss",
    "Lower is nearer to exact arithmetic: how far the training loss is from that of a dense run in float64, a mean of "
    f"{STEPS} steps. The grey dashed line is a dense run in the same dtype; other dense methods add in other orders.",
    select_losses,
    losses,
)
