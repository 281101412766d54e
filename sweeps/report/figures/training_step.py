"""What a training step consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec, fastest, in_rows
from sweeps.report.figures.shared.panels import KEYS, canvas, cut, legend, name_panel, name_rows, panels
from sweeps.report.figures.shared.style import INSIDE, PARTS
from sweeps.report.tables import clocks
from sweeps.report.tables.layers import COLLECTIVES, TRAINING
from sweeps.report.tables.report_data import ReportData
from sweeps.text import ranks, span

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def select(measured: ReportData) -> pd.DataFrame:
    """The fastest step of each method, size and world size, and its parts; `collectives_ms` lies inside of them."""
    data = measured.table[measured.table["step_p50_ms"].notna()]
    best = fastest(data, "step_p50_ms", [*KEYS, *TRAINING, "N", "K", "B", "world_size", "method"])
    inside = best[[f"step_{name}_p50_ms" for name in COLLECTIVES]].sum(axis=1, min_count=1)
    kept = ["method", "world_size", "N", "K", "B", "kernel", "mask", "step_p50_ms"]
    kept += [f"step_{part}_p50_ms" for part in PARTS]  # the rest included
    kept += [f"step_{name}" for name in clocks.MARKED]
    best = best.assign(collectives_ms=inside)[[*kept, "collectives_ms", *KEYS, *TRAINING]]
    # One number of ranks: that of the most methods, of equals the smallest. A step on one rank is no rival of two.
    counts = best.groupby("world_size")["method"].nunique()
    return best[best["world_size"] == counts.idxmax()] if len(best) else best


def training_step(data: pd.DataFrame) -> Figure:
    """The parts of a training step, stacked; the upright mark is the whole step."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found, title = cut(panels(data, ["N", "B"], TRAINING), _message(data))
    bars = max(rows[["method", "world_size"]].drop_duplicates().shape[0] for _, rows in found)
    figure, axes = canvas(len(found), 4.4, 0.3 * bars + 0.8, title)
    names = {"opt_step": "optimizer"}
    for axis, (label, rows) in zip(axes, found, strict=True):
        best = in_rows(fastest(rows, "step_p50_ms", ["method", "world_size"]))
        left = pd.Series(0.0, index=best.index)
        for part, colour in PARTS.items():
            width = best[f"step_{part}_p50_ms"].fillna(0.0)
            axis.barh(best.index, width, left=left, color=colour, height=0.72)
            left += width
        axis.barh(best.index, best["collectives_ms"].fillna(0.0), color=INSIDE, height=0.16)
        axis.plot(
            best["step_p50_ms"], best.index, "|", color="black", markersize=17, markeredgewidth=1.8, clip_on=False
        )
        axis.locator_params(axis="x", nbins=5)
        axis.set(xlabel="ms (p50)", xlim=(0, 1.05 * max(left.max(), best["step_p50_ms"].max())))
        name_panel(axis, label)
        name_rows(axis, best, bars)
    drawn = [part for part in PARTS if (data[f"step_{part}_p50_ms"] > 0.005 * data["step_p50_ms"]).any()]
    handles = [Patch(color=PARTS[part], label=names.get(part, part)) for part in drawn]
    whole = Line2D([], [], color="black", ls="", marker="|", markersize=11, markeredgewidth=1.8, label="the whole step")
    inside = [Patch(color=INSIDE, label="of these: all-reduce, all-gather")]
    legend(figure, [*handles, whole, *(inside if (data["collectives_ms"] > 0).any() else [])])
    return figure


def _message(data: pd.DataFrame) -> str:
    """`One training step on 2 ranks: block_shock is 2 to 10% slower than dense_tp_row`."""
    title = f"One training step on {ranks(int(data['world_size'].iloc[0]))}"
    keys = [*KEYS, *TRAINING, "N", "K", "B"]
    # Not pivot_table(dropna=False), which has a row for every N with every K: 700 MB at 3000 sizes.
    times = data.groupby([*keys, "method"], dropna=False)["step_p50_ms"].min().unstack("method")
    rival = next((name for name in ("dense_tp_row", "dense_single") if name in times), None)
    if rival is None or "block_shock" not in times:
        return title
    ratio = (times["block_shock"] / times[rival]).dropna()
    return f"{title}: block_shock is {span(ratio.min(), ratio.max())} than {rival}" if len(ratio) else title


TRAINING_STEP = FigureSpec(
    "training_step",
    "Where a training step goes",
    "Shorter is better: the coloured parts are timed inside the step, each with its own clock, the thin inner bar is "
    "the time of all-reduce and all-gather within forward and backward (DTensor's are not timed apart), and the "
    "upright mark is the whole step timed by itself; of several kernels or masks, the fastest is drawn, on the "
    "number of ranks for which most methods were measured.",
    select,
    training_step,
)
