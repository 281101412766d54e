"""Which kernels take the time, and whether they do so because each is long or because they are many."""

import os

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from profiler.errors import ProfilerError
from profiler.plots.style import PASS_COLOUR, cpu_note, in_nanoseconds, light_grid, nanosecond_unit, save, style
from profiler.traces.kernel_names import short_names
from profiler.traces.recording.collector import KernelDataCollector

_COMPUTE = PASS_COLOUR["forward"]
_NUMBERED = 12  # points of the scatter that carry a number


def kernel_totals(kernel_collector: KernelDataCollector) -> pd.DataFrame:
    """One row a kernel name, by total duration: `total_ns count mean_ns share cumulative communication`.

    Where steps are marked, what ran outside of them does not count.
    """
    kernels = kernel_collector.shown_kernels()
    rows = pd.DataFrame([(k.name, k.end - k.start, k.communication) for k in kernels], columns=["name", "ns", "comm"])
    table = rows.groupby("name").agg(
        total_ns=("ns", "sum"), count=("ns", "size"), mean_ns=("ns", "mean"), communication=("comm", "first")
    )
    table = table.sort_values(["total_ns", "count"], ascending=False)
    table["share"] = table["total_ns"] / max(1, table["total_ns"].sum())
    table["cumulative"] = table["share"].cumsum()
    return table


@style()
def plot_bottleneck_analysis(
    kernel_collector: KernelDataCollector, top_n: int = 20, path: str | os.PathLike[str] | None = None
) -> Figure:
    """Total duration by kernel name, with share and cumulative share, and mean duration against launches.

    Raises EmptyTraceError for a collector without kernels, ProfilerError for `top_n` below 1.
    """
    if top_n < 1:
        raise ProfilerError(f"top_n={top_n}: must be at least 1")
    table = kernel_totals(kernel_collector)
    what = "operators" if kernel_collector.on_cpu else "kernels"
    top = table.head(top_n)
    height = max(4.2, 1.9 + 0.27 * len(top))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(14.5, height), layout="constrained", gridspec_kw={"width_ratios": [3, 2]}
    )
    names = short_names(table.index)
    colours = [PASS_COLOUR["communication"] if row else _COMPUTE for row in top["communication"]]
    scale, unit = nanosecond_unit(top["total_ns"].max())
    places = range(len(top))
    left.barh(places, top["total_ns"] / scale, color=colours, height=0.72)
    left.set_yticks(places, [f"{names[str(name)]}  {n}" for n, name in enumerate(top.index, 1)], fontsize=8.5)
    left.set_ylim(len(top) - 0.4, -0.6)
    left.set_xlim(0, 1.22 * top["total_ns"].max() / scale or 1)
    for place, (total, share, cumulative) in enumerate(top[["total_ns", "share", "cumulative"]].to_numpy()):
        left.text(total / scale, place, f" {share:.1%}  (Σ {cumulative:.1%})", va="center", fontsize=8)
    left.set_xlabel(f"total duration of all its launches [{unit}]")
    left.set_title(
        f"the {len(top)} {what} with the most time, of {len(table)}: share (and cumulative share)", fontsize=10
    )
    light_grid(left, "x")
    if table["communication"].any():
        handles = [Patch(color=_COMPUTE, label="compute"), Patch(color=PASS_COLOUR["communication"])]
        handles[1].set_label("communication")
        left.legend(handles=handles, loc="lower right", fontsize=8)
    _scatter(right, table, len(top))
    right.set_xlabel("launches")
    right.set_ylabel("mean duration of a launch")
    right.set_title("numbered as on the left; dotted: equal total, in % of all", fontsize=10)
    total, count = table["total_ns"].sum(), int(table["count"].sum())
    figure.suptitle(f"Where the time goes: {count:,} launches, {in_nanoseconds(total)} in all")
    cpu_note(figure, kernel_collector.on_cpu)
    return save(figure, path)


def _scatter(axes: plt.Axes, table: pd.DataFrame, top: int) -> None:
    colours = [PASS_COLOUR["communication"] if row else _COMPUTE for row in table["communication"]]
    mean = table["mean_ns"].clip(lower=1.0)
    axes.scatter(table["count"], mean, s=18, c=colours, alpha=0.65, lw=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.7 * table["count"].min(), 1.6 * table["count"].max())
    low, high = mean.min(), mean.max()
    axes.set_ylim(low / 2.5, high * 2.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_nanoseconds(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if table["count"].max() < 200 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    light_grid(axes)
    _diagonals(axes, table)
    labels: list[tuple[tuple[float, float], list[int]]] = []  # points too near for two labels share one
    points = table[["count", "mean_ns"]].clip(lower=1.0).to_numpy()
    for number, point in enumerate(points[: min(top, _NUMBERED)], 1):
        x, y = axes.transData.transform(point)
        near = next((numbers for (a, b), numbers in labels if abs(x - a) < 16 and abs(y - b) < 12), None)
        if near is None:
            labels.append(((x, y), [number]))
        else:
            near.append(number)
    for _, numbers in labels:
        x, y = points[numbers[0] - 1]
        axes.annotate(
            ", ".join(map(str, numbers)),
            (x, y),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=9,
        )


def _diagonals(axes: plt.Axes, table: pd.DataFrame) -> None:
    """Lines of equal total duration: 1%, 10% and 100% of all."""
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    for share in (0.01, 0.1, 1.0):
        total = share * table["total_ns"].sum()
        axes.plot([low, high], [total / low, total / high], color="#888888", lw=0.8, ls=":", scalex=False, scaley=False)
        x = max(low, total / top)  # where the line enters the picture: at its left edge or its upper one
        y = total / x
        if x < high / 1.3 and y > bottom * 1.3:
            axes.annotate(
                f"{share:.0%}",
                (x, y),
                xytext=(4, 3) if y < top / 1.3 else (8, -3),
                textcoords="offset points",
                va="bottom" if y < top / 1.3 else "top",
                fontsize=7.5,
                color="#666666",
            )
