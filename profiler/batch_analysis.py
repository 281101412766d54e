"""Peak memory and step time against batch size, from the folders of several profiles.

    table = read_batches({4: Path("batch_4"), 8: Path("batch_8")})
    plot_batches(table, Path("."))        # batch_peak_memory.png, batch_step_time.png, batch_analysis.csv

Every number is read from what `GraphProfiler.save_stats_to_csv` wrote: a file that is not there is an error.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from profiler.costs.memory import CATEGORIES
from profiler.costs.stats import ACTIVATION_STATS, MEMORY_CURVE, NODE_STATS, read_csv
from profiler.errors import MissingStatsError
from profiler.graph_profiler import SUMMARY
from profiler.plots import CATEGORY_COLOUR, STACK, byte_unit, style, time_unit

TABLE = "batch_analysis.csv"


def read_batches(folders: Mapping[int, Path]) -> pd.DataFrame:
    """One row a batch size, smallest first: the categories at the peak in bytes, and times in seconds.

    The categories add up to `measured_peak_bytes` exactly: `workspace` is what the peak of the plain step
    holds beyond the storages of the graph. Raises MissingStatsError, which names the file that is missing.
    """
    rows = []
    for batch_size in sorted(folders):
        folder = folders[batch_size]
        nodes, curve = read_csv(folder, NODE_STATS), read_csv(folder, MEMORY_CURVE)
        activations = read_csv(folder, ACTIVATION_STATS)
        summary = _read_summary(folder / SUMMARY)
        peak = int(summary["measured_peak_bytes"])
        top = curve.iloc[int(curve["total_bytes"].to_numpy().argmax())]
        parts = {category: int(top[category]) for category in CATEGORIES if category != "workspace"}
        rows.append(
            {
                "batch_size": batch_size,
                **parts,
                "workspace": peak - sum(parts.values()),
                "measured_peak_bytes": peak,
                "simulated_peak_bytes": int(top["total_bytes"]),
                "activation_bytes": int(activations["median_mem_size_bytes"].sum()),
                "step_time_s": float(summary["step_time_s"]),
                "node_time_s": float(nodes["median_run_time_s"].sum()),
            }
        )
    return pd.DataFrame(rows)


def _read_summary(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise MissingStatsError(f"{path} is not there: profile that run again")
    summary: dict[str, float] = json.loads(path.read_text())
    missing = [key for key in ("measured_peak_bytes", "step_time_s") if key not in summary]
    if missing:
        raise MissingStatsError(f"{path} has no {missing[0]}: profile that run again")
    return summary


@style()
def plot_batches(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the table of `read_batches` and its two figures into `folder`. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / TABLE, folder / "batch_peak_memory.png", folder / "batch_step_time.png"]
    table.to_csv(paths[0], index=False)
    for path, figure in zip(paths[1:], (plot_peak(table), plot_step_time(table)), strict=True):
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return paths


@style()
def plot_peak(table: pd.DataFrame) -> Figure:
    """Stacked bars of what the measured peak consists of, one a batch size, each as high as its peak."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    scale, unit = byte_unit(table["measured_peak_bytes"].max())
    places, bottom = np.arange(len(table)), np.zeros(len(table))
    for category in STACK:
        height = table[category].to_numpy() / scale
        label = category.replace("_", " ")
        axes.bar(places, height, 0.65, bottom=bottom, color=CATEGORY_COLOUR[category], label=label, lw=0)
        bottom += height
    for place, peak in zip(places, table["measured_peak_bytes"], strict=True):
        axes.annotate(
            f"{peak / scale:.3g} {unit}",
            (place, peak / scale),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_xticks(places, [str(size) for size in table["batch_size"]])
    axes.set_xlabel("batch size")
    axes.set_ylabel(f"measured peak memory [{unit}]")
    axes.set_ylim(0, table["measured_peak_bytes"].max() / scale * 1.08)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    largest = table.iloc[-1]
    most = max(STACK, key=lambda category: largest[category])
    share = f"{most.replace('_', ' ')} are {largest[most] / largest['measured_peak_bytes']:.0%}"
    axes.set_title(f"Peak memory of one training step: {share} of it at batch size {largest['batch_size']:.0f}")
    return figure


@style()
def plot_step_time(table: pd.DataFrame) -> Figure:
    """Time of the plain step, and the sum of its nodes' times, against batch size."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    scale, unit = time_unit(table["step_time_s"].max())
    dashed, solid = ("--", "-") if len(table) > 2 else ("", "")  # two points are no curve
    axes.plot(table["batch_size"], table["step_time_s"] / scale, f"o{solid}", color="black", label="plain step")
    axes.plot(
        table["batch_size"], table["node_time_s"] / scale, f"s{dashed}", color="#0072B2", label="sum of node times"
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(table["batch_size"], [str(size) for size in table["batch_size"]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size")
    axes.set_ylabel(f"time of one training step [{unit}]")
    axes.legend(fontsize=9)
    waits = (1 - table["node_time_s"] / table["step_time_s"]).clip(lower=0)
    first, last = (f"{waits.iloc[at]:.0%} at batch size {table['batch_size'].iloc[at]}" for at in (0, -1))
    axes.set_title(f"Time of one training step: the device waits {first}, {last}")
    return figure
