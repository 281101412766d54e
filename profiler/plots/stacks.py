"""What Python was doing while the device ran what: the call stack above, the kernels below, one time axis."""

import os
from collections.abc import Sequence
from zlib import crc32

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from profiler.errors import MismatchedTracesError
from profiler.plots.style import PASS_COLOUR, cpu_note, light_grid, nanosecond_unit, save, style
from profiler.traces.recording.collector import KernelDataCollector
from profiler.traces.records import KernelLaunch
from profiler.traces.stacks import StackFrame, StacktraceCollector

_FRAME_COLOURS = ("#C6DBEF", "#9ECAE1", "#DADAEB", "#BCBDDC", "#C7E9C0", "#A1D99B", "#FDD0A2", "#FDAE6B")
_LEVELS = 40  # of the stack that are drawn; deeper ones are said to be left out


@style()
def plot_stacktrace_with_kernels(
    stacktrace_collector: StacktraceCollector,
    kernel_collector: KernelDataCollector,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Stack depth over time, each function a box, and the kernels of each stream below.

    Raises EmptyTraceError if either is empty, MismatchedTracesError if they are of different runs: no kernel was
    launched while the stack was looked at.
    """
    frames, kernels = stacktrace_collector.require_frames(), kernel_collector.shown_kernels()
    stack_start, stack_end = stacktrace_collector.span
    start, end = min(kernel.start for kernel in kernels), max(kernel.end for kernel in kernels)
    if end <= stack_start or start >= stack_end:
        gap = (stack_start - end if end <= stack_start else start - stack_end) / 1e9
        raise MismatchedTracesError(
            "stacktrace_collector and kernel_collector are of different runs: the stack and the kernels have no "
            f"moment in common ({gap:.3f} s apart); collect both at the same time"
        )
    seen = [frame for frame in frames if frame.end > start and frame.start < end]
    base = _shared_levels(seen, start, end)
    rows = _rows(kernels)
    levels = min(_LEVELS, max((frame.depth for frame in seen), default=base) - base + 1)
    figure, (above, below) = plt.subplots(
        2,
        1,
        figsize=(14, max(5.0, 2.6 + 0.19 * levels + 0.34 * len(rows))),
        sharex=True,
        layout="constrained",
        gridspec_kw={"height_ratios": [max(2.0, 0.19 * levels), max(0.8, 0.34 * len(rows))]},
    )
    scale, unit = nanosecond_unit(end - start)
    _draw_stack(above, seen, base, levels, start, end, scale)
    _draw_kernels(below, rows, start, scale, kernel_collector.on_cpu)
    below.set_xlim(0, (end - start) / scale)
    below.set_xlabel(f"time since the first {'operator' if kernel_collector.on_cpu else 'kernel'} [{unit}]")
    shared = f"without the outermost {base} level{'s' * (base != 1)}, which never change; " if base else ""
    figure.suptitle("Python's call stack and what ran meanwhile")
    above.set_title(f"{shared}{stacktrace_collector.samples:,} samples", fontsize=10)
    cpu_note(figure, kernel_collector.on_cpu)
    return save(figure, path)


def _shared_levels(frames: Sequence[StackFrame], start: int, end: int) -> int:
    """How many outermost frames stay throughout: the interpreter, the launcher, main."""
    base = 0
    while any(frame.depth == base and frame.start <= start and frame.end >= end for frame in frames) and any(
        frame.depth == base + 1 for frame in frames
    ):
        base += 1
    return base


def _draw_stack(
    axes: Axes, frames: Sequence[StackFrame], base: int, levels: int, start: int, end: int, scale: float
) -> None:
    width = (end - start) / scale
    boxes, colours = [], []
    for frame in frames:
        level = frame.depth - base
        if not 0 <= level < levels:
            continue
        left, right = (max(frame.start, start) - start) / scale, (min(frame.end, end) - start) / scale
        boxes.append([(left, level), (right, level), (right, level + 1), (left, level + 1)])
        colours.append(_FRAME_COLOURS[crc32(f"{frame.file}:{frame.name}".encode()) % len(_FRAME_COLOURS)])
        room = int((right - left) / width * 190)  # letters of this size that fit
        if room >= 4:
            text = _fitting(frame.name.replace(".<locals>", ""), room)
            axes.text((left + right) / 2, level + 0.5, text, ha="center", va="center", fontsize=6.5, clip_on=True)
    axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="white", linewidths=0.4))
    axes.set_ylim(0, levels)
    axes.set_ylabel("stack depth")
    deepest = max((frame.depth for frame in frames), default=base) - base + 1
    if deepest > levels:
        axes.text(0.01, 0.98, f"{deepest - levels} deeper levels are left out", transform=axes.transAxes, va="top")


def _fitting(name: str, room: int) -> str:
    """The name, its last part, or the beginning of that, in at most `room` letters."""
    last = name.rsplit(".", 1)[-1]
    return name if len(name) <= room else last if len(last) <= room else last[: room - 1] + "…"


def _rows(kernels: Sequence[KernelLaunch]) -> dict[tuple[int, int], list[KernelLaunch]]:
    rows: dict[tuple[int, int], list[KernelLaunch]] = {}
    for kernel in kernels:
        rows.setdefault((kernel.device, kernel.stream), []).append(kernel)
    return dict(sorted(rows.items()))


def _draw_kernels(
    axes: Axes, rows: dict[tuple[int, int], list[KernelLaunch]], start: int, scale: float, on_cpu: bool
) -> None:
    used: dict[str, str] = {}
    for place, found in enumerate(rows.values()):
        by_kind: dict[str, list[tuple[float, float]]] = {}
        for kernel in found:
            kind = "communication" if kernel.communication else kernel.region
            by_kind.setdefault(kind, []).append(((kernel.start - start) / scale, (kernel.end - kernel.start) / scale))
        for kind, bars in by_kind.items():
            used[kind] = PASS_COLOUR[kind]
            axes.broken_barh(bars, (place - 0.4, 0.8), facecolors=PASS_COLOUR[kind], linewidth=0)
    labels = [f"thread {n}" if on_cpu else f"GPU {device}, stream {stream}" for n, (device, stream) in enumerate(rows)]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    light_grid(axes, "x")
    handles = [Patch(color=PASS_COLOUR[kind], label=kind) for kind in PASS_COLOUR if kind in used]
    axes.figure.legend(handles=handles, ncol=len(handles), fontsize=8, loc="outside lower center", frameon=False)
