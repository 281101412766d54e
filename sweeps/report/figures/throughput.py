"""Throughput of the forward pass against the size of the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec, fastest, in_rows, ordered
from sweeps.report.figures.shared.panels import (
    KEYS,
    canvas,
    cut,
    interval_bars,
    legend,
    log_axes,
    method_handles,
    name_panel,
    name_rows,
    panels,
    rank_handles,
    size_axis,
)
from sweeps.report.figures.shared.style import dashes, marker, palette
from sweeps.report.tables import clocks
from sweeps.report.tables.report_data import ReportData
from sweeps.text import number, ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def select(measured: ReportData) -> pd.DataFrame:
    """The fastest forward of each method, size and world size, in TFLOP/s, with its interval."""
    data = measured.table[measured.table["forward_p50_ms"].notna()]
    best = fastest(data, "forward_p50_ms", [*KEYS, "N", "K", "B", "world_size", "method"])
    operations = 2e-9 * best["B"] * best["N"] * best["K"]  # in units of TFLOP·ms/s
    best = best.assign(tflops_lo=operations / best["forward_hi_ms"], tflops_hi=operations / best["forward_lo_ms"])
    kept = ["method", "world_size", "N", "K", "B", "kernel", "mask", "forward_p50_ms", "tflops", "tflops_lo"]
    return best[[*kept, "tflops_hi", "forward_repeated", *(f"forward_{name}" for name in clocks.MARKED), *KEYS]]


def throughput(data: pd.DataFrame) -> Figure:
    """Operations of the whole matmul over the forward time, against N; bars in a panel of one N."""
    found, title = cut(panels(data, ["B"]), _message(data))
    colours = palette(data["method"])
    lines = any(rows["N"].nunique() > 2 for _, rows in found)  # two points are no curve
    bars = max(rows[["method", "world_size"]].drop_duplicates().shape[0] for _, rows in found)
    figure, axes = canvas(len(found), 4.2, 3.2 if lines else 0.32 * bars + 0.7, title)
    for axis, (label, rows) in zip(axes, found, strict=True):
        best = fastest(rows, "forward_p50_ms", ["method", "world_size", "N"])
        small = best["tflops"].max() < 1
        for end in ("", "_lo", "_hi"):
            best[f"rate{end}"] = best[f"tflops{end}"] * (1000 if small else 1)
        unit = "GFLOP/s" if small else "TFLOP/s"
        if best["N"].nunique() > 2:
            _lines(axis, best, "rate", colours)
            interval_bars(axis, best, "N", "rate", colours)
            axis.set(xlabel="N", ylabel=unit)
        else:
            best = best[best["N"] == best["N"].max()]
            _bars(axis, best, "rate", colours, bars)
            axis.set_xlabel(unit)
            label = f"N = {best['N'].iloc[0]}, {label}"
        name_panel(axis, label)
    if lines:
        legend(figure, [*method_handles(colours, ordered(data["method"])), *rank_handles(data["world_size"])])
    return figure


def _message(data: pd.DataFrame) -> str:
    best = data.iloc[int(data["tflops"].to_numpy().argmax())]
    return (
        f"Forward throughput: at most {number(best['tflops'])} TFLOP/s, {best['method']} on {ranks(best['world_size'])}"
    )


def _bars(axis: Axes, best: pd.DataFrame, column: str, colours: dict[str, str], slots: int) -> None:
    rows = in_rows(best)
    axis.barh(rows.index, rows[column], color=[colours[name] for name in rows["method"]], height=0.72)
    reach = rows[[column, f"{column}_hi"]].max(axis=1)
    edges = [(rows[column] - rows[f"{column}_lo"]).clip(lower=0), (rows[f"{column}_hi"] - rows[column]).clip(lower=0)]
    axis.errorbar(rows[column], rows.index, xerr=edges, fmt="none", ecolor="#8a8a8a", capsize=3, lw=1.2)
    for i, value in enumerate(rows[column]):
        axis.annotate(number(value), (reach[i], i), (4, 0), textcoords="offset points", va="center", fontsize="small")
    axis.set_xlim(0, 1.18 * reach.max())
    name_rows(axis, rows, slots)


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


THROUGHPUT = FigureSpec(
    "throughput",
    "Throughput",
    "Higher is faster: the 2·B·N·K operations of the whole matmul over the median forward time, all ranks "
    "together, with 95% intervals over repeats where there are five; where several kernels or masks were measured, "
    "the fastest counts, and of fewer than three N the largest is drawn.",
    select,
    throughput,
)
