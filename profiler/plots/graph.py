"""The five figures of a profile, from the tables of `stats` and the memory curve alone."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from profiler.costs.memory import CATEGORIES, MemoryCurve
from profiler.costs.text import in_bytes, in_time
from profiler.plots.activations import plot_activation_sizes, plot_inactive_times
from profiler.plots.node_axes import NAMED, TOP, note, rank_operators, short, starts, time_axis, timed, two_panels
from profiler.plots.style import CATEGORY_COLOUR, REGION_COLOUR, byte_unit, style, time_unit

STACK = list(CATEGORY_COLOUR)  # from the bottom: what is there throughout, then what comes and goes
assert sorted(STACK) == sorted(CATEGORIES)


@style()
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
        "memory_vs_rank": plot_memory(curve, nodes, device_limit(device)),
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


@style()
def plot_node_runtime(nodes: pd.DataFrame) -> Figure:
    """Run time of each node at the time when it starts, by region, and the operators that take most of it.

    A node starts when those before it have ended: gaps between kernels are left out.
    """
    work = timed(nodes)
    total = work["median_run_time_s"].sum()
    by_operator = work.groupby("target")["median_run_time_s"].sum()
    most = short(str(by_operator.idxmax()))
    figure, (left, right) = two_panels(
        f"Run time of each node: {most} takes {by_operator.max() / total:.0%} of the step"
    )
    scale, unit = time_unit(work["median_run_time_s"].max())
    along, along_unit = time_unit(total)
    for region, rows in work.groupby("region", sort=False):
        widths, heights = rows["median_run_time_s"] / along, rows["median_run_time_s"] / scale
        colour = REGION_COLOUR[str(region)]
        left.bar(rows["start_s"] / along, heights, width=widths, align="edge", color=colour, edgecolor=colour, lw=0.5)
    time_axis(left, work, along, along_unit)
    left.set_ylabel(f"median run time of the node [{unit}]")
    largest = work.nlargest(NAMED, "median_run_time_s")
    left.set_ylim(0, 1.25 * work["median_run_time_s"].max() / scale)
    for row in largest.to_dict("records"):
        note(left, row["start_s"] / along, row["median_run_time_s"] / scale, str(row["node_name"]), 8)
    rank_operators(right, work, "median_run_time_s", scale, f"time of all its nodes [{unit}]")
    right.set_title(f"operators with the most time (step: {in_time(total)})", fontsize=10)
    return figure


@style()
def plot_node_peak_memory(nodes: pd.DataFrame) -> Figure:
    """Peak memory during each node above what is in use when it starts, and the operators that add most."""
    work = timed(nodes)
    scale, unit = byte_unit(work["median_peak_mem_bytes"].max())
    along, along_unit = time_unit(work["median_run_time_s"].sum())
    active, peak = work["median_active_mem_bytes"] / scale, work["median_peak_mem_bytes"] / scale
    row = work.iloc[int(np.argmax(peak.to_numpy()))]
    highest = in_bytes(row["median_peak_mem_bytes"])
    figure, (left, right) = two_panels(f"Peak memory during each node: {highest} in {row['node_name']}")
    times = work["start_s"] / along
    left.fill_between(times, active, color="#BBBBBB", step="post", lw=0, label="in use when the node starts")
    left.fill_between(times, active, peak, color="#D55E00", step="post", lw=0.6, label="added while it runs")
    at = row["start_s"] / along
    left.plot(at, peak.max(), "v", color="black", ms=6, ls="", label="peak")
    time_axis(left, work, along, along_unit)
    note(left, at, peak.max(), f"peak {highest} in {row['node_name']}", 9)
    left.set_ylabel(f"memory [{unit}]")
    left.set_ylim(0, peak.max() * 1.18)
    left.legend(loc="upper right", bbox_to_anchor=(1.0, 0.95), fontsize=8)
    added = work.assign(added=work["median_peak_mem_bytes"] - work["median_active_mem_bytes"])
    largest = added.groupby("target", sort=False)["added"].max().nlargest(TOP).iloc[::-1]
    added_scale, added_unit = byte_unit(largest.max())
    largest = largest[largest > 0.002 * largest.max()]
    right.barh([short(str(target)) for target in largest.index], largest / added_scale, color="#D55E00")
    right.set_xlabel(f"most added by one node [{added_unit}]")
    right.set_title("operators that add the most", fontsize=10)
    return figure


@style()
def plot_memory(curve: MemoryCurve, nodes: pd.DataFrame, limit: int) -> Figure:
    """Memory over the time of the step by what it is, with the step's regions, the peak and the device's limit."""
    figure, axes = plt.subplots(figsize=(11, 5.6), layout="constrained")
    table = curve.table[~curve.table["region"].isin(["input"])]
    scale, unit = byte_unit(curve.peak_bytes)
    breakdown = curve.breakdown()
    work = timed(nodes)
    along, along_unit = time_unit(work["median_run_time_s"].sum())
    begins = starts(nodes) / along
    times = begins[table["rank"].to_numpy()]
    axes.stackplot(
        times,
        [table[category] / scale for category in STACK],
        colors=[CATEGORY_COLOUR[category] for category in STACK],
        labels=[f"{category.replace('_', ' ')}: {in_bytes(breakdown[category])}" for category in STACK],
        step="post",
        lw=0,
    )
    axes.plot(
        times,
        table["live_bytes"] / scale,
        color="black",
        lw=0.9,
        drawstyle="steps-post",
        label="live bytes",
    )
    top = curve.peak_bytes / scale
    axes.plot(begins[curve.peak_rank], top, "v", color="black", ms=7)
    time_axis(axes, work, along, along_unit)
    note(axes, float(begins[curve.peak_rank]), top, f"peak {in_bytes(curve.peak_bytes)} in {curve.peak_node}", 9)
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
    most = max(breakdown, key=lambda category: breakdown[category])
    share = f"{breakdown[most] / curve.peak_bytes:.0%} of the peak is {most.replace('_', ' ')}"
    axes.set_title(f"Memory of one training step: {share}")
    return figure
