"""Memory copies above, passes below, on one time axis."""

import os
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from profiler.costs.text import in_bytes
from profiler.errors import EmptyTraceError, MismatchedTracesError
from profiler.plots.style import (
    PASS_COLOUR,
    byte_unit,
    cpu_note,
    in_nanoseconds,
    light_grid,
    nanosecond_unit,
    save,
    style,
)
from profiler.traces.intervals import concurrency, length, union
from profiler.traces.modules import ModuleProfile
from profiler.traces.records import MEMCPY_KIND_STR as KINDS
from profiler.traces.records import MemoryCopy

_KIND_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B5A2B")
PASSES = ("forward", "backward", "optimizer", "communication", "other")


@style()
def plot_timeline_memcpy_and_passes(
    memcpy_info: MemoryCopy | Sequence[MemoryCopy],
    profile: ModuleProfile,
    MEMCPY_KIND_STR: Mapping[int, str] = KINDS,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Copied bytes, cumulative and in flight, by kind; below when forward, backward, optimizer and communication ran.

    `MEMCPY_KIND_STR` names the kinds; one that it lacks is shown by its number. Raises EmptyTraceError without copies,
    MismatchedTracesError for copies of another run.
    """
    copies = [memcpy_info] if isinstance(memcpy_info, MemoryCopy) else list(memcpy_info)
    if not copies:
        raise EmptyTraceError("memcpy_info is empty: no memory copy was recorded in this run")
    start, end = int(profile.steps["start_ns"].min()), int(profile.steps["end_ns"].max())
    copies = [copy for copy in copies if copy.end > start and copy.start < end]
    if not copies:
        raise MismatchedTracesError(
            "memcpy_info and profile are of different runs: no copy falls into the profile's time; take "
            "profile.collector.copies"
        )
    figure, (total, flight, passes) = plt.subplots(
        3, 1, figsize=(13, 7.6), sharex=True, layout="constrained", gridspec_kw={"height_ratios": [1.35, 1, 1.2]}
    )
    scale, unit = nanosecond_unit(end - start)
    _draw_copies(total, flight, copies, MEMCPY_KIND_STR, start, end, scale)
    _draw_passes(passes, profile, start, scale)
    passes.set_xlim(0, (end - start) / scale)
    passes.set_xlabel(f"time [{unit}]")
    steps = profile.steps[["start_ns", "step"]].to_numpy().tolist()
    for axes in (total, flight, passes):
        for when, _ in steps:
            axes.axvline((when - start) / scale, color="black", lw=0.7, ls=":")
    for when, step in steps if len(steps) <= 12 else steps[:1]:
        place = (when - start) / scale
        total.text(place, 1.01, f" step {step}", transform=total.get_xaxis_transform(), fontsize=8, va="bottom")
    figure.suptitle(f"Memory copies and passes, rank {profile.rank}")
    cpu_note(figure, profile.collector.on_cpu)
    return save(figure, path)


def _draw_copies(
    total: Axes,
    flight: Axes,
    copies: Sequence[MemoryCopy],
    names: Mapping[int, str],
    start: int,
    end: int,
    scale: float,
) -> None:
    by_kind: dict[int, list[MemoryCopy]] = {}
    for copy in sorted(copies, key=lambda copy: copy.end):
        by_kind.setdefault(copy.kind, []).append(copy)
    by_kind = dict(sorted(by_kind.items(), key=lambda item: -sum(copy.bytes for copy in item[1])))
    total_scale, total_unit = byte_unit(max(sum(copy.bytes for copy in found) for found in by_kind.values()))
    flown = {
        kind: concurrency((copy.start, max(copy.end, copy.start + 1), copy.bytes) for copy in found)
        for kind, found in by_kind.items()
    }
    flight_scale, flight_unit = byte_unit(max(int(weights.max()) for _, weights in flown.values()))
    for place, (kind, found) in enumerate(by_kind.items()):
        colour = _KIND_COLOURS[place % len(_KIND_COLOURS)]
        copied, times, heights = 0, [start], [0]
        for copy in found:
            copied += copy.bytes
            times.append(copy.end)
            heights.append(copied)
        times.append(end)
        heights.append(copied)
        label = f"{names.get(kind, f'kind {kind}')}: {len(found)} × , {in_bytes(copied)}".replace(" × ,", "×,")
        x = [(when - start) / scale for when in times]
        total.step(x, [h / total_scale for h in heights], where="post", color=colour, lw=1.5, label=label)
        moments, weights = flown[kind]
        x = [(when - start) / scale for when in moments]
        y = weights / flight_scale
        flight.fill_between(x, y, step="post", color=colour, alpha=0.35, lw=0)
        flight.step(x, y, where="post", color=colour, lw=0.9)
    total.set_ylabel(f"copied so far [{total_unit}]")
    total.set_ylim(bottom=0)
    flight.set_ylabel(f"in flight [{flight_unit}]")
    flight.set_ylim(bottom=0)
    total.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), title="kind", frameon=False)
    for axes in (total, flight):
        light_grid(axes)


def _draw_passes(axes: Axes, profile: ModuleProfile, start: int, scale: float) -> None:
    intervals: dict[str, list[tuple[int, int]]] = {name: [] for name in PASSES}
    for kernel in profile.collector.shown_kernels():
        name = "communication" if kernel.communication else kernel.region
        intervals[name].append((kernel.start, kernel.end))
    shown = [name for name in PASSES if intervals[name]]
    for place, name in enumerate(shown):
        busy = union(intervals[name])
        bars = [((int(a) - start) / scale, (int(b) - int(a)) / scale) for a, b in busy]
        axes.broken_barh(bars, (place - 0.38, 0.76), facecolors=PASS_COLOUR[name], linewidth=0)
        text = in_nanoseconds(length(busy))
        axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    light_grid(axes, "x")
