"""The report's figures. Each is one function from what was measured to a Figure, or None when there is nothing to draw.

To add one, write the function and list it in FIGURES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps.palette import PARTS, dashes, marker, palette
from sweeps.panels import (
    canvas,
    cut,
    legend,
    log_axes,
    method_handles,
    panels,
    rank_handles,
    ranks,
    size_axis,
)
from sweeps.tables import METHODS, TRAINING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


ISO_TEXT: dict[str, Any] = {"fontsize": "x-small", "color": "#666666", "ha": "center"}


@dataclass(frozen=True)
class Measured:
    """What the figures draw from: `tables.results` and `tables.drift`."""

    table: pd.DataFrame
    drift: pd.DataFrame


@dataclass(frozen=True)
class Plot:
    name: str  # of its files
    title: str
    reading: str  # how to read it, in one sentence
    draw: Callable[[Measured], Figure | None]


def throughput(measured: Measured) -> Figure | None:
    """Operations of the whole product over the forward time, against N; bars in a panel of one N."""
    data = measured.table[measured.table["forward_p50_ms"].notna()]
    if data.empty:
        return None
    found, title = cut(panels(data, ["B"]), "Forward throughput")
    colours = palette(data["method"])
    lines = any(rows["N"].nunique() > 1 for _, rows in found)
    bars = max(rows[["method", "world_size"]].drop_duplicates().shape[0] for _, rows in found)
    figure, axes = canvas(len(found), 4.2, 3.2 if lines else 0.32 * bars + 0.7, title)
    for axis, (label, rows) in zip(axes, found, strict=True):
        best = _fastest(rows, "forward_p50_ms", ["method", "world_size", "N"])
        small = best["tflops"].max() < 1
        best = best.assign(rate=best["tflops"] * (1000 if small else 1))
        unit = "GFLOP/s" if small else "TFLOP/s"
        if best["N"].nunique() > 1:
            _lines(axis, best, "rate", colours)
            axis.set(xlabel="N", ylabel=unit)
        else:
            _bars(axis, best, "rate", colours, bars)
            axis.set_xlabel(unit)
            label = f"N = {best['N'].iloc[0]}, {label}"
        axis.set_title(label, fontsize="small")
    if lines:
        legend(figure, [*method_handles(colours, _ordered(data)), *rank_handles(data["world_size"])])
    return figure


def floor(measured: Measured) -> Figure | None:
    """Forward time against the least time the machine allows for it, every row of the table a point."""
    import seaborn as sns

    data = measured.table
    data = data[(data["forward_p50_ms"] > 0) & (data["forward_floor_ms"] > 0)]
    if data.empty:
        return None
    found, title = cut(panels(data, []), "Forward time against its roofline floor")
    colours = palette(data["method"])
    side = 6.0 if len(found) == 1 else 4.4
    figure, axes = canvas(len(found), side, side, title)
    low = 0.7 * data[["forward_p50_ms", "forward_floor_ms"]].min().min()
    high = 1.4 * data[["forward_p50_ms", "forward_floor_ms"]].max().max()
    for axis, (label, rows) in zip(axes, found, strict=True):
        for times, text in ((1, "1×"), (2, "2×"), (10, "10×"), (100, "100×")):
            axis.plot(
                [low, high], [times * low, times * high], color="#888888", lw=1.3 if times == 1 else 0.6, zorder=1
            )
            if high / times > 1.5 * low and (times != 2 or high < 1e4 * low):
                axis.annotate(text, (high / times, high), (0, 3), textcoords="offset points", **ISO_TEXT)
        sns.scatterplot(
            rows,
            x="forward_floor_ms",
            y="forward_p50_ms",
            hue="method",
            style="world_size",
            palette=colours,
            markers={p: marker(p) for p in set(rows["world_size"])},
            s=45,
            alpha=0.85,
            legend=False,
            ax=axis,
            zorder=3,
        )
        axis.set(xlim=(low, high), ylim=(low, high), xlabel="roofline floor, ms", ylabel="forward (p50), ms")
        log_axes(axis, x=True, y=True)
        axis.set_aspect("equal")
        axis.set_title(label, fontsize="small", pad=16)
    handles = method_handles(colours, _ordered(data), line=False)
    legend(figure, [*handles, *rank_handles(data["world_size"], line=False)])
    return figure


def training_step(measured: Measured) -> Figure | None:
    """The parts of a training step, stacked; the black mark is the whole step."""
    from matplotlib.patches import Patch

    data = measured.table[measured.table["step_p50_ms"].notna()]
    if data.empty:
        return None
    found, title = cut(panels(data, ["N", "B"], TRAINING), "One training step", most=6)
    colours = palette(data["method"])
    bars = max(rows[["method", "world_size"]].drop_duplicates().shape[0] for _, rows in found)
    figure, axes = canvas(len(found), 4.4, 0.3 * bars + 0.8, title)
    names = {"opt_step": "optimizer"}
    for axis, (label, rows) in zip(axes, found, strict=True):
        best = _in_rows(_fastest(rows, "step_p50_ms", ["method", "world_size"]))
        left = pd.Series(0.0, index=best.index)
        for part, colour in PARTS.items():
            width = best[f"step_{part}_p50_ms"].fillna(0.0)
            axis.barh(best.index, width, left=left, color=colour, height=0.72)
            left += width
        axis.plot(
            best["step_p50_ms"], best.index, "|", color="black", markersize=17, markeredgewidth=1.8, clip_on=False
        )
        axis.locator_params(axis="x", nbins=5)
        axis.set(xlabel="ms (p50)", xlim=(0, 1.05 * max(left.max(), best["step_p50_ms"].max())))
        axis.set_title(label, fontsize="small")
        _name_rows(axis, best, colours, bars)
    legend(figure, [Patch(color=colour, label=names.get(part, part)) for part, colour in PARTS.items()])
    return figure


def drift(measured: Measured) -> Figure | None:
    """Relative error of Y against the number of steps; dashed, what a dense layer in the same dtype drifts."""
    import seaborn as sns
    from matplotlib.lines import Line2D

    data = measured.drift
    if data.empty:
        return None
    found, title = cut(panels(data, ["N", "B"], ["mode"]), "Drift from exact arithmetic")
    colours, order = palette(data["method"]), _ordered(data)
    widths = {name: 4.0 - 2.8 * i / max(1, len(order) - 1) for i, name in enumerate(order)}  # equal curves stay visible
    figure, axes = canvas(len(found), 4.4, 3.3, title)
    for axis, (label, rows) in zip(axes, found, strict=True):
        sns.lineplot(
            rows,
            x="step",
            y="error",
            hue="method",
            style="world_size",
            units="folder",
            estimator=None,
            palette=colours,
            dashes={p: dashes(p) or "" for p in set(rows["world_size"])},
            size="method",
            sizes=widths,
            hue_order=order,
            size_order=order,
            legend=False,
            ax=axis,
        )
        dense = rows.groupby("step")["dense_error"].median()
        axis.plot(dense.index, dense, color="#b0b0b0", lw=1.4, ls=(0, (6, 3)), zorder=5)
        log_axes(axis, y=True)
        axis.set(xlabel="step", ylabel="relative error of Y")
        axis.set_title(label, fontsize="small")
    reference = Line2D([], [], color="#b0b0b0", lw=1.4, ls=(0, (6, 3)), label="dense, same dtype")
    legend(figure, [*method_handles(colours, order), reference, *rank_handles(data["world_size"])])
    return figure


FIGURES = (
    Plot(
        "throughput",
        "Throughput",
        "Higher is faster: the 2·B·N·K operations of the whole product over the median forward time, all ranks "
        "together; where several kernels or masks were measured, the fastest counts.",
        throughput,
    ),
    Plot(
        "floor",
        "Distance from the roofline",
        "A point on the thick line takes exactly the least time that the machine's calibrated rates allow; the thin "
        "lines are 2, 10 and 100 times that, and a point below it was served from a cache.",
        floor,
    ),
    Plot(
        "training_step",
        "Where a training step goes",
        "Shorter is better: the coloured parts are timed inside the step, each with its own clock, the black mark is "
        "the whole step timed by itself; of several kernels or masks, the fastest is drawn.",
        training_step,
    ),
    Plot(
        "drift",
        "Drift",
        "One line a run: the error against float64 as it feeds back step by step; a line on the dashed one drifts no "
        "more than a dense layer in the same dtype.",
        drift,
    ),
)


def _fastest(rows: pd.DataFrame, column: str, by: list[str]) -> pd.DataFrame:
    return rows.loc[rows.groupby(by)[column].idxmin()]


def _ordered(data: pd.DataFrame) -> list[str]:
    """The methods in the order of the table, ours first."""
    names = set(data["method"])
    return [*(name for name in METHODS if name in names), *sorted(names - set(METHODS))]


def _in_rows(best: pd.DataFrame) -> pd.DataFrame:
    """One horizontal bar a row, by world size, then in the methods' order."""
    order = {name: i for i, name in enumerate(_ordered(best))}
    return best.assign(_m=best["method"].map(order)).sort_values(["world_size", "_m"]).reset_index(drop=True)


def _name_rows(axis: Axes, rows: pd.DataFrame, colours: dict[str, str], slots: int) -> None:
    """Methods in their colours beside the bars, which are as thick in a panel of few bars as in the fullest."""
    several = rows["world_size"].nunique() > 1 or rows["world_size"].iloc[0] != 1
    names = [f"{m}, {ranks(p)}" if several else m for m, p in zip(rows["method"], rows["world_size"], strict=True)]
    axis.set_yticks(rows.index, names, fontsize="small")
    for text, method in zip(axis.get_yticklabels(), rows["method"], strict=True):
        text.set_color(colours[method])
    axis.set_ylim(slots - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def _bars(axis: Axes, best: pd.DataFrame, column: str, colours: dict[str, str], slots: int) -> None:
    rows = _in_rows(best)
    bars = axis.barh(rows.index, rows[column], color=[colours[name] for name in rows["method"]], height=0.72)
    axis.bar_label(bars, fmt=lambda value: f"{value:.3g}", padding=3, fontsize="small")
    axis.margins(x=0.15)
    _name_rows(axis, rows, colours, slots)


def _lines(axis: Axes, best: pd.DataFrame, column: str, colours: dict[str, str]) -> None:
    import seaborn as sns

    worlds = set(best["world_size"])
    sns.lineplot(
        best,
        x="N",
        y=column,
        hue="method",
        style="world_size",
        palette=colours,
        markers={p: marker(p) for p in worlds},
        dashes={p: dashes(p) or "" for p in worlds},
        legend=False,
        ax=axis,
    )
    size_axis(axis, best["N"])
    if best[column].max() > 10 * best[column].min():
        log_axes(axis, y=True)
    else:
        axis.set_ylim(bottom=0)
