"""Measured time against the roofline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec, ordered
from sweeps.report.figures.shared.panels import (
    KEYS,
    canvas,
    cut,
    legend,
    log_axes,
    method_handles,
    name_panel,
    panels,
    rank_handles,
)
from sweeps.report.figures.shared.style import marker, palette
from sweeps.report.tables import clocks
from sweeps.report.tables.report_data import ReportData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ISO_TEXT: dict[str, Any] = {"fontsize": "x-small", "color": "#666666", "ha": "center"}


def select(measured: ReportData) -> pd.DataFrame:
    data = measured.table
    data = data[(data["forward_p50_ms"] > 0) & (data["forward_floor_ms"] > 0)]
    kept = ["method", "world_size", "N", "K", "B", "kernel", "mask", "forward_floor_ms", "forward_p50_ms", "bound"]
    return data[[*kept, *(f"forward_{name}" for name in clocks.MARKED), *KEYS]]


def floor(data: pd.DataFrame) -> Figure:
    """Forward time against the least time the machine allows for it, every row of the table a point."""
    import seaborn as sns

    found, title = cut(panels(data, []), _message(data))
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
        name_panel(axis, label, pad=16)
    handles = method_handles(colours, ordered(data["method"]), line=False)
    legend(figure, [*handles, *rank_handles(data["world_size"], line=False)])
    return figure


def _message(data: pd.DataFrame) -> str:
    """`Forward time: block_shock takes 2.4 times its roofline floor (median of 24), dense_tp_row 1.9 times`."""
    over = (data["forward_p50_ms"] / data["forward_floor_ms"]).groupby(data["method"]).agg(["median", "size"])
    first = "block_shock" if "block_shock" in over.index else str(over["median"].idxmin())
    text = f"Forward time: {first} takes {over['median'][first]:.1f} times its roofline floor"
    text += f" (median of {over['size'][first]})" * bool(over["size"][first] > 1)
    rival = "dense_tp_row"
    return text if rival not in over.index or first == rival else f"{text}, {rival} {over['median'][rival]:.1f} times"


FLOOR = FigureSpec(
    "floor",
    "Distance from the roofline",
    "A point on the thick line takes exactly the least time that the machine's calibrated rates allow; the thin "
    "lines are 2, 10 and 100 times that, and a point below it was served from a cache.",
    select,
    floor,
)
