"""The five figures of a profile, from the tables of `stats` and the memory curve alone."""

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from profiler.costs.memory import CATEGORIES, MemoryCurve
from profiler.costs.text import in_bytes, in_time
from profiler.plots.style import CATEGORY_COLOUR, REGION_COLOUR, byte_unit, style, time_unit

STACK = list(CATEGORY_COLOUR)  # from the bottom: what is there throughout, then what comes and goes
assert sorted(STACK) == sorted(CATEGORIES)
TOP = 15  # bars in a ranking
NAMED = 3  # nodes that are named where they are drawn
_OVER_LINES = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}


def plot_all(
    folder: Path,
    nodes: pd.DataFrame,
    activations: pd.DataFrame,
    curve: MemoryCurve,
    device: torch.device,
) -> list[Path]:
    """Draw the figures into `folder`, which is made if it is not there. Returns their files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "node_runtime": plot_node_runtime(nodes),
        "node_peak_memory": plot_node_peak_memory(nodes),
        "activation_memory_size": plot_activation_sizes(activations, nodes),
        "activation_inactive_time": plot_inactive_times(activations, nodes),
        "memory_vs_rank": plot_memory(curve, device_limit(device)),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"profiler_plots_{name}.png")
        figure.savefig(paths[-1], dpi=150)
        plt.close(figure)
    return paths


def device_limit(device: torch.device) -> int:
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def plot_node_runtime(nodes: pd.DataFrame) -> Figure:
    """Run time of each node at the time when it starts, by region, and the operators that take most of it.

    A node starts when those before it have ended: gaps between kernels are left out.
    """
    work = _timed(nodes)
    total = work["median_run_time_s"].sum()
    by_operator = work.groupby("target")["median_run_time_s"].sum()
    most = _short(str(by_operator.idxmax()))
    figure, (left, right) = _two_panels(
        f"Run time of each node: {most} takes {by_operator.max() / total:.0%} of the step"
    )
    scale, unit = time_unit(work["median_run_time_s"].max())
    along, along_unit = time_unit(total)
    for region, rows in work.groupby("region", sort=False):
        widths, heights = rows["median_run_time_s"] / along, rows["median_run_time_s"] / scale
        colour = REGION_COLOUR[str(region)]
        left.bar(rows["start_s"] / along, heights, width=widths, align="edge", color=colour, edgecolor=colour, lw=0.5)
    _time_axis(left, work, along, along_unit)
    left.set_ylabel(f"median run time of the node [{unit}]")
    largest = work.nlargest(NAMED, "median_run_time_s")
    left.set_ylim(0, 1.25 * work["median_run_time_s"].max() / scale)
    for row in largest.to_dict("records"):
        _note(left, row["start_s"] / along, row["median_run_time_s"] / scale, str(row["node_name"]), 8)
    _rank_operators(right, work, "median_run_time_s", scale, f"time of all its nodes [{unit}]")
    right.set_title(f"operators with the most time (step: {in_time(total)})", fontsize=10)
    return figure


def plot_node_peak_memory(nodes: pd.DataFrame) -> Figure:
    """Peak memory during each node above what is in use when it starts, and the operators that add most."""
    work = _timed(nodes)
    scale, unit = byte_unit(work["median_peak_mem_bytes"].max())
    along, along_unit = time_unit(work["median_run_time_s"].sum())
    active, peak = work["median_active_mem_bytes"] / scale, work["median_peak_mem_bytes"] / scale
    row = work.iloc[int(np.argmax(peak.to_numpy()))]
    highest = in_bytes(row["median_peak_mem_bytes"])
    figure, (left, right) = _two_panels(f"Peak memory during each node: {highest} in {row['node_name']}")
    times = work["start_s"] / along
    left.fill_between(times, active, color="#BBBBBB", step="post", lw=0, label="in use when the node starts")
    left.fill_between(times, active, peak, color="#D55E00", step="post", lw=0.6, label="added while it runs")
    at = row["start_s"] / along
    left.plot(at, peak.max(), "v", color="black", ms=6, ls="", label="peak")
    _time_axis(left, work, along, along_unit)
    _note(left, at, peak.max(), f"peak {highest} in {row['node_name']}", 9)
    left.set_ylabel(f"memory [{unit}]")
    left.set_ylim(0, peak.max() * 1.18)
    left.legend(loc="upper right", bbox_to_anchor=(1.0, 0.95), fontsize=8)
    added = work.assign(added=work["median_peak_mem_bytes"] - work["median_active_mem_bytes"])
    largest = added.groupby("target", sort=False)["added"].max().nlargest(TOP).iloc[::-1]
    added_scale, added_unit = byte_unit(largest.max())
    largest = largest[largest > 0.002 * largest.max()]
    right.barh([_short(str(target)) for target in largest.index], largest / added_scale, color="#D55E00")
    right.set_xlabel(f"most added by one node [{added_unit}]")
    right.set_title("operators that add the most", fontsize=10)
    return figure


def plot_activation_sizes(activations: pd.DataFrame, nodes: pd.DataFrame) -> Figure:
    """Bytes of each activation against the rank that makes it, and the operators whose results weigh most."""
    figure, (left, right) = _two_panels("Size of each activation")
    sizes = activations["median_mem_size_bytes"]
    scale, unit = byte_unit(sizes.max())
    left.vlines(activations["creation_rank"], 0, sizes / scale, color=CATEGORY_COLOUR["activations"], lw=1)
    left.plot(activations["creation_rank"], sizes / scale, ".", color="#7A5200", ms=3)
    left.set_xlabel("rank of the node that makes it")
    left.set_ylabel(f"size [{unit}]")
    left.set_ylim(bottom=0)
    left.set_title(f"{len(activations)} activations, {in_bytes(sizes.sum())} together", fontsize=10)
    made_by = activations.assign(target=nodes["target"].to_numpy()[activations["creation_rank"]])
    total_scale, total_unit = byte_unit(made_by.groupby("target")["median_mem_size_bytes"].sum().max())
    _rank_operators(right, made_by, "median_mem_size_bytes", total_scale, f"all its activations [{total_unit}]")
    right.set_title("operators that make the most", fontsize=10)
    return figure


def plot_inactive_times(activations: pd.DataFrame, nodes: pd.DataFrame) -> Figure:
    """How long each activation lies idle, and what keeping it and making it again costs."""
    figure, (left, right) = _two_panels("Idle time of each activation")
    scale, unit = time_unit(activations["inactive_time_s"].max())
    sizes = activations["median_mem_size_bytes"]
    area = 4 + 90 * sizes / max(1, sizes.max())
    left.scatter(
        activations["creation_rank"],
        activations["inactive_time_s"] / scale,
        s=area,
        color=CATEGORY_COLOUR["activations"],
        edgecolor="#7A5200",
        lw=0.4,
        alpha=0.7,
    )
    left.set_xlabel("rank of the node that makes it")
    left.set_ylabel(f"from last forward to first backward use [{unit}]")
    left.set_ylim(bottom=0)
    left.set_title(f"area of a dot: bytes (largest {in_bytes(sizes.max())})", fontsize=10)
    byte_scale, byte_name = byte_unit(sizes.max())
    remade = activations[(activations["recomp_time_s"] > 0) & (sizes >= sizes.max() / 1e4)]
    right.scatter(
        remade["recomp_time_s"] * 1e6,
        remade["median_mem_size_bytes"] / byte_scale,
        s=14,
        color=CATEGORY_COLOUR["parameters"],
        alpha=0.6,
        lw=0,
    )
    right.set_xscale("log")
    # whole numbers at 1, 2 and 5 of each decade: the default labels run into one another within two decades
    right.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    right.xaxis.set_minor_formatter(NullFormatter())
    right.set_yscale("log")
    right.set_xlabel("time to make it again, all others kept [µs]")
    right.set_ylabel(f"size [{byte_name}]")
    right.set_title(f"cheap to drop: upper left ({len(remade)} of {len(activations)}, the largest)", fontsize=10)
    return figure


def plot_memory(curve: MemoryCurve, limit: int) -> Figure:
    """Memory against rank by what it is, with the step's regions, the peak and the device's limit."""
    style()
    figure, axes = plt.subplots(figsize=(11, 5.6), layout="constrained")
    table = curve.table[~curve.table["region"].isin(["input"])]
    scale, unit = byte_unit(curve.peak_bytes)
    breakdown = curve.breakdown()
    axes.stackplot(
        table["rank"],
        [table[category] / scale for category in STACK],
        colors=[CATEGORY_COLOUR[category] for category in STACK],
        labels=[f"{category.replace('_', ' ')}: {in_bytes(breakdown[category])}" for category in STACK],
        step="mid",
        lw=0,
    )
    axes.plot(
        table["rank"],
        table["live_bytes"] / scale,
        color="black",
        lw=0.9,
        drawstyle="steps-mid",
        label="live bytes",
    )
    top = curve.peak_bytes / scale
    axes.plot(curve.peak_rank, top, "v", color="black", ms=7)
    _rank_axis(axes, table)
    _note(axes, curve.peak_rank, top, f"peak {in_bytes(curve.peak_bytes)} in {curve.peak_node}", 9)
    axes.set_ylabel(f"memory on {curve.device} [{unit}]")
    if limit <= 1.5 * curve.peak_bytes:
        axes.axhline(limit / scale, color="crimson", ls="--", lw=1.2, label=f"device limit {in_bytes(limit)}")
        axes.set_ylim(0, max(top, limit / scale) * 1.12)
    else:
        axes.set_ylim(0, top * 1.18)
        axes.plot(
            [],
            [],
            color="crimson",
            ls="--",
            label=f"device limit {in_bytes(limit)}: above, {limit / curve.peak_bytes:,.0f} × peak",
        )
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        labels[::-1],
        title="at the peak",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        fontsize=9,
    )
    axes.set_title("Memory of one training step")
    return figure


def _two_panels(title: str) -> tuple[Figure, Sequence[Axes]]:
    style()
    figure, panels = plt.subplots(1, 2, figsize=(13, 5), layout="constrained", gridspec_kw={"width_ratios": [3, 2]})
    figure.suptitle(title)
    return figure, panels


def _timed(nodes: pd.DataFrame) -> pd.DataFrame:
    """The nodes that work, with `start_s`, when each starts if nothing waits."""
    work = nodes[nodes["region"] != "input"]
    return work.assign(start_s=work["median_run_time_s"].cumsum() - work["median_run_time_s"])


def _time_axis(axes: Axes, rows: pd.DataFrame, scale: float, unit: str) -> None:
    axes.set_xlabel(f"time in the step, without gaps [{unit}]")
    last = rows["median_run_time_s"].sum() / scale
    axes.set_xlim(0, last)
    _mark_regions(axes, rows["region"], [*(rows["start_s"] / scale), last])


def _rank_axis(axes: Axes, rows: pd.DataFrame) -> None:
    axes.set_xlabel("rank (order in which the nodes run)")
    axes.set_xlim(rows["rank"].min(), rows["rank"].max())
    _mark_regions(axes, rows["region"], [*rows["rank"], rows["rank"].max()])


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


def _note(axes: Axes, at: float, height: float, text: str, size: int) -> None:
    """Write `text` above a point, on the side of it where there is room."""
    first, last = axes.get_xlim()
    place = (at - first) / (last - first)
    side = "left" if place < 0.35 else "right" if place > 0.65 else "center"
    near: dict[str, Any] = {"textcoords": "offset points", "ha": side, "fontsize": size, "bbox": _OVER_LINES}
    axes.annotate(text, (at, height), (0, 7), **near)


def _rank_operators(axes: Axes, rows: pd.DataFrame, column: str, scale: float, label: str) -> None:
    grouped = rows.groupby("target")[column].agg(["sum", "size"]).nlargest(TOP, "sum").iloc[::-1]
    grouped = grouped[grouped["sum"] > 0.002 * grouped["sum"].max()]
    names = [f"{_short(str(target))} ×{count}" for target, count in grouped["size"].items()]
    axes.barh(names, grouped["sum"] / scale, color="#666666")
    axes.set_xlabel(label)


def _short(target: str) -> str:
    return target.removeprefix("aten.").removesuffix(".default")
