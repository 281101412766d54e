"""Benchmarks as heat maps: each contender's time over the baseline's, by N and B, and where it misses its target."""

from __future__ import annotations

import textwrap
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.shared.heat_map import colour_bar, most_sizes, ratio_map
from sweeps.report.figures.shared.panels import canvas
from sweeps.report.tables import clocks
from sweeps.report.tables.benchmarks import CELL, RATIOS, SETTING
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.targets import BLOCKS, FIXED, JUDGED, OURS, WORST_CELL
from sweeps.text import ranks, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYERS = (*JUDGED, "block_shock/outputs", "dense_tp_row")
# Part -> which of its contenders are drawn (the figures' texts say it in words), and those that come first.
DRAWN = {
    "product": r".+/auto",
    "backward": r".+/d[XW]",
    "forward": r"block_shock/(?!nccl).+|dense_tp_row",
    "train": r"block_shock/(?!nccl).+|dense_tp_row",
}
FIRST = {
    "product": tuple(f"{mask}/auto" for mask in (*BLOCKS, "random_2of4")),
    "backward": tuple(f"{mask}/{grad}" for mask in (*BLOCKS, "random_2of4") for grad in ("dX", "dW")),
    "forward": LAYERS,
    "train": LAYERS,
}


def select(measured: ReportData, part: str) -> pd.DataFrame:
    """The ratios of the part's contenders that DRAWN names, of square weights, and `limit` where there is one."""
    table = measured.benchmarks
    drawn = table["contender"].astype(str).str.fullmatch(DRAWN[part]) & table["method"].ne(table["baseline"])
    data = table[table["part"].eq(part) & drawn & table["ratio"].notna() & table["K"].eq(table["N"])]
    data = _held_for_either(data, table[table["method"].eq(table["baseline"])])
    data = data[[*CELL, "contender", "quantity", "p50_us", *RATIOS, *clocks.MARKED]]
    limit, whose = WORST_CELL.get(part, (np.nan, ()))
    judged = data["contender"].isin(list(whose)) & data["device"].ne("cpu")
    names = [*FIRST[part], *sorted(set(data["contender"]) - set(FIRST[part]))]
    place = data["contender"].map({name: place for place, name in enumerate(names)})
    data = data.assign(limit=np.where(judged, limit, np.nan), _place=place)
    return data.sort_values([*SETTING, "_place", "world_size", "N", "B"]).drop(columns="_place")


def select_over_row(measured: ReportData, part: str) -> pd.DataFrame:
    """The ratios over row-parallel with the same collectives, dense_tp_row, of the same cell and run; no limits."""
    table = measured.benchmarks
    keys = [*CELL, "quantity", "run"]
    own = table[table["part"].eq(part) & table["K"].eq(table["N"])]
    row = own[own["contender"].eq("dense_tp_row")]
    base = row.groupby(keys)["p50_us"].median().rename("row_us").reset_index()
    drawn = own["contender"].astype(str).str.fullmatch(r"block_shock/(?!nccl).+|dtensor_row|dense_tp_column")
    data = _held_for_either(own[drawn].drop(columns=["ratio_lo", "ratio_hi"]), row).merge(base, on=keys)
    data = data.assign(ratio=data["p50_us"] / data["row_us"], baseline="dense_tp_row", limit=np.nan)
    names = [*LAYERS, *sorted(set(data["contender"]) - set(LAYERS))]
    data = data.assign(_place=data["contender"].map({name: place for place, name in enumerate(names)}))
    data = data.sort_values([*SETTING, "_place", "world_size", "N", "B"])
    return data[[*CELL, "contender", "quantity", "p50_us", "baseline", "row_us", "ratio", "limit", *clocks.MARKED]]


def _held_for_either(data: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """A ratio is of two times: `data` with what held a clock down for its own or its baseline's, of the same run."""
    keys = [*CELL, "quantity", "run"]
    theirs = baselines.groupby(keys)[list(clocks.SHARES)].max().add_suffix("_baseline").reset_index()
    both = data.merge(theirs, on=keys, how="left")
    highest = {share: both[[share, f"{share}_baseline"]].max(axis=1) for share in clocks.SHARES}
    return both.assign(**highest)[data.columns]


def maps(data: pd.DataFrame, title: str) -> Figure:
    """N against B, a panel a contender and world size (or gradient); outlined: above the limit."""
    ours = data.loc[data["contender"].isin([OURS, *(f"{mask}/auto" for mask in FIXED)]), "ratio"]
    if len(ours):
        whose = "mask 1100 is" if data["contender"].eq(OURS).any() else "fixed masks are"
        title = f"{title}: Block-Shock's {whose} {span(ours.min(), ours.max())}"
    data = most_sizes(data)
    data = data.assign(_row=[a.removesuffix(f"/{b}") for a, b in zip(data["contender"], data["quantity"], strict=True)])
    down, across = data[[*SETTING, "_row"]].drop_duplicates(), data[["world_size", "quantity"]].drop_duplicates()
    places = down.merge(across.sort_values("world_size", kind="stable"), how="cross")
    sizes = data[["N", "B"]].nunique()
    columns = len(across) if len(across) > 1 else None
    figure, axes = canvas(len(places), max(3.4, 0.56 * sizes["B"] + 1.3), 0.4 * sizes["N"] + 1.0, title, columns)
    ends = max(1.25, float(np.exp(np.abs(np.log(data["ratio"])).quantile(0.98))))
    for axis, place in zip(axes, places.to_dict("records"), strict=True):
        rows = data[(data[list(places)] == pd.Series(place)).all(axis=1)]
        if rows.empty:  # not on so many ranks
            axis.remove()
            continue
        cells = rows.pivot_table(index="N", columns="B", values="ratio").sort_index(ascending=False)
        held = rows.assign(_mark=[clocks.mark(*pair) for pair in rows[list(clocks.SHARES)].to_numpy()])
        marks = held.pivot_table(index="N", columns="B", values="_mark", aggfunc="max").reindex_like(cells)
        ratio_map(axis, cells, ends, "{:.3f}", less_is_better=True, marks=marks)
        limits = rows.pivot_table(index="N", columns="B", values="limit", dropna=False)
        _outline(axis, cells > limits.reindex_like(cells))
        one = rows.iloc[0]
        extra = [str(one[key]) for key in SETTING if data[key].nunique() > 1]
        several = [ranks(one["world_size"])] if data["world_size"].nunique() > 1 or one["world_size"] > 1 else []
        name = one["contender"].removesuffix("/auto").replace("/", ", ")
        axis.set_title(textwrap.fill(", ".join([name, *several, *extra]), 44), fontsize="small")
    marks_of = "; ".join(clocks.marks_of(data))
    label = "\n".join(["time over the baseline's (logarithmic; blue is faster)", *([marks_of] if marks_of else [])])
    colour_bar(figure, ends, label, less_is_better=True)
    return figure


def _outline(axis: Axes, above: pd.DataFrame) -> None:
    from matplotlib.patches import Rectangle

    for row, column in np.argwhere(above.to_numpy()):
        box = Rectangle((column + 0.04, row + 0.05), 0.92, 0.9, fill=False, edgecolor="#161616", lw=1.8, zorder=5)
        axis.add_patch(box)


READING = "Each number is the time over that of {} in the same job: blue is faster, red is slower."
MASKS = " Shown is the kernel chosen for each mask; single kernels and the dense matmul are in the table."
METHODS = (
    " Shown are Block-Shock and row-parallel; other methods, and NCCL in place of the collective that was chosen, are "
)
METHODS += "in the table."
OUTLINED = (
    " Outlined: above {}, the limit for Block-Shock's 1100, checkerboard and random on a GPU; other panels have no "
)
OUTLINED += "limit."
NOTES = {
    "product": (
        "rank-local matmul over half-K dense",
        READING.format("the dense matmul over half of K")
        + MASKS
        + f" Outlined: above {WORST_CELL['product'][0]}, the limit for fixed patterns and the checkerboard on a GPU.",
    ),
    "backward": (
        "backward over half-K dense",
        READING.format("that gradient's dense matmul over half of K") + " dX: the input's; dW: the packed weight's.",
    ),
    "forward": (
        "forward over dtensor_row",
        READING.format("DTensor's row-parallel plan") + METHODS + OUTLINED.format(WORST_CELL["forward"][0]),
    ),
    "train": (
        "AdamW step over dtensor_row",
        READING.format("DTensor's row-parallel plan") + METHODS + OUTLINED.format(WORST_CELL["train"][0]),
    ),
}
OVER_ROW = tuple(
    FigureSpec(
        f"bench_{part}_over_row",
        f"Benchmark: {what} over dense_tp_row",
        READING.format("row-parallel with the same collectives")
        + " Shown are Block-Shock, PyTorch's row-parallel and column-parallel; other methods are in the table.",
        partial(select_over_row, part=part),
        partial(maps, title=f"{what[0].upper()}{what[1:]} over dense_tp_row"),
    )
    for part, what in (("forward", "forward"), ("train", "AdamW step"))
)
BENCHMARK_MAPS = OVER_ROW + tuple(
    FigureSpec(
        f"bench_{part}",
        f"Benchmark: {title}",
        note,
        partial(select, part=part),
        partial(maps, title=f"{title[0].upper()}{title[1:]}"),
    )
    for part, (title, note) in NOTES.items()
)
