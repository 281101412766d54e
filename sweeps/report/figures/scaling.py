"""Speedups: over the sizes as heat maps, and over the world sizes as strong scaling."""

from __future__ import annotations

import textwrap
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec, fastest, ordered
from sweeps.report.figures.shared.heat_map import colour_bar, most_sizes, ratio_map
from sweeps.report.figures.shared.panels import (
    KEYS,
    canvas,
    cut,
    interval_bars,
    legend,
    log_axes,
    method_handles,
    name_panel,
    panels,
    size_axis,
)
from sweeps.report.figures.shared.style import marker, palette
from sweeps.report.tables import clocks
from sweeps.report.tables.layers import TRAINING
from sweeps.report.tables.report_data import ReportData
from sweeps.text import ranks, span

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def select_speedup(measured: ReportData, speedup: str, baseline: str) -> pd.DataFrame:
    """The fastest forward of each method, size and world size beside the baseline; only maps of two cells or more."""
    data = measured.table[measured.table[speedup].notna() & (measured.table["method"] != baseline)]
    best = fastest(data, "forward_p50_ms", [*KEYS, "N", "K", "B", "world_size", "method"])
    kept = ["method", "world_size", "N", "K", "B", "kernel", "mask", speedup, f"{speedup}_lo", f"{speedup}_hi"]
    best = most_sizes(best[[*kept, *(f"forward_{name}" for name in clocks.MARKED), *KEYS]])
    several = best.groupby(["method", "world_size", "K", *KEYS] if _k(best) else ["method", "world_size", *KEYS])
    return best[several["N"].transform("size") > 1]


def heat_maps(data: pd.DataFrame, speedup: str, title: str) -> Figure:
    """N against B, a panel a method and world size; blue is faster than the baseline."""
    places = {name: i for i, name in enumerate(ordered(data["method"]))}
    data = data.assign(_place=data["method"].map(places))
    ours = data.loc[(data["method"] == "block_shock") & (data["world_size"] > 1), speedup]
    if len(ours):
        title = f"{title}: block_shock is {span(1 / ours.max(), 1 / ours.min())}"
    found, title = cut(panels(data, ["_place", "world_size"]), title, most=9)
    sizes = data[["N", "B"]].nunique()
    figure, axes = canvas(len(found), max(3.1, 0.62 * sizes["B"] + 1.7), 0.42 * sizes["N"] + 1.1, title)
    ends = max(1.25, np.exp(np.abs(np.log(data[speedup])).max()))
    for axis, (_, rows) in zip(axes, found, strict=True):
        cells = rows.pivot_table(index="N", columns="B", values=speedup, aggfunc="max").sort_index(ascending=False)
        ratio_map(axis, cells, ends)
        method, world_size = rows["method"].iloc[0], rows["world_size"].iloc[0]
        extra = [rows[key].iloc[0] for key in ("device", "dtype", "workload") if data[key].nunique() > 1]
        named = ", ".join([f"{method}, {ranks(world_size)}", *extra])
        axis.set_title(textwrap.fill(named, 38), fontsize="small")
    colour_bar(figure, ends, "times as fast (logarithmic; blue is faster)")
    return figure


def select_scaling(measured: ReportData, name: str, prefix: str) -> pd.DataFrame:
    """The fastest of each method, size and world size, where more than one world size was measured."""
    speedup, keys = f"{prefix}speedup", [*KEYS, *(TRAINING if prefix else ())]
    data = measured.table[measured.table[speedup].notna()]
    best = fastest(data, f"{name}_p50_ms", [*keys, "N", "K", "B", "world_size", "method"])
    kept = ["method", "world_size", "N", "K", "B", "kernel", "mask", speedup, f"{speedup}_lo", f"{speedup}_hi"]
    best = best[[*kept, *(f"{name}_{column}" for column in clocks.MARKED), *keys]].rename(columns={speedup: "speedup"})
    best = best.rename(columns={f"{speedup}_lo": "speedup_lo", f"{speedup}_hi": "speedup_hi"})
    return best[best.groupby([*keys, "N", "K", "B"])["world_size"].transform("nunique") > 1]


def strong_scaling(data: pd.DataFrame, title: str) -> Figure:
    """Speedup over the dense layer on one rank, against the number of ranks; grey: ideal."""
    from matplotlib.lines import Line2D

    best = data.iloc[int(data["speedup"].to_numpy().argmax())]
    title += f": at most {best['speedup']:.2f} times one rank ({best['method']} on {ranks(best['world_size'])})"
    found, title = cut(panels(data, ["N", "B"], TRAINING), title)
    colours = palette(data["method"])
    figure, axes = canvas(len(found), 3.8, 3.1, title)
    for axis, (label, rows) in zip(axes, found, strict=True):
        worlds = sorted(set(rows["world_size"]))
        axis.plot(worlds, worlds, color="#9a9a9a", lw=1.2, ls=(0, (5, 3)), zorder=1)
        names = ordered(rows["method"])
        aside = {name: 2 ** (0.035 * (i - (len(names) - 1) / 2)) for i, name in enumerate(names)}  # bars stay apart
        rows = rows.assign(ranks=rows["world_size"] * rows["method"].map(aside))
        for method in names:
            line = rows[rows["method"] == method].sort_values("world_size")
            if len(line) > 2:  # two points are no curve
                axis.plot(line["ranks"], line["speedup"], color=colours[method], lw=1.6, zorder=3)
            for world_size, place, value in zip(line["world_size"], line["ranks"], line["speedup"], strict=True):
                axis.plot([place], [value], marker(world_size), color=colours[method], ms=5.5, zorder=3)
        interval_bars(axis, rows, "ranks", "speedup", colours)
        axis.margins(x=0.1)
        size_axis(axis, worlds)
        log_axes(axis, y=True)
        axis.set(xlabel="ranks", ylabel="× dense_single on 1 rank")
        name_panel(axis, label)
    ideal = Line2D([], [], color="#9a9a9a", lw=1.2, ls=(0, (5, 3)), label="ideal")
    legend(figure, [*method_handles(colours, ordered(data["method"])), ideal])
    return figure


def _k(data: pd.DataFrame) -> bool:
    return bool((data["K"] != data["N"]).any())


HEAT = (
    "Blue is faster, red is slower, and the number says how many times as fast as {} for that size; of several kernels "
    "or masks, the fastest counts."
)
SPEEDUP_OVER_DENSE = FigureSpec(
    "speedup_over_dense",
    "Speedup over the dense layer on one rank",
    HEAT.format("dense_single on one rank"),
    partial(select_speedup, speedup="speedup", baseline="dense_single"),
    partial(heat_maps, speedup="speedup", title="Forward next to dense_single on one rank"),
)
SPEEDUP_OVER_ROW = FigureSpec(
    "speedup_over_row",
    "Speedup over row-parallel",
    HEAT.format("dense_tp_row on the same number of ranks"),
    partial(select_speedup, speedup="speedup_row", baseline="dense_tp_row"),
    partial(
        heat_maps, speedup="speedup_row", title="Forward: times as fast as dense_tp_row on the same number of ranks"
    ),
)
IDEAL = (
    "A line along the grey one would use every further rank fully; below 1, that many ranks are slower than one with "
    "the dense layer. Marks of as many ranks stand side by side; bars are 95% intervals over repeats."
)
SCALING = FigureSpec(
    "strong_scaling",
    "Strong scaling of the forward pass",
    IDEAL,
    partial(select_scaling, name="forward", prefix=""),
    partial(strong_scaling, title="Strong scaling: forward"),
)
STEP_SCALING = FigureSpec(
    "strong_scaling_step",
    "Strong scaling of the training step",
    IDEAL,
    partial(select_scaling, name="step", prefix="step_"),
    partial(strong_scaling, title="Strong scaling: training step"),
)
