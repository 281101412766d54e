"""The memory/time front of compiled training: what a lower peak costs, ours against every way that PyTorch offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps.report.figures.recomputation.methods import GIB, LABEL, panels_of
from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.shared.labels import Label, place
from sweeps.report.figures.shared.panels import canvas, cut, legend, name_panel
from sweeps.report.figures.shared.style import BLUE, INK, ORANGE, PINK, SKY, VERMILION, VIOLET
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.compiled_front import (
    AUTOMATIC,
    BLOCKS,
    BUDGET,
    KERNELS,
    LOSS,
    MODE,
    OURS,
    PLAIN,
    SELECTIVE,
    STEP,
    envelope,
    front,
    host_bound,
    verdict,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Kind of a baseline -> marker, size and colour.
LOOKS = {
    PLAIN: ("*", 13, INK),
    BUDGET: ("s", 6, SKY),
    BLOCKS: ("^", 7, BLUE),
    SELECTIVE: ("D", 5.5, VIOLET),
    LOSS: ("P", 8, "#1b9e9e"),
    MODE: ("X", 8, PINK),
}
OUR_COLOURS = (VERMILION, ORANGE, "#8c6d31", "#b03a5b")
FAR = 1.1  # of the slowest step that counts: what takes longer is drawn at the edge
CARETUP = 6  # matplotlib's marker
SHORT = {"attention": "att", "projection": "proj", "mlp_in": "mlp"}


def select(data: ReportData) -> pd.DataFrame:
    """Every measured point of compiled steps."""
    return front(data.recomputed)


def draw(data: pd.DataFrame) -> Figure:
    """Step time against peak memory, one panel a model and setting; where the host delayed any step, the kernels' time
    to the right of each."""
    every = list(panels_of(data, also=("B",)))
    several = [(panel, rows) for panel, rows in every if len(rows) > 1]  # one mark compares nothing
    panels, title = cut(several or every, _title(data))
    times = {STEP: "step (p50), ms"} | ({KERNELS: "kernels of a step, ms"} if host_bound(data).any() else {})
    found = [(panel, rows, time, name) for panel, rows in panels for time, name in times.items()]
    variants = sorted(set(data.loc[data["kind"] == OURS, "options"]))
    colours = dict(zip(variants, OUR_COLOURS * len(variants), strict=False))
    width, height = (10.2, 5.2) if len(found) == 1 else (6.5, 4.6)
    figure, axes = canvas(len(found), width, height, title, columns=len(times) if len(times) > 1 else None)
    for axis, (panel, rows, time, name) in zip(axes, found, strict=True):
        _draw_panel(axis, rows, colours, time)
        axis.set_ylabel(name)
        name_panel(axis, panel)
    legend(figure, _handles(data, colours))
    return figure


def _title(data: pd.DataFrame) -> str:
    said = verdict(data)
    return said[:1].upper() + said[1:] if said else "Memory and time of one compiled step"


def _draw_panel(axis: Axes, rows: pd.DataFrame, colours: dict[str, str], time: str) -> None:
    rows, labels = _cut_off(axis, rows, time)
    border = envelope(rows[rows["kind"].isin(AUTOMATIC) & rows["alike"]], time)
    axis.plot(border[:, 0] / GIB, border[:, 1], color=BLUE, lw=1.2, ls=(0, (4, 2)), zorder=1)
    for kind, (marker, size, colour) in LOOKS.items():
        points = rows[rows["kind"] == kind]
        for alike, fill in ((True, colour), (False, "none")):
            some = points[points["alike"] == alike]
            style: dict[str, Any] = {"ls": "", "marker": marker, "ms": size, "mfc": fill, "mec": colour}
            axis.plot(some["peak_bytes"] / GIB, some[time], zorder=3, **style)
        labels += _labels(points, time, _short, LABEL, important=True)
    for variant, colour in colours.items():
        points = rows[(rows["kind"] == OURS) & (rows["options"] == variant)].sort_values("peak_bytes")
        counted = points[points["alike"]]
        axis.plot(
            counted["peak_bytes"] / GIB,
            counted[time],
            color=colour,
            lw=1.8 if len(counted) > 2 else 0,
            marker="o",
            ms=5,
            zorder=4,
        )
        wrong = points[~points["alike"]]
        axis.plot(wrong["peak_bytes"] / GIB, wrong[time], ls="", marker="o", mfc="none", mec=colour, zorder=4)
        labels += _labels(points, time, str, LABEL, important=False)
    axis.margins(x=0.08, y=0.1)
    axis.set(xlabel="peak allocated, GiB")
    place(axis, labels)


def _cut_off(axis: Axes, rows: pd.DataFrame, time: str) -> tuple[pd.DataFrame, list[Label]]:
    """The rows with what is far slower than all that counts moved to the upper edge, and labels with their times: one
    such baseline would press the rest together."""
    counted = rows[rows["alike"] & rows["kind"].isin((OURS, *AUTOMATIC))][time]
    top = FAR * counted.max() if len(counted) else float("inf")
    far = rows[rows[time] > top]
    places = zip(far["peak_bytes"] / GIB, far["label"], far[time], strict=True)
    labels = [Label(float(x), top, f"{text} {ms:.0f} ms", LABEL) for x, text, ms in places]
    axis.plot(far["peak_bytes"] / GIB, [top] * len(far), ls="", marker=CARETUP, ms=8, color=LABEL, zorder=5)
    return rows.drop(far.index), labels


def _labels(points: pd.DataFrame, time: str, words: Callable[[str], str], colour: str, important: bool) -> list[Label]:
    places = zip(points["peak_bytes"] / GIB, points[time], points["label"], strict=True)
    return [Label(float(x), float(y), words(text), colour, important) for x, y, text in places]


def _short(label: str) -> str:
    for name, short in SHORT.items():
        label = label.replace(name, short)
    return label


def _handles(data: pd.DataFrame, colours: dict[str, str]) -> list[Artist]:
    from matplotlib.lines import Line2D

    kinds = set(data["kind"])
    handles: list[Artist] = [
        Line2D(
            [], [], color=colour, lw=1.8, marker="o", ms=5, label=f"{OURS}: {variant or 'recompute_compiled'} (budget)"
        )
        for variant, colour in colours.items()
    ]
    words = {BUDGET: f"{BUDGET} (its value)", BLOCKS: f"{BLOCKS} (how many)", SELECTIVE: f"{SELECTIVE} (what is saved)"}
    handles += [
        Line2D([], [], color=colour, ls="", marker=marker, ms=size, label=words.get(kind, kind))
        for kind, (marker, size, colour) in LOOKS.items()
        if kind in kinds
    ]
    if kinds & {BUDGET, BLOCKS}:  # with torch.compile alone it is a point
        handles.append(Line2D([], [], color=BLUE, lw=1.2, ls=(0, (4, 2)), label="lower envelope of the automatic ways"))
    if not data["alike"].all():
        handles.append(
            Line2D(
                [], [], color="#555555", ls="", marker="o", mfc="none", label="hollow: wrong gradients or statistics"
            )
        )
    return handles


COMPILED_FRONT = FigureSpec(
    "compiled_front",
    "Memory and time of compiled training",
    "Nearer to the lower left corner is better: each mark is a compiled training step, ours at its memory budgets and "
    "the ways that PyTorch offers; the dashed line joins what the automatic ones reach (torch.compile alone, its "
    "activation_memory_budget, torch.utils.checkpoint around some of the blocks), and a hollow mark is a step whose "
    "gradients or batch-norm statistics are not those of torch.compile alone. A caret at the edge: slower than shown. "
    "Where the host delayed any step by more than 10% of its kernels' time, the kernels' time is shown on the right.",
    select,
    draw,
)
