"""What the figures share: panels side by side, axes with units that can be read, and a legend outside of them.

for axes, title, data in panels(selection, ["B"]): ...
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps.report.figures.shared.style import dashes, marker
from sweeps.text import ranks

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Never to be mixed. Hosts of the same devices and versions are: the figures that draw medians keep them apart.
KEYS = ["device", "backend", "threads_per_rank", "dtype", "workload", "timing_mode", "flush_l2", "driver", "torch"]


def panels(data: pd.DataFrame, sizes: Sequence[str], also: Sequence[str] = ()) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of each panel: one a value of `sizes`, of every setting not to be mixed, and of `also`."""
    keys: list[str] = []
    for key in (*KEYS, *also):
        if key in data and len(data[[*keys, key]].drop_duplicates()) > len(
            data[keys].drop_duplicates() if keys else [0]
        ):
            keys.append(key)  # it tells apart what the keys before it do not
    k_matters = bool((data["K"] != data["N"]).any())
    split = data.assign(_k=data["K"].where(data["K"] != data["N"], 0)) if k_matters else data
    by = [*keys, *(["_k"] if k_matters else []), *sizes]
    if not by:
        return [("", data)]
    found = []
    for value, rows in split.groupby(by, sort=True):
        named = dict(zip(by, value, strict=True))
        parts = [f"{size} = {named[size]}" for size in sizes]
        parts += [f"K = {named['_k']}"] if named.get("_k") else []
        parts += [_panel_words(key, named[key]) for key in keys if named[key] != ""]
        found.append((textwrap.fill(", ".join(parts), 52), rows))
    return found


def canvas(
    count: int, width: float, height: float, title: str, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in rows of `columns`, or of at most three (of two, when that leaves no gap)."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = columns or (count if count < 4 else 2 if count == 4 else 3)
    rows = math.ceil(count / columns)
    spaced = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06)  # inches
    figure = Figure(figsize=(max(width * columns, 6.4), height * rows + 0.9), layout=spaced)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    wrapped = textwrap.fill(title, int(9.5 * figure.get_figwidth()))
    figure.suptitle(wrapped, fontsize="medium", fontweight="bold")
    return figure, axes


def name_panel(axis: Axes, label: str, **style: Any) -> None:
    """Write the panel's name above it, in as many lines as its width needs: a longer one would leave the figure."""
    place = axis.get_subplotspec()
    columns = place.get_gridspec().ncols if place else 1
    figure: Any = axis.figure
    letters = int(10.5 * figure.get_figwidth() / columns)
    axis.set_title("\n".join(textwrap.fill(line, letters) for line in label.split("\n")), fontsize="small", **style)


def cut(found: list[tuple[str, pd.DataFrame]], title: str, most: int = 6) -> tuple[list[tuple[str, pd.DataFrame]], str]:
    """The panels that are drawn, of many the last (largest), and the title, which says when some are not."""
    if len(found) <= most:
        return found, title
    return found[-most:], f"{title} (the last {most} of {len(found)} panels; the tables have all numbers)"


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Below all axes, in as few rows as the width allows."""
    if not handles:
        return
    names = [str(handle.get_label()) for handle in handles]
    widest = 10.5 * figure.get_figwidth()
    rows = next(n for n in range(1, len(names) + 1) if n == len(names) or _row_width(names, n) <= widest)
    columns = -(-len(names) // rows)
    shape: dict[str, Any] = {"loc": "outside lower left", "ncols": columns, "frameon": False}
    # matplotlib leaves out a label that begins with "_": each gets its text once it is in the legend
    drawn = figure.legend(handles=handles, labels=["x"] * len(names), **shape)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_text(name)


def _row_width(names: Sequence[str], rows: int) -> int:
    """In letters, of a legend of so many rows: it fills column after column, each as wide as its longest name."""
    return sum(max(map(len, names[start : start + rows])) + 5 for start in range(0, len(names), rows))


def method_handles(colours: dict[str, str], order: Iterable[str], *, line: bool = True) -> list[Artist]:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linewidth": 2.0} if line else {"linestyle": "", "marker": "o"}
    return [Line2D([], [], color=colours[name], label=name, **style) for name in order]


def rank_handles(world_sizes: Iterable[int], *, line: bool = True) -> list[Artist]:
    """Which marker (and line) is which world size; nothing to tell when there is one."""
    from matplotlib.lines import Line2D

    sizes = sorted(set(world_sizes))
    return [
        Line2D([], [], color="#555555", marker=marker(p), linestyle=line_style(p) if line else "", label=ranks(p))
        for p in sizes
        if len(sizes) > 1
    ]


def name_rows(axis: Axes, rows: pd.DataFrame, slots: int) -> None:
    """Methods beside the bars, which are as thick in a panel of few bars as in the fullest."""
    several = rows["world_size"].nunique() > 1 or rows["world_size"].iloc[0] != 1
    names = [f"{m}, {ranks(p)}" if several else m for m, p in zip(rows["method"], rows["world_size"], strict=True)]
    axis.set_yticks(rows.index, names, fontsize="small")
    axis.set_ylim(slots - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def interval_bars(axis: Axes, rows: pd.DataFrame, x: str, y: str, colours: dict[str, str]) -> None:
    """The 95% intervals <y>_lo to <y>_hi of the rows that have one."""
    for method, found in rows[rows[f"{y}_lo"].notna()].groupby("method"):
        edges = [(found[y] - found[f"{y}_lo"]).clip(lower=0), (found[f"{y}_hi"] - found[y]).clip(lower=0)]
        axis.errorbar(found[x], found[y], edges, fmt="none", color=colours[str(method)], capsize=3, lw=1.2, zorder=2)


def size_axis(axis: Axes, sizes: Iterable[int], label: Callable[[int], str] = str) -> None:
    """log2, with the sizes that were measured as ticks; one that would touch its neighbour's label has none."""
    found = sorted(set(sizes))
    width = math.log2(found[-1] / found[0])
    ticks = found[:1]
    for size in found[1:]:
        if math.log2(size / ticks[-1]) >= 0.09 * width:
            ticks.append(size)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [label(size) for size in ticks], rotation=45 if len(ticks) > 6 else 0)
    axis.minorticks_off()


def log_axes(axis: Axes, *, x: bool = False, y: bool = False) -> None:
    """Logarithmic, with three to seven round ticks in plain numbers, whatever the range is."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    for which, wanted in ((axis.xaxis, x), (axis.yaxis, y)):
        if wanted:
            (axis.set_xscale if which is axis.xaxis else axis.set_yscale)("log")
            low, high = which.get_view_interval()
            ticks = round_ticks(low, high)
            if which is axis.xaxis and max((len(f"{tick:g}") for tick in ticks), default=0) > 5:
                ticks = round_ticks(low, high, most=4)  # long labels beside one another would touch
            which.set_major_locator(FixedLocator(ticks))
            which.set_minor_locator(NullLocator())
            which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            which.set_minor_formatter(NullFormatter())


def round_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """The most round numbers between `low` and `high`, at most `most`: powers of ten (of some power, over many
    decades), then 1-2-5, then finer steps, and for a range within a few percent evenly spaced ones."""
    from matplotlib.ticker import MaxNLocator

    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found: list[list[float]] = []
    for every in range(1, 2 + (last - first) // most):
        found.append([10.0**e for e in range(first, last + 1) if e % every == 0])
    for steps in ((1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        found.append([step * 10.0**e for e in range(first, last + 1) for step in steps])
    within = [[tick for tick in ticks if low <= tick <= high] for ticks in found]
    best = max((ticks for ticks in within if len(ticks) <= most), key=len, default=[])
    if len(best) >= 3:
        return best
    return [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]


def line_style(world_size: int) -> Any:
    return (0, dashes(world_size)) if dashes(world_size) else "-"


def _panel_words(key: str, value: object) -> str:
    words = {
        "flush_l2": {"True": "cold L2", "False": "warm L2"},
        "input_grad": {"True": "with dX", "False": "without dX"},
    }
    texts = {"threads_per_rank": "{} threads per rank", "driver": "driver {}", "torch": "PyTorch {}"}
    return words.get(key, {}).get(str(value)) or texts.get(key, "{}").format(value)
