"""Where the time of traced training steps goes, of the rank with the longest step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.shared.panels import canvas, cut, legend
from sweeps.report.figures.shared.style import PARTS as COLOURS
from sweeps.report.figures.shared.style import SKY
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.traces import PARTS, SETTING, problem, traces
from sweeps.text import number, ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_PART = {
    "forward": COLOURS["forward"],
    "backward": COLOURS["backward"],
    "optimizer": COLOURS["opt_step"],
    "other": "#8c6d31",
    "exposed_communication": SKY,
    "idle": COLOURS["rest"],
}


def select(data: ReportData) -> pd.DataFrame:
    return traces(data.traces).drop(columns="folder")


def draw(data: pd.DataFrame) -> Figure:
    """A bar a trace, a panel a problem, as their steps may differ a hundredfold."""
    from matplotlib.patches import Patch

    shares = {part: data[f"{part}_ms"].sum() / data["step_ms"].sum() for part in PARTS}
    largest = max(shares, key=lambda part: shares[part])
    title = f"Traced training steps: {shares[largest]:.0%} of the time is {largest.replace('_', ' ')}"
    groups = [group for _, group in data.groupby(SETTING, dropna=False, sort=False)]
    labels = [f"{problem(group.iloc[0])}, {ranks(int(group['world_size'].iloc[0]))}" for group in groups]
    found, title = cut(list(zip(labels, groups, strict=True)), title)
    bars = max(len(rows) for _, rows in found)
    figure, axes = canvas(len(found), 5.2, 0.36 * bars + 0.9, title)
    for axis, (label, rows) in zip(axes, found, strict=True):
        rows = rows.reset_index(drop=True)
        left = pd.Series(0.0, index=rows.index)
        for part, colour in OF_PART.items():
            axis.barh(rows.index, rows[f"{part}_ms"], left=left, color=colour, height=0.7)
            left += rows[f"{part}_ms"]
        for place, step in enumerate(rows["step_ms"]):
            at = (left[place], place)
            axis.annotate(number(step), at, (4, 0), textcoords="offset points", va="center", fontsize="small")
        axis.set_yticks(rows.index, rows["method"], fontsize="small")
        axis.set(xlabel="ms (median step)", xlim=(0, 1.15 * left.max()), ylim=(bars - 0.4, -0.6))
        axis.grid(visible=False, axis="y")
        axis.set_title(label, fontsize="small")
    drawn = [part for part in PARTS if (data[f"{part}_ms"] > 0.005 * data["step_ms"]).any()]
    legend(figure, [Patch(color=OF_PART[part], label=part.replace("_", " ")) for part in drawn])
    return figure


TRACED_STEPS = FigureSpec(
    "traced_steps",
    "Where a traced training step goes",
    "A bar is the median step of the slowest rank, divided by what its device did: exposed communication is the part "
    "of it that no computation hides, and idle is time without any kernel.",
    select,
    draw,
)
