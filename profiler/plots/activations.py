"""The two figures of a profile's activations: how large they are, and how long they lie idle."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from profiler.costs.text import in_bytes
from profiler.plots.node_axes import NAMED, note, rank_operators, short, starts, time_axis, timed, two_panels
from profiler.plots.style import CATEGORY_COLOUR, byte_unit, style, time_unit


@style()
def plot_activation_sizes(activations: pd.DataFrame, nodes: pd.DataFrame) -> Figure:
    """Bytes of each activation at the time when it is made, and the operators whose results weigh most."""
    sizes = activations["median_mem_size_bytes"]
    made_by = activations.assign(target=nodes["target"].to_numpy()[activations["creation_rank"]])
    by_operator = made_by.groupby("target")["median_mem_size_bytes"].sum()
    most = f"{short(str(by_operator.idxmax()))} makes {by_operator.max() / sizes.sum():.0%} of their bytes"
    figure, (left, right) = two_panels(f"Size of each activation: {most}")
    scale, unit = byte_unit(sizes.max())
    times = _made_at(left, activations, nodes)
    left.vlines(times, 0, sizes / scale, color=CATEGORY_COLOUR["activations"], lw=1)
    left.plot(times, sizes / scale, ".", color="#7A5200", ms=3)
    left.set_ylabel(f"size [{unit}]")
    left.set_ylim(0, 1.25 * sizes.max() / scale)
    _name_largest(left, activations, times, sizes / scale)
    left.set_title(f"{len(activations)} activations, {in_bytes(sizes.sum())} together", fontsize=10)
    total_scale, total_unit = byte_unit(by_operator.max())
    rank_operators(right, made_by, "median_mem_size_bytes", total_scale, f"all its activations [{total_unit}]")
    right.set_title("operators that make the most", fontsize=10)
    return figure


@style()
def plot_inactive_times(activations: pd.DataFrame, nodes: pd.DataFrame) -> Figure:
    """How long each activation lies idle, at the time when it is made, and what keeping it and recomputing it costs."""
    idle, whole = activations["inactive_time_s"], nodes["median_run_time_s"].sum()
    figure, (left, right) = two_panels(
        f"Idle time of each activation: {idle.median() / whole:.0%} of the step (median)"
    )
    scale, unit = time_unit(activations["inactive_time_s"].max())
    sizes = activations["median_mem_size_bytes"]
    area = 4 + 90 * sizes / max(1, sizes.max())
    times = _made_at(left, activations, nodes)
    left.scatter(
        times,
        activations["inactive_time_s"] / scale,
        s=area,
        color=CATEGORY_COLOUR["activations"],
        edgecolor="#7A5200",
        lw=0.4,
        alpha=0.7,
    )
    left.set_ylabel(f"from last forward to first backward use [{unit}]")
    left.set_ylim(0, 1.25 * activations["inactive_time_s"].max() / scale)
    _name_largest(left, activations, times, activations["inactive_time_s"] / scale)
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
    # whole numbers at 1, 2 and 5 of each decade: the default labels run into one another within two decades, these over
    # three
    wide = not remade.empty and remade["recomp_time_s"].max() > 1e3 * remade["recomp_time_s"].min()
    right.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    right.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    right.xaxis.set_minor_formatter(NullFormatter())
    right.set_yscale("log")
    right.set_xlabel("time to recompute it, all others kept [µs]")
    right.set_ylabel(f"size [{byte_name}]")
    right.set_title(f"cheap to drop: upper left ({len(remade)} of {len(activations)}, the largest)", fontsize=10)
    return figure


def _made_at(axes: Axes, activations: pd.DataFrame, nodes: pd.DataFrame) -> np.ndarray:
    """When each activation is made, in the unit of the time axis that `axes` gets."""
    work = timed(nodes)
    along, unit = time_unit(work["median_run_time_s"].sum())
    time_axis(axes, work, along, unit)
    return np.asarray(starts(nodes)[activations["creation_rank"].to_numpy()] / along)


def _name_largest(axes: Axes, activations: pd.DataFrame, times: np.ndarray, heights: pd.Series) -> None:
    """Names that would cover one another are left out, the largest's never."""
    named: list[tuple[float, float]] = []
    (first, last), (_, top) = axes.get_xlim(), axes.get_ylim()
    for place in heights.to_numpy().argsort(kind="stable")[::-1][:NAMED]:
        x, y = float(times[place]), float(heights.iloc[place])
        if all(abs(x - u) > 0.25 * (last - first) or abs(y - v) > 0.06 * top for u, v in named):
            note(axes, x, y, str(activations["activation_name"].iloc[place]), 8)
            named.append((x, y))
