"""The phase diagram: the sparse speedup at which each family breaks even, by N and B, with the measured cells on it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.shared.panels import canvas, legend, size_axis
from sweeps.report.figures.shared.style import BLUE, VERMILION
from sweeps.report.tables import clocks
from sweeps.report.tables.benchmarks import SETTING
from sweeps.report.tables.diagram.phase_diagram import (
    FAMILIES,
    FASTER,
    HALVES,
    ITEMSIZE,
    OPEN,
    RATES,
    SLOWER,
    phase_diagram,
    s_even,
)
from sweeps.report.tables.report_data import ReportData
from sweeps.text import ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = (0.0, 1.0, 1.25, 1.5, 1.75, 2.0)
SHADES = ("#f6f6f3", "#e4e4df", "#cfcfc8", "#b6b6ad", "#9c9c92")  # grey, so that the marks stand out
NEVER, HATCH = "#f6f6f3", "#85857b"
MARKS = {
    FASTER: (BLUE, "measured faster than the best dense method"),
    OPEN: ("#fefefe", "undecided"),
    SLOWER: (VERMILION, "measured slower"),
}
BY_NAME = {family.name: family for family in (HALVES, *FAMILIES.values())}
GRID = 240  # points along each axis


def select(measured: ReportData) -> pd.DataFrame:
    """Square weights."""
    found = phase_diagram(measured.runs)
    return found if found.empty else found[found["K"].eq(found["N"])].reset_index(drop=True)


def diagram(data: pd.DataFrame) -> Figure:
    """N against B, a row of panels per setting and number of ranks, a panel per family."""
    data = data.assign(_family=data["family"].map({name: place for place, name in enumerate(BY_NAME)}))
    keys = [*SETTING, "world_size", "_family", "family"]
    places = data[keys].drop_duplicates().sort_values(keys)
    figure, axes = canvas(len(places), 5.2, 4.6, _message(data), min(len(places), data["family"].nunique()))
    shades: list[Any] = []
    for axis, place in zip(axes, places.to_dict("records"), strict=True):
        rows = data[(data[keys] == pd.Series(place)).all(axis=1)]
        shades.append(_shades(axis, rows))
        _cells(axis, rows)
        extra = [str(place[key]) for key in SETTING if data[key].nunique() > 1]
        kept = rows["energy_kept"].median()
        pruned = [] if pd.isna(kept) else [f"{100 * kept:.0f}% of the energy kept"]
        named = [place["family"], *pruned, ranks(place["world_size"]), *extra]
        axis.set_title(textwrap.fill(", ".join(named), 58))
        axis.title.set_fontsize("small")
    bar = figure.colorbar(shades[0], ax=figure.axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_ticks(list(LEVELS[1:]), labels=[f"{level:g}" for level in LEVELS[1:]])
    bar.set_label("sparse speedup s at which it breaks even, by the model", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    legend(figure, _handles(data))
    return figure


def _handles(data: pd.DataFrame) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    seen = [MARKS[name] for name in MARKS if (data["decided"] == name).any()]
    look: dict[str, Any] = {"ls": "", "marker": "o", "ms": 8, "mec": "#161616"}
    found: list[Any] = [Line2D([], [], mfc=colour, label=text, **look) for colour, text in seen]
    if np.isinf(data["s_even"]).any():
        found.append(Patch(facecolor=NEVER, edgecolor=HATCH, hatch="///", label="no s is enough: bytes take longer"))
    found += [Line2D([], [], ls="", label=text) for text in clocks.marks_of(data)]
    return found


def _shades(axis: Axes, rows: pd.DataFrame) -> Any:
    """The model over all sizes between the measured ones, and a bit beyond."""
    one = rows.iloc[-1]
    B, N = (np.geomspace(rows[name].min() / 1.6, rows[name].max() * 1.6, GRID) for name in ("B", "N"))
    across, up = np.meshgrid(B, N)
    rates = {name: float(rows[name].median()) for name in RATES}
    family, itemsize = BY_NAME[str(one["family"])], ITEMSIZE[str(one["dtype"])]
    s = np.asarray(s_even(family, int(one["world_size"]), up, up, across, itemsize, rates))
    never = np.isinf(s)
    filled = axis.contourf(across, up, np.ma.masked_where(never, np.minimum(s, 2.0)), levels=LEVELS, colors=SHADES)
    if (~never).any():
        axis.contour(across, up, np.where(never, np.nan, s), levels=LEVELS[1:-1], colors="#161616", linewidths=0.8)
    if never.any():
        area = axis.contourf(across, up, never.astype(float), levels=[0.5, 1.5], colors=[NEVER], hatches=["///"])
        area.set_edgecolor(HATCH)
        area.set_linewidth(0)
    size_axis(axis, rows["B"])
    axis.set_yscale("log", base=2)
    axis.set_yticks(sorted(set(rows["N"])), [str(size) for size in sorted(set(rows["N"]))])
    axis.minorticks_off()
    axis.tick_params(labelsize="small")
    axis.set(xlabel="B", ylabel="N = K", xlim=(B[0], B[-1]), ylim=(N[0], N[-1]))
    axis.grid(visible=False)
    return filled


def _cells(axis: Axes, rows: pd.DataFrame) -> None:
    """Each measured cell: the ratio, and the s that it would have needed."""
    colours = [MARKS[str(decided)][0] for decided in rows["decided"]]
    axis.scatter(rows["B"], rows["N"], s=60, c=colours, edgecolors="#161616", linewidths=0.9, zorder=5)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "#fefefe", "edgecolor": "none", "alpha": 0.85}
    look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 6.8, "color": "#010101", "bbox": box, "zorder": 6}
    for row in rows.to_dict("records"):
        s = "" if np.isinf(row["s_even"]) else "\ns < 1" if row["s_even"] < 1 else f"\ns {row['s_even']:.2f}"
        place = (row["B"], row["N"])
        sign = clocks.mark(row["power_cap"], row["slowdown"])
        axis.annotate(f"{row['ratio']:.2f}×{sign}{s}", place, xytext=(0, -6), textcoords="offset points", **look)


def _message(data: pd.DataFrame) -> str:
    said: list[str] = []
    for family in [name for name in BY_NAME if (data["family"] == name).any()]:
        rows = data[data["family"] == family]
        faster = int((rows["decided"] == FASTER).sum())
        low, high = rows["ratio"].min(), rows["ratio"].max()
        first = not said
        sizes = f"at {faster} of {len(rows)}{' sizes' * first} ({low:.2f} to {high:.2f}{' times its time' * first})"
        said.append(f"{family} are faster {sizes}" if first else f"{family} {sizes}")
    return f"Next to the best dense method, {', '.join(said)}"


PHASE_DIAGRAM = FigureSpec(
    "phase_diagram",
    "Phase diagram: where 2:4 splits break even with dense tensor parallelism",
    "Shades are the sparse speedup s over a dense matmul at which a family takes as long as row-parallel, by the model "
    "max(compute, memory, link) with the machine's calibrated rates. Marks are measured forwards: their time over the "
    "fastest dense method's in the same job, and the s that they would have needed. An outcome holds in every process "
    "or, without repeats, in every round.",
    select,
    diagram,
)
