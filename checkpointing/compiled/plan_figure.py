"""Memory over a compiled step as it is planned, next to the unplanned step.

curve_of(problem, schedule, peak_bytes)         # a row per kernel: order, kernel, module, region, bytes, end_ms
draw_curves(plan.curve(planned=False), plan.curve(), ...)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule
from profiler import Region

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMNS = ["order", "kernel", "module", "region", "bytes", "end_ms"]
RECOMPUTE = "recompute"  # the region of what runs again, in the backward


def curve_of(problem: PlanningProblem, schedule: Schedule, peak_bytes: int) -> pd.DataFrame:
    """A row per kernel of `schedule`: bytes while it runs, and the predicted time at its end, in ms from the start.

    The bytes are the planner's, shifted so that the highest are `peak_bytes`: what is known of the generated code and
    of the allocator.
    """
    import pandas as pd

    shift = peak_bytes - schedule.peak
    rows: list[tuple[int, str, str, str, int, float]] = []
    elapsed = 0.0
    for run, total in zip(schedule.runs, schedule.total, strict=True):
        rank = run.rank
        if not _is_kernel(problem, rank):
            continue
        elapsed += (problem.recompute_time if run.is_copy else problem.time)[rank]
        region = RECOMPUTE if run.is_copy else str(problem.regions[rank].value)
        size = int(total) + shift
        rows.append((len(rows), problem.names[rank], problem.modules[rank], region, size, elapsed * 1e3))
    return pd.DataFrame(rows, columns=COLUMNS)


def _is_kernel(problem: PlanningProblem, rank: int) -> bool:
    """Not the gradients that come in, what takes one result out of several, or the step's own output."""
    return problem.targets[rank] != problem.names[rank] and "getitem" not in problem.targets[rank]


def _spans(curve: pd.DataFrame) -> list[tuple[float, float]]:
    """(start, length) in ms of each kernel that runs again."""
    starts = [0.0, *curve.end_ms[:-1]]
    ends = zip(curve.region, starts, curve.end_ms, strict=True)
    return [(start, end - start) for region, start, end in ends if region == RECOMPUTE]


def draw_curves(
    unplanned: pd.DataFrame,
    planned: pd.DataFrame,
    budget_bytes: int,
    static_bytes: int,
    measured_bytes: int | None,
    path: str | Path | None,
) -> Figure:
    """Both curves over predicted time, the budget as a line, a measured peak as a mark."""
    from profiler.plots.style import save, style

    with style():
        return save(_drawn(unplanned, planned, budget_bytes, static_bytes, measured_bytes), path)


def _drawn(
    unplanned: pd.DataFrame, planned: pd.DataFrame, budget_bytes: int, static_bytes: int, measured_bytes: int | None
) -> Figure:
    import matplotlib.pyplot as plt

    from checkpointing.plots import AFTER, BEFORE
    from profiler.plots.style import byte_unit, in_nanoseconds, light_grid

    highest = max(unplanned.bytes.max(), planned.bytes.max(), measured_bytes or 0)
    above = ", above the figure" if budget_bytes > 1.5 * highest else ""
    highest = highest if above else max(highest, budget_bytes)
    scale, unit = byte_unit(float(highest))
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    light_grid(axes, "y")
    end = max(unplanned.end_ms.max(), planned.end_ms.max())
    axes.fill_between(
        [0, end], static_bytes / scale, color="#EEEEEE", linewidth=0, label=f"static: {static_bytes / scale:.2f} {unit}"
    )
    for curve, colour, name in ((unplanned, BEFORE, "unplanned"), (planned, AFTER, "planned")):
        edges = [0.0, *curve.end_ms]
        label = f"{name}: peak {curve.bytes.max() / scale:.2f} {unit}, {in_nanoseconds(1e6 * curve.end_ms.max())}"
        axes.stairs(curve.bytes / scale, edges, baseline=None, color=colour, linewidth=1.5, label=label)
    axes.axhline(
        budget_bytes / scale,
        color="#D55E00",
        linestyle="--",
        linewidth=1.2,
        label=f"budget: {budget_bytes / scale:.2f} {unit}{above}",
    )
    if measured_bytes is not None:
        at = planned.end_ms[planned.bytes.argmax()]
        label = f"measured peak: {measured_bytes / scale:.2f} {unit}\n(drawn at the time of the predicted one)"
        axes.plot([at], [measured_bytes / scale], "x", color="black", markersize=8, mew=1.8, zorder=5, label=label)
    again = _spans(planned)
    if again:
        length = in_nanoseconds(1e6 * sum(width for _, width in again))
        axes.broken_barh(again, (0, 0.02 * highest / scale), color=AFTER, lw=0, label=f"recomputing: {length}")
    backward = planned[planned.region != Region.FORWARD.value]
    if len(backward):
        start = planned.end_ms[backward.index[0] - 1] if backward.index[0] > 0 else 0.0
        axes.axvline(start, color="#999999", linewidth=0.8, linestyle=":")
        for text, side in (("forward ", "right"), (" backward", "left")):
            axes.text(
                start,
                1.0,
                text,
                ha=side,
                va="bottom",
                fontsize=9,
                color="#666666",
                transform=axes.get_xaxis_transform(),
            )
    axes.set(
        xlabel="predicted device time, ms", ylabel=f"memory, {unit}", xlim=(0, end), ylim=(0, 1.08 * highest / scale)
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    plt.close(figure)
    return figure
