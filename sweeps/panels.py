"""What the figures share: panels side by side, axes with units that can be read, and a legend outside of them.

for axes, title, data in panels(selection, ["B"]): ...
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps.palette import dashes, marker

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTING = ("device", "backend", "threads_per_rank", "dtype", "workload", "timing_mode", "flush_l2")


def panels(data: pd.DataFrame, sizes: Sequence[str], also: Sequence[str] = ()) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of each panel: one a value of `sizes`, of every setting not to be mixed, and of `also`."""
    keys: list[str] = []
    for key in (*SETTING, *also):
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
        parts += [_spoken(key, named[key]) for key in keys if named[key] != ""]
        found.append((textwrap.fill(", ".join(parts), 52), rows))
    return found


def canvas(count: int, width: float, height: float, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in rows of at most three (of two, when that leaves no gap)."""
    from matplotlib.figure import Figure

    columns = count if count < 4 else 2 if count == 4 else 3
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(width * columns, 6.4), height * rows + 0.9), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    figure.suptitle(title, fontsize="medium", fontweight="bold")
    return figure, axes


def cut(found: list[tuple[str, pd.DataFrame]], title: str, most: int = 9) -> tuple[list[tuple[str, pd.DataFrame]], str]:
    """The panels that are drawn, of many the last (largest), and the title, which says when some are not."""
    if len(found) <= most:
        return found, title
    return found[-most:], f"{title} (the last {most} of {len(found)} panels; all numbers are in table.csv)"


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Below all axes, in as many columns as the width holds."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(figure.get_figwidth() * 10.5 / (longest + 5)))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), frameon=False)


def method_handles(colours: dict[str, str], order: Iterable[str], *, line: bool = True) -> list[Artist]:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linewidth": 2.0} if line else {"linestyle": "", "marker": "o"}
    return [Line2D([], [], color=colours[name], label=name, **style) for name in order]


def rank_handles(world_sizes: Iterable[int], *, line: bool = True) -> list[Artist]:
    """Which marker (and line) is which world size; nothing to tell when there is one."""
    from matplotlib.lines import Line2D

    sizes = sorted(set(world_sizes))
    return [
        Line2D([], [], color="#555555", marker=marker(p), linestyle=_line(p) if line else "", label=ranks(p))
        for p in sizes
        if len(sizes) > 1
    ]


def ranks(world_size: int) -> str:
    return "1 rank" if world_size == 1 else f"{world_size} ranks"


def size_axis(axis: Axes, sizes: Iterable[int]) -> None:
    """log2, with the sizes that were measured as ticks; one that would touch its neighbour's label has none."""
    found = sorted(set(sizes))
    width = math.log2(found[-1] / found[0])
    ticks = found[:1]
    for size in found[1:]:
        if math.log2(size / ticks[-1]) >= 0.09 * width:
            ticks.append(size)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(size) for size in ticks], rotation=45 if len(ticks) > 6 else 0)
    axis.minorticks_off()


def log_axes(axis: Axes, *, x: bool = False, y: bool = False) -> None:
    """Logarithmic, labelled at 1, 2, 5 (at powers of ten from three decades on) with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for which, wanted in ((axis.xaxis, x), (axis.yaxis, y)):
        if wanted:
            (axis.set_xscale if which is axis.xaxis else axis.set_yscale)("log")
            low, high = which.get_view_interval()
            wide = math.log10(high / low) > 3
            which.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
            which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            which.set_minor_formatter(NullFormatter())


def _line(world_size: int) -> Any:
    return (0, dashes(world_size)) if dashes(world_size) else "-"


def _spoken(key: str, value: object) -> str:
    words = {
        "flush_l2": {"True": "cold L2", "False": "warm L2"},
        "input_grad": {"True": "with dX", "False": "without dX"},
    }
    units = {"threads_per_rank": "threads a rank"}
    return words.get(key, {}).get(str(value)) or (f"{value} {units[key]}" if key in units else str(value))
