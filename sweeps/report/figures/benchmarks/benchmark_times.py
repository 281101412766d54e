"""Benchmarks as times: all-reduce by size, predicted and measured ratio, and what the host costs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec, ordered
from sweeps.report.figures.shared.panels import canvas, legend, log_axes, size_axis
from sweeps.report.figures.shared.style import COLLECTIVES, marker, palette
from sweeps.report.tables import targets
from sweeps.report.tables.benchmarks import SETTING, by_setting
from sweeps.report.tables.report_data import ReportData
from sweeps.text import byte_size, ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = targets.WITHIN
GREY, INK = "#888888", "#555555"
HIDDEN = ("dense_tp_row/nccl", "block_shock/nccl")  # of the host's cost: the same methods with another collective


def select_all_reduce(measured: ReportData) -> pd.DataFrame:
    """A row an implementation, size and world size, where there is NCCL to compare with."""
    table = measured.benchmarks
    data = table[table["part"].eq("all_reduce") & table["ratio"].notna()]
    kept = ["bytes", "method", "p50_us", "eager_p50_us", "ratio", "ratio_lo", "ratio_hi", "chosen"]
    return data[[*SETTING, "world_size", *kept]].sort_values([*SETTING, "world_size", "method", "bytes"])


def all_reduce(data: pd.DataFrame) -> Figure:
    """Time over NCCL's against the size, below the time itself; a panel a world size, rings around the chosen."""
    from matplotlib.lines import Line2D

    found = list(data.groupby([*SETTING, "world_size"]))
    figure, axes = canvas(2 * len(found), 4.6, 3.0, _message(data), len(found))
    names = [name for name in COLLECTIVES if name in set(data["method"])]
    eager = data[data["method"].eq("nccl")].dropna(subset="eager_p50_us")
    for above, below, (setting, rows) in zip(axes[: len(found)], axes[len(found) :], found, strict=True):
        mine = eager.loc[eager.index.isin(rows.index)]
        above.plot(mine["bytes"], mine["eager_p50_us"], color=COLLECTIVES["nccl"], lw=1.2, ls=(0, (3, 2)), zorder=2)
        below.axhline(1.0, color=COLLECTIVES["nccl"], lw=1.6, zorder=1)
        for name in names:
            line = rows[rows["method"] == name]
            for axis, value in ((above, "p50_us"), (below, "ratio")):
                if axis is below and name == "nccl":
                    continue
                axis.plot(line["bytes"], line[value], color=COLLECTIVES[name], marker="o", ms=4, lw=1.6, zorder=3)
        chosen = rows[rows["chosen"]]
        for axis, value in ((above, "p50_us"), (below, "ratio")):
            axis.plot(chosen["bytes"], chosen[value], "o", ms=9, mfc="none", mec=INK, mew=1.3, zorder=4)
            axis.set_xlabel("size")
            size_axis(axis, rows["bytes"].astype(int), byte_size)
            log_axes(axis, y=True)
        above.set_ylabel("time, µs")
        below.set_ylabel("time over NCCL's")
        above.set_title(_title(data, setting), fontsize="small")
    handles = [Line2D([], [], color=COLLECTIVES[name], marker="o", ms=4, lw=1.6, label=name) for name in names]
    if not eager.empty:
        handles.append(Line2D([], [], color=COLLECTIVES["nccl"], lw=1.2, ls=(0, (3, 2)), label="nccl, eager"))
    handles.append(Line2D([], [], ls="", marker="o", ms=9, mfc="none", mec=INK, mew=1.3, label="chosen"))
    legend(figure, handles)
    return figure


def _message(data: pd.DataFrame) -> str:
    """`All-reduce: the chosen one takes 0.65 to 1.01 times NCCL's time`."""
    ratio = data.loc[data["chosen"], "ratio"].dropna()
    if ratio.empty:
        return "All-reduce"
    return f"All-reduce: the chosen one takes {ratio.min():.2f} to {ratio.max():.2f} times NCCL's time"


def _law_message(data: pd.DataFrame) -> str:
    off = (data["measured"] / data["predicted"] - 1).abs()
    reached = f"within {off.median():.1%} (median), {off.max():.0%} at worst"
    return f"Time over row-parallel's, cuSPARSELt, NCCL: predicted {reached}"


def select_law(measured: ReportData) -> pd.DataFrame:
    """Predicted and measured ratio of each cell with a square weight, as targets.law computes them."""
    table = measured.benchmarks
    return by_setting(
        table[table["part"].eq("law") & table["K"].eq(table["N"])], lambda rows: targets.law(rows).reset_index()
    )


def law(data: pd.DataFrame) -> Figure:
    """Measured against predicted ratio, and beside it their quotient by B; a mark a cell, and a band of 5%.

    The quotient to the sum of the parts as they were measured is a ring: what the prediction's own assumption costs it.
    """
    from matplotlib.lines import Line2D

    found = list(data.groupby(SETTING))
    figure, axes = canvas(2 * len(found), 5.0, 4.2, _law_message(data), 2)
    sizes, worlds = sorted(set(data["N"])), sorted(set(data["world_size"]))
    shades = dict(zip(sizes, _shades(len(sizes)), strict=True))
    marks = {p: marker(p) if len(worlds) > 1 else "o" for p in worlds}
    kinds = list(itertools.product(sizes, worlds))
    low = 0.95 * data[["predicted", "measured"]].min().min()
    high = 1.06 * data[["predicted", "measured"]].max().max()
    for left, right, (setting, rows) in zip(axes[::2], axes[1::2], found, strict=True):
        ends = [low, high]
        left.fill_between(ends, [e * (1 - BAND) for e in ends], [e * (1 + BAND) for e in ends], color=GREY, alpha=0.25)
        left.plot(ends, ends, color=GREY, lw=1.2, zorder=1)
        right.axhspan(1 - BAND, 1 + BAND, color=GREY, alpha=0.25)
        right.axhline(1, color=GREY, lw=1.2, zorder=1)
        for place, (size, world_size) in enumerate(kinds):
            cells = rows[rows["N"].eq(size) & rows["world_size"].eq(world_size)]
            style: dict[str, Any] = {"color": shades[size], "marker": marks[world_size], "s": 36, "zorder": 3}
            style |= {"edgecolors": "#fdfdfd", "linewidths": 0.6}
            left.scatter(cells["predicted"], cells["measured"], **style)
            aside = 2 ** (min(0.12, 0.7 / len(kinds)) * (place - (len(kinds) - 1) / 2))  # cells of one B side by side
            right.scatter(cells["B"] * aside, cells["error"] + 1, **style)
            ring = style | {"facecolors": "none", "edgecolors": shades[size], "linewidths": 1.2, "zorder": 2}
            del ring["color"]
            right.scatter(cells["B"] * aside, cells["parts_error"] + 1, **ring)
        left.set(xlim=(low, high), ylim=(low, high), xlabel="predicted", ylabel="measured")
        log_axes(left, x=True, y=True)
        left.set_aspect("equal")
        size_axis(right, rows["B"])
        right.set(xlabel="B", ylabel="measured / predicted")
        inside = int((rows["error"].abs() <= BAND).sum())
        said = f"{inside} of {len(rows)} cells within {BAND:.0%}"
        left.set_title(", ".join(filter(None, [_title(data, setting), said])), fontsize="small")
        inside = int((rows["parts_error"].abs() <= BAND).sum())
        right.set_title(f"over the parts' own sum: {inside} of {len(rows)} within {BAND:.0%}", fontsize="small")
    handles = [Line2D([], [], ls="", marker="o", color=shades[size], label=f"N = {size}") for size in sizes]
    if len(worlds) > 1:
        handles += [Line2D([], [], ls="", marker=marks[p], color=INK, label=ranks(p)) for p in worlds]
    handles.append(Line2D([], [], ls="", marker="o", mfc="none", mec=INK, mew=1.2, label="over the parts' own sum"))
    handles.append(Line2D([], [], color=GREY, lw=1.2, label="as predicted"))
    handles.append(Line2D([], [], color=GREY, alpha=0.25, lw=8, label="± 5%"))
    legend(figure, handles)
    return figure


def select_host(measured: ReportData) -> pd.DataFrame:
    """Forward with both times, at the smallest and the largest N, and the smallest and the largest B of each."""
    table = measured.benchmarks
    forward = table["part"].eq("forward") & table["K"].eq(table["N"])
    data = table[forward & table["eager_p50_us"].notna() & ~table["contender"].isin(HIDDEN)]
    for key in ("N", "B"):
        by = data.groupby([*SETTING, "world_size", *(["N"] if key == "B" else [])])[key]
        data = data[data[key].eq(by.transform("min")) | data[key].eq(by.transform("max"))]
    data = data[[*SETTING, "world_size", "N", "B", "contender", "method", "p50_us", "eager_p50_us"]]
    data = data.assign(host_us=data["eager_p50_us"] - data["p50_us"])
    return data.sort_values([*SETTING, "world_size", "N", "B"], kind="stable")


def host(data: pd.DataFrame) -> Figure:
    """From the CUDA graph's time to the eager one, a line a method; a panel a cell."""
    from matplotlib.lines import Line2D

    found = list(data.groupby([*SETTING, "world_size", "N", "B"]))
    names = data.drop_duplicates("contender")
    order = [c for m in ordered(names["method"]) for c in names.loc[names["method"] == m, "contender"]]
    colours = palette(data["method"])
    cost = (data["eager_p50_us"] / data["p50_us"]).groupby([data["N"], data["B"]]).median()
    title = f"Forward: eager takes {cost.iloc[0]:.1f} times a CUDA graph's time at the smallest size"
    title += f", {cost.iloc[-1]:.1f} times at the largest (medians)" if len(cost) > 1 else " (median)"
    figure, axes = canvas(len(found), 5.6, 0.24 * len(order) + 0.9, title, 2 if len(found) > 1 else 1)
    for axis, (setting, rows) in zip(axes, found, strict=True):
        rows = rows.set_index("contender").reindex([name for name in order if name in set(rows["contender"])])
        _dumbbells(axis, rows, colours)
        one = rows.iloc[0]
        axis.set_title(f"{_title(data, setting[: len(SETTING) + 1])}, N = {one['N']}, B = {one['B']}", fontsize="small")
    style: dict[str, Any] = {"ls": "", "marker": "o", "color": INK}
    legend(figure, [Line2D([], [], label="CUDA graph", **style), Line2D([], [], mfc="none", label="eager", **style)])
    return figure


def _dumbbells(axis: Axes, rows: pd.DataFrame, colours: dict[str, str]) -> None:
    for place, (_, row) in enumerate(rows.iterrows()):
        colour, ends = colours[row["method"]], (row["p50_us"], row["eager_p50_us"])
        axis.plot(ends, [place, place], color=colour, lw=1.6, zorder=2)
        axis.plot(ends[0], place, "o", color=colour, ms=6, zorder=4)
        axis.plot(ends[1], place, "o", mfc="#ffffff", mec=colour, mew=1.5, ms=6, zorder=3)
        said = f"{ends[0]:.0f} → {ends[1]:.0f}"
        axis.annotate(said, (max(ends), place), (7, 0), textcoords="offset points", va="center", fontsize="x-small")
    axis.set_yticks(range(len(rows)), [name.replace("/", ", ") for name in rows.index], fontsize="small")
    axis.set_ylim(len(rows) - 0.4, -0.6)
    times = rows[["p50_us", "eager_p50_us"]]
    low, high = times.min().min(), times.max().max()
    axis.set_xlim(low * (low / high) ** 0.06, high * (high / low) ** 0.35)  # room for the last numbers
    log_axes(axis, x=True)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("time, µs")


def _title(data: pd.DataFrame, setting: tuple[object, ...]) -> str:
    """What tells a panel of `SETTING` (and the world size) from the others."""
    said = [str(value) for key, value in zip(SETTING, setting, strict=False) if data[key].nunique() > 1]
    return ", ".join([*(ranks(int(str(p))) for p in setting[len(SETTING) :]), *said])


def _shades(count: int) -> list[str]:
    """From light to dark, one a size."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis_r"](0.15 + 0.75 * i / max(1, count - 1))) for i in range(count)]


BENCHMARK_ALL_REDUCE = FigureSpec(
    "bench_all_reduce",
    "Benchmark: all-reduce by size",
    "Each line is one way to sum a buffer over the ranks, as a CUDA graph; a ring marks the one that the measured "
    "table chooses. Upper panels: time. Lower panels: time over NCCL's.",
    select_all_reduce,
    all_reduce,
)
BENCHMARK_LAW = FigureSpec(
    "bench_law",
    "Benchmark: Block-Shock over row-parallel, predicted and measured",
    "Predicted: max(2/s, 9/8) times row-parallel's matmul, plus the measured all-reduce. Cells in the band are within "
    "5% of it; on the right, below 1 the measured ratio is smaller than predicted. The prediction assumes that "
    "row-parallel's matmul takes half of the dense one's time; rings compare with the sum of the parts as measured.",
    select_law,
    law,
)
BENCHMARK_HOST = FigureSpec(
    "bench_host",
    "Benchmark: what the host costs",
    "From the filled mark, the forward pass as a CUDA graph, to the open one, the same eager, where the GPU may wait "
    "for the host. Eager times have the L2 cache warm and graphs cold: where the host keeps up, eager may be faster.",
    select_host,
    host,
)
