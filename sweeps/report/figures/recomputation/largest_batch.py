"""Throughput at the largest batch against the memory that a training step may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.figures.recomputation.methods import panels_of
from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.shared.labels import Label, place
from sweeps.report.figures.shared.panels import canvas, cut, legend, name_panel
from sweeps.report.figures.shared.style import BLUE, INK, VERMILION, palette
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.largest_batch import batch_text, next_to_torch_compile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GB, OURS = 1e9, "recompute_compiled"


def select(data: ReportData) -> pd.DataFrame:
    return data.largest


def draw(data: pd.DataFrame) -> Figure:
    """Tokens (of images samples) per second against GB; the number at a mark is the batch."""
    from matplotlib.lines import Line2D

    found, title = cut(list(panels_of(data, also=())), _message(data))
    colours = palette(data["variant"]) | dict.fromkeys(data.loc[data["method"] == OURS, "variant"], VERMILION)
    colours |= dict.fromkeys(data.loc[(data["method"] == "torch_compile") & (data["options"] == ""), "variant"], BLUE)
    figure, axes = canvas(len(found), 5.4, 4.2, title)
    for axis, (panel, rows) in zip(axes, found, strict=True):
        column = "tokens_per_s" if rows["tokens_per_s"].notna().all() else "samples_per_s"
        labels: list[Label] = []
        for name, line in rows.groupby("variant"):
            line = line.sort_values("limit_bytes")
            axis.plot(
                line["limit_bytes"] / GB,
                line[column],
                color=colours[str(name)],
                marker="o",
                ms=6,
                lw=1.6 if len(line) > 2 else 0,
            )
            marks = zip(line["limit_bytes"] / GB, line[column], batch_text(line, "+"), strict=True)
            labels += [Label(float(x), float(y), size, INK) for x, y, size in marks]
        axis.set_xticks(sorted(set(rows["limit_bytes"] / GB)))
        axis.set_ylim(bottom=0, top=1.15 * rows[column].max())
        axis.margins(x=0.1)
        axis.set(xlabel="memory, GB", ylabel=column.replace("_per_s", " per second"))
        name_panel(axis, panel)
        place(axis, labels)
    legend(
        figure, [Line2D([], [], color=colours[n], marker="o", lw=1.6, label=n) for n in sorted(set(data["variant"]))]
    )
    return figure


def _message(data: pd.DataFrame) -> str:
    """`At its largest batch recompute_compiled trains 0.81 to 1.90 times as fast as torch_compile`."""
    table = next_to_torch_compile(data)
    ratio = table.loc[table["method"] == OURS, "over_alone"].dropna()
    if ratio.empty:
        return "Throughput at the largest batch"
    low, high = f"{ratio.min():.2f}", f"{ratio.max():.2f}"
    times = low if low == high else f"{low} to {high}"
    return f"At its largest batch {OURS} trains {times} times as fast as torch_compile"


LARGEST_BATCH = FigureSpec(
    "largest_batch",
    "Throughput against memory",
    "Higher is faster: tokens (of image models samples) per second at the largest batch that fits the memory; the "
    "number at a mark is that batch, with + where larger ones were not tried. A method without a mark has no batch "
    "that fits.",
    select,
    draw,
)
