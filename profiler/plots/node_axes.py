"""What the figures of a profile's nodes share: two panels, the step's time with its regions, names and rankings."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TOP = 15  # bars in a ranking
NAMED = 3  # nodes that are named where they are drawn
_OVER_LINES = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}


def two_panels(title: str) -> tuple[Figure, Sequence[Axes]]:
    figure, panels = plt.subplots(1, 2, figsize=(13, 5), layout="constrained", gridspec_kw={"width_ratios": [3, 2]})
    figure.suptitle(title)
    return figure, panels


def timed(nodes: pd.DataFrame) -> pd.DataFrame:
    """The nodes that work, with `start_s`, when each starts if nothing waits."""
    return nodes.assign(start_s=starts(nodes))[nodes["region"] != "input"]


def starts(nodes: pd.DataFrame) -> np.ndarray:
    """When each node starts, s, by its rank; inputs take no time."""
    times = nodes["median_run_time_s"].where(nodes["region"] != "input", 0.0).to_numpy()
    return np.asarray(times.cumsum() - times)


def time_axis(axes: Axes, rows: pd.DataFrame, scale: float, unit: str) -> None:
    axes.set_xlabel(f"time in the step, without gaps [{unit}]")
    last = rows["median_run_time_s"].sum() / scale
    axes.set_xlim(0, last)
    _mark_regions(axes, rows["region"], [*(rows["start_s"] / scale), last])


def _mark_regions(axes: Axes, regions: pd.Series, places: Sequence[float]) -> None:
    """Where one region ends and the next begins; `places`: of each node, and the end."""
    whole = places[-1] - places[0]
    for region, group in groupby(enumerate(regions), key=lambda pair: pair[1]):
        nodes = [node for node, _ in group]
        first, end = places[nodes[0]], places[nodes[-1] + 1]
        if first > places[0] and region != "output":
            axes.axvline(first, color="black", lw=0.9, ls=":")
        if end - first > 0.05 * whole:
            across = axes.get_xaxis_transform()
            axes.text((first + end) / 2, 0.985, region, transform=across, ha="center", va="top", fontsize=9)


def note(axes: Axes, at: float, height: float, text: str, size: int) -> None:
    """Write `text` above a point, on the side of it where there is room."""
    first, last = axes.get_xlim()
    place = (at - first) / (last - first)
    side = "left" if place < 0.35 else "right" if place > 0.65 else "center"
    near: dict[str, Any] = {"textcoords": "offset points", "ha": side, "fontsize": size, "bbox": _OVER_LINES}
    axes.annotate(text, (at, height), (0, 7), **near)


def rank_operators(axes: Axes, rows: pd.DataFrame, column: str, scale: float, label: str) -> None:
    grouped = rows.groupby("target")[column].agg(["sum", "size"]).nlargest(TOP, "sum").iloc[::-1]
    grouped = grouped[grouped["sum"] > 0.002 * grouped["sum"].max()]
    names = [f"{short(str(target))} ×{count}" for target, count in grouped["size"].items()]
    axes.barh(names, grouped["sum"] / scale, color="#666666")
    axes.set_xlabel(label)


def short(target: str) -> str:
    return target.removeprefix("aten.").removesuffix(".default")
