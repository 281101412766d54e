"""Where the time of traced training steps goes, of the rank with the longest step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.shared.panels import canvas, cut, legend, name_panel
from sweeps.report.figures.shared.style import PARTS as COLOURS
from sweeps.report.figures.shared.style import SKY
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.traces import PARTS, SETTING, fastest_and_slowest, problem, traces
from sweeps.text import number, ranks, span

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

    groups = [group for _, group in data.groupby(SETTING, dropna=False, sort=False)]
    labels = [f"{problem(group.iloc[0])}, {ranks(int(group['world_size'].iloc[0]))}" for group in groups]
    found, title = cut(list(zip(labels, groups, strict=True)), _title(groups))
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
        name_panel(axis, label)
    drawn = [part for part in PARTS if (data[f"{part}_ms"] > 0.005 * data["step_ms"]).any()]
    legend(figure, [Patch(color=OF_PART[part], label=part.replace("_", " ")) for part in drawn])
    return figure


def _title(groups: Sequence[pd.DataFrame]) -> str:
    """Of the first problem that several methods have; where each has one, the largest part of the longest step."""
    for group in groups:
        compared = fastest_and_slowest(group)
        if compared is not None:
            first, last, ratio = compared
            return f"{last['method']}'s traced step is {span(ratio, ratio)} than {first['method']}'s"
    longest = pd.concat(groups).sort_values("step_ms").iloc[-1]
    largest = max(PARTS, key=lambda part: longest[f"{part}_ms"])
    share = longest[f"{largest}_ms"] / longest["step_ms"]
    return f"{longest['method']}'s traced step: {share:.0%} is {largest.replace('_', ' ')}"


TRACED_STEPS = FigureSpec(
    "traced_steps",
    "Where a traced training step goes",
    "A bar is the median step of the slowest rank, divided by what its device did: exposed communication is the part "
    "of it that no computation hides, and idle is time without any kernel.",
    select,
    draw,
)
