"""Where each step's time went, rank by rank."""

import os
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from profiler.errors import EmptyTraceError, MismatchedTracesError
from profiler.plots.style import PASS_COLOUR, cpu_note, light_grid, nanosecond_unit, save, style
from profiler.traces.modules import ModuleProfile

_CLOCKS_NS = 60e9  # clocks of two hosts agree to a minute; steps of one run that are further apart are of two
PARTS = {
    "compute": ("compute_ns", PASS_COLOUR["forward"]),
    "exposed communication": ("exposed_communication_ns", PASS_COLOUR["communication"]),
    "copies": ("exposed_copies_ns", PASS_COLOUR["copies"]),
    "idle": ("idle_ns", PASS_COLOUR["idle"]),
}


@style()
def plot_step_breakdown(
    profiles: Sequence[ModuleProfile | pd.DataFrame] | ModuleProfile, path: str | os.PathLike[str] | None = None
) -> Figure:
    """Stacked bars, one a rank and step: compute, communication while nothing is computed, other copies, idle.

    `profiles`: one a rank; also the tables that `read_steps(folder)` returns. Raises EmptyTraceError for none, and
    MismatchedTracesError for two of one rank, with different numbers of steps, or more than a minute apart.
    """
    given = [profiles] if isinstance(profiles, ModuleProfile | pd.DataFrame) else list(profiles)
    tables = [one.steps if isinstance(one, ModuleProfile) else one for one in given]
    if not tables or any(table.empty for table in tables):
        raise EmptyTraceError("profiles is empty: give one profile a rank, each with at least one step")
    ranks = [int(table["rank"].iloc[0]) for table in tables]
    if len(set(ranks)) < len(ranks):
        raise MismatchedTracesError(f"profiles are of different runs: ranks {ranks} are not all different")
    counts = {rank: len(table) for rank, table in zip(ranks, tables, strict=True)}
    if len(set(counts.values())) > 1:
        raise MismatchedTracesError(f"profiles are of different runs: steps by rank are {counts}, not equally many")
    latest, earliest = max(table["start_ns"].min() for table in tables), min(table["end_ns"].max() for table in tables)
    if latest - earliest > _CLOCKS_NS:
        gap = (latest - earliest) / 1e9
        raise MismatchedTracesError(f"profiles are of different runs: {gap:.0f} s lie between the ranks' steps")
    rows = pd.concat(tables).sort_values(["rank", "step"]).reset_index(drop=True)
    figure, axes = plt.subplots(figsize=(12, max(3.2, 1.9 + 0.3 * len(rows))), layout="constrained")
    scale, unit = nanosecond_unit(rows["step_ns"].max())
    places = rows.index + 0.6 * rows["rank"].rank(method="dense")  # a gap between ranks
    left = pd.Series(0.0, index=rows.index)
    for name, (column, colour) in PARTS.items():
        if not rows[column].sum():
            continue
        width = rows[column] / scale
        share = rows[column].sum() / rows["step_ns"].sum()
        axes.barh(places, width, left=left, color=colour, height=0.8, label=f"{name} ({share:.1%})")
        for place, start, one, whole in zip(places, left, width, rows["step_ns"] / scale, strict=True):
            if one > 0.06 * rows["step_ns"].max() / scale:
                dark = name in ("compute",)
                axes.text(
                    start + one / 2,
                    place,
                    f"{one / whole:.0%}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
        left = left + width
    axes.set_yticks(places, [f"rank {row.rank}, step {row.step}" for row in rows.itertuples(index=False)], fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlabel(f"time of the step [{unit}]")
    axes.set_xlim(left=0)
    light_grid(axes, "x")
    figure.suptitle("Where the time of each step went")
    hidden = rows["overlapped_communication_ns"].sum() / max(1, rows["communication_ns"].sum())
    if rows["communication_ns"].sum():
        axes.set_title(f"{hidden:.0%} of the communication is hidden behind compute", fontsize=10)
    figure.legend(loc="outside lower center", ncol=len(PARTS), fontsize=9, frameon=False)
    cpu_note(figure, bool(rows["on_cpu"].all()))
    return save(figure, path)
