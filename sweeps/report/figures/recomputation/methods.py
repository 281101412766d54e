"""Memory and time of a model's step with and without recomputation, a method at a time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.shared.labels import Label, place
from sweeps.report.figures.shared.panels import canvas, cut, legend, name_panel
from sweeps.report.figures.shared.style import RECOMPUTATION, palette
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.compiled_front import METHODS as COMPILED
from sweeps.report.tables.steps.recomputation import KEEP_ALL, SETTING, bound, smallest, trained_on

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

GIB = 2**30
MARKS = dict(zip(RECOMPUTATION, ("*", "P", "v", "^", "s", "o"), strict=True))
DRAWN = ["variant", "budget", "peak_bytes", "static_bytes", "step_p50_ms", "step_lo_ms", "step_hi_ms"]


def select_bars(measured: ReportData) -> pd.DataFrame:
    """Each method at its smallest peak, in settings where more than one method was measured."""
    best = smallest(not_compiled(measured.recomputed))
    several = best.groupby(list(SETTING))["variant"].transform("nunique") > 1
    return best.loc[several, [*SETTING, *DRAWN]]


def not_compiled(table: pd.DataFrame) -> pd.DataFrame:
    """Without what the front of compiled training shows, where each way is a single point."""
    return table[~table["method"].isin(COMPILED)]


def bars(data: pd.DataFrame, column: str, unit: float, label: str, title: str) -> Figure:
    """Groups of bars, one a batch size; a panel a model and setting."""
    from matplotlib.patches import Patch

    found, title = cut(list(panels_of(data, also=())), f"{title}{_next_to_keep_all(data, column)}")
    names, colours = _order(data), palette(data["variant"])
    groups = max(rows["B"].nunique() for _, rows in found)
    figure, axes = canvas(len(found), max(3.8, 0.11 * len(names) * groups + 1.2), 3.1, title)
    for axis, (panel, rows) in zip(axes, found, strict=True):
        batches = sorted(set(rows["B"]))
        width = 0.84 / len(names)
        for i, name in enumerate(names):
            part = rows[rows["variant"] == name].drop_duplicates("B")
            places = part["B"].map(batches.index) + (i - (len(names) - 1) / 2) * width
            axis.bar(places, part[column] / unit, width=width, color=colours[name], linewidth=0)
            if column == "step_p50_ms" and part["step_lo_ms"].notna().any():
                reach = [part[column] - part["step_lo_ms"], part["step_hi_ms"] - part[column]]
                axis.errorbar(
                    places, part[column], [side.clip(lower=0) for side in reach], fmt="none", ecolor="#8a8a8a"
                )
        axis.set_xticks(range(len(batches)), [f"{batch:.0f}" for batch in batches])
        axis.grid(visible=False, axis="x")
        spare = 0.5 * (min(groups, 3) - min(len(batches), 3)) + 0.5  # one batch's bars are no wider than three's
        axis.set(xlabel="batch size", ylabel=label, xlim=(-spare, len(batches) - 1 + spare))
        name_panel(axis, panel)
    legend(figure, [Patch(color=colours[name], label=name) for name in names])
    return figure


def select_pareto(measured: ReportData) -> pd.DataFrame:
    """Every measured point of the batch size with the most of them (of equals the largest), two or more, for each model
    and setting; and the bound's, as `variant` "LP bound"."""
    table = not_compiled(measured.recomputed)
    points = table[table["peak_bytes"].notna() & table["step_p50_ms"].notna()]
    counts = points.groupby(list(SETTING)).size().rename("points").reset_index().sort_values(["points", "B"])
    fullest = counts[counts["points"] > 1].drop_duplicates([key for key in SETTING if key != "B"], keep="last")
    points = points.merge(fullest[list(SETTING)], on=list(SETTING))
    line = bound(table).rename(columns={"budget_bytes": "peak_bytes", "bound_ms": "step_p50_ms"})
    line = line.merge(points[list(SETTING)].drop_duplicates(), on=list(SETTING)).assign(variant=BOUND)
    parts = [points[[*SETTING, *DRAWN]], line]
    return pd.concat([part for part in parts if not part.empty]) if not points.empty else points[[*SETTING, *DRAWN]]


def pareto(data: pd.DataFrame) -> Figure:
    """Step time against peak memory; a line joins one method's budgets, the dashed line is the bound."""
    from matplotlib.lines import Line2D

    found, title = cut(list(panels_of(data, also=("B",))), _message(data), most=9)
    names, colours = _order(data[data["variant"] != BOUND]), palette(data["variant"])
    figure, axes = canvas(len(found), 4.4, 3.5, title)
    for axis, (panel, rows) in zip(axes, found, strict=True):
        labels: list[Label] = []
        for name in names:
            line = rows[rows["variant"] == name].sort_values("peak_bytes")
            shown = [
                f"{b:g}" if isinstance(b, int | float) else "" for b in line["budget"]
            ]  # a size is the mark's place
            labels += [
                Label(x, y, text, LABEL, important=False)
                for x, y, text in zip(line["peak_bytes"] / GIB, line["step_p50_ms"], shown, strict=True)
            ]
            axis.plot(
                line["peak_bytes"] / GIB,
                line["step_p50_ms"],
                color=colours[name],
                marker=MARKS.get(name, "D"),
                ms=11 if name == KEEP_ALL else 6,
                lw=1.2 if len(line) > 2 else 0,  # two points are no curve
                alpha=0.9,
            )
        line = rows[rows["variant"] == BOUND].sort_values("peak_bytes")
        axis.plot(line["peak_bytes"] / GIB, line["step_p50_ms"], color=LP, lw=1.4, ls=(0, (4, 2)))
        axis.margins(0.1)
        axis.set(xlabel="peak memory, GiB", ylabel="step (p50), ms")
        place(axis, labels)
        name_panel(axis, panel)
    handles: list[Artist] = [
        Line2D([], [], color=colours[name], marker=MARKS.get(name, "D"), lw=1.2, label=name) for name in names
    ]
    if (data["variant"] == BOUND).any():
        handles.append(Line2D([], [], color=LP, lw=1.4, ls=(0, (4, 2)), label=BOUND))
    legend(figure, handles)
    return figure


def _next_to_keep_all(data: pd.DataFrame, column: str) -> str:
    """`: recompute_optimal's is 0.25 to 0.62 times keep_all's`."""
    each = data.groupby([*SETTING, "variant"])[column].min().unstack("variant")
    if not {KEEP_ALL, "recompute_optimal"} <= set(each):
        return ""
    ratio = (each["recompute_optimal"] / each[KEEP_ALL]).dropna()
    low, high = f"{ratio.min():.2f}", f"{ratio.max():.2f}"
    return f": recompute_optimal's is {low if low == high else f'{low} to {high}'} times keep_all's"


def _message(data: pd.DataFrame) -> str:
    """`Memory and time of one step: recompute_optimal needs 25 to 62% of keep_all's peak`."""
    least = data.groupby([*SETTING, "variant"])["peak_bytes"].min().unstack("variant")
    if not {KEEP_ALL, "recompute_optimal"} <= set(least):
        return "Memory and time of one step"
    shares = (least["recompute_optimal"] / least[KEEP_ALL]).dropna()
    low, high = f"{100 * shares.min():.0f}", f"{100 * shares.max():.0f}"
    reach = low if low == high else f"{low} to {high}"
    return f"Memory and time of one step: recompute_optimal reaches {reach}% of keep_all's peak"


def panels_of(data: pd.DataFrame, also: tuple[str, ...]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and rows, one a model and whatever else tells settings apart."""
    keys = [key for key in SETTING if key != "B" and (key == "model" or data[key].nunique() > 1)] + list(also)
    units = {"seq_len": "{:g} tokens a row", "dropout": "dropout {:g}", "autocast": "autocast {}", "B": "B = {:g}"}
    for value, rows in data.groupby(keys, sort=True):
        named = dict(zip(keys, value, strict=True))
        on = named.keys() & {"world_size", "data_parallel"}
        if on:
            named = {key: one for key, one in named.items() if key not in on}
            named["ranks"] = trained_on(*rows[["world_size", "data_parallel"]].iloc[0])
        said = [units.get(key, "{}").format(one) for key, one in named.items() if one != ""]
        yield textwrap.fill(", ".join(said), 48), rows


def _order(data: pd.DataFrame) -> list[str]:
    names = set(data["variant"])
    return [*(name for name in RECOMPUTATION if name in names), *sorted(names - set(RECOMPUTATION))]


BOUND, LP, LABEL = "LP bound", "#777777", "#555555"
SMALLEST = "each method at the budget with its smallest peak"
METHOD_FIGURES = (
    FigureSpec(
        "pareto",
        "Memory against time",
        "Nearer to the lower left corner is better: each mark is one method at one budget, and below the dashed line, "
        "the linear program's bound on the time that, by the cost model, recomputation must add to keep_all's step, no "
        "plan can be; numbers are budgets; of several batch sizes of a model, the one with the most "
        "marks is drawn.",
        select_pareto,
        pareto,
    ),
    FigureSpec(
        "recomputation_memory",
        "Peak memory with and without recomputation",
        f"Lower leaves room for larger batches: the measured peak of one training step against the batch size, "
        f"{SMALLEST}; keep_all recomputes nothing.",
        select_bars,
        partial(bars, column="peak_bytes", unit=GIB, label="peak memory, GiB", title="Peak memory of one step"),
    ),
    FigureSpec(
        "recomputation_time",
        "Step time with and without recomputation",
        f"What the memory of the figure above costs in time, {SMALLEST}.",
        select_bars,
        partial(bars, column="step_p50_ms", unit=1.0, label="step (p50), ms", title="Time of one step"),
    ),
)
