"""Pictures of a plan."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from profiler import MemoryCurve, Region

BEFORE, AFTER = "#8a8a8a", "#0072b2"  # told apart by the colour-blind, and in grey


def plot_memory(
    before: MemoryCurve, after: MemoryCurve, budget_bytes: int | None = None, path: str | Path | None = None
) -> Figure:
    """Memory during the step, unchanged and with recomputation, the budget as a line.

    The horizontal axis is the share of the graph's nodes that have run: the rewritten graph has more of them. Nodes
    that run nothing, the placeholders, are left out.
    """
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for curve, color, label in ((before, BEFORE, "unchanged"), (after, AFTER, "with recomputation")):
        table = curve.table[curve.table["region"] != str(Region.INPUT.value)]
        share = [100 * (i + 1) / len(table) for i in range(len(table))]
        gib = table["total_bytes"] / 2**30
        axes.plot(share, gib, color=color, linewidth=1.3, label=f"{label}: peak {curve.peak_bytes / 2**30:.2f} GiB")
    if budget_bytes is not None:
        axes.axhline(budget_bytes / 2**30, color="#d55e00", linestyle="--", linewidth=1, label="budget")
    axes.set(xlabel="nodes of the step's graph that have run, %", ylabel="memory, GiB", xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.grid(alpha=0.3)
    if path is not None:
        figure.savefig(path, dpi=130)
        plt.close(figure)
    return figure
