"""The hypotheses' comparisons: Block-Shock's time over its rival's at each size, with its interval."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.shared.panels import canvas, cut, legend, name_panel
from sweeps.report.figures.shared.style import BLUE, INK, ORANGE, VERMILION
from sweeps.report.tables.intervals import EQUAL, FASTER, OPEN, SAME, SLOWER
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.verdicts import verdicts
from sweeps.text import ranks, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AGAINST = {  # hypothesis → what takes time, and beside what
    "H1": ("forward", "the faster dense method"),
    "H2": ("training step", "row-parallel"),
    "H3": ("forward", "the split with its zeros"),
}
COLOURS = {FASTER: BLUE, EQUAL: INK, SLOWER: VERMILION, OPEN: ORANGE}
MARKS = {FASTER: "v", EQUAL: "o", SLOWER: "^", OPEN: "s"}
MOST = 30  # comparisons of a panel: of more the largest sizes


def select(measured: ReportData) -> pd.DataFrame:
    """A row per comparison of H1 to H3, with the verdict."""
    found = [
        verdict.evidence.assign(
            hypothesis=verdict.name, outcome=verdict.outcome, hardware=verdict.hardware, subject=verdict.subject
        )
        for verdict in verdicts(measured.table, measured.drift)
        if verdict.name in AGAINST and len(verdict.evidence)
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def intervals(data: pd.DataFrame) -> Figure:
    from matplotlib.lines import Line2D

    groups = list(data.groupby(["hardware", "subject", "hypothesis"], sort=False))
    several = data["hardware"].nunique() > 1
    found = [
        (f"{machine}\n" * several + f"{subject}\n" * bool(subject) + _said(str(name), rows), rows.tail(MOST))
        for (machine, subject, name), rows in groups
    ]
    found, title = cut(found, "Block-Shock's time over its rival's (below 1 is faster)")
    tallest = max(len(rows) for _, rows in found)
    figure, axes = canvas(len(found), 4.6, 1.1 + 0.24 * tallest, title)
    for axis, (label, rows) in zip(axes, found, strict=True):
        _panel(axis, rows.reset_index(drop=True), tallest)
        name_panel(axis, label)
    shown = [decision for decision in COLOURS if (data["decided"] == decision).any()]
    legend(
        figure,
        [
            Line2D(
                [], [], color=COLOURS[d], marker=MARKS[d], linestyle="", label=f"{d} (95% interval)" if d != OPEN else d
            )
            for d in shown
        ]
        + [Line2D([], [], color="#bbbbbb", lw=6, label=f"within {SAME:.0%}: the same")],
    )
    return figure


def _panel(axis: Axes, rows: pd.DataFrame, slots: int) -> None:
    axis.axvspan(1 - SAME, 1 + SAME, color="#bbbbbb", alpha=0.45, lw=0, zorder=0)
    axis.axvline(1.0, color=INK, lw=0.9, zorder=1)
    for decision, part in rows.groupby("decided"):
        kind = str(decision)
        sure = part[part["lo"].notna()]
        edges = [(sure["ratio"] - sure["lo"]).clip(lower=0), (sure["hi"] - sure["ratio"]).clip(lower=0)]
        axis.errorbar(sure["ratio"], sure.index, xerr=edges, fmt="none", color=COLOURS[kind], capsize=2.5, lw=1.4)
        axis.scatter(part["ratio"], part.index, c=COLOURS[kind], marker=MARKS[kind], s=26, zorder=3)
    axis.set_yticks(
        range(len(rows)),
        [_size(row, rows["workload"].nunique() > 1) for row in rows.to_dict("records")],
        fontsize="x-small",
    )
    axis.set_ylim(slots - 0.4, -0.6)
    axis.set_xlabel("ratio of median times")
    axis.grid(visible=False, axis="y")


def _size(row: dict[Hashable, Any], several: bool) -> str:
    """`several`: of more than one workload, so that its name comes first."""
    name = f"{str(row['workload']).partition(' (')[0]}, " * several
    return f"{name}N={row['N']} B={row['B']}, {ranks(row['world_size'])}"


def _said(hypothesis: str, rows: pd.DataFrame) -> str:
    """The panel's message: `H1 refuted: forward 0 to 11% slower than the faster dense method`."""
    what, rival = AGAINST[hypothesis]
    found = span(rows["ratio"].min(), rows["ratio"].max())
    return f"{hypothesis} {rows['outcome'].iloc[0]}: {what}\n{found} than {rival}"


HYPOTHESES = FigureSpec(
    "hypotheses",
    "Block-Shock against what one would use otherwise",
    "Right of 1 Block-Shock is slower. A bar is the 95% interval of the ratio, for all comparisons of a hypothesis "
    "together; inside the grey band the two take the same time within 2%.",
    select,
    intervals,
)
