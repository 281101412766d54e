"""Memory and time of a profiled model against its batch size.

The tables behind these figures are files of the run folders, and `profiler` reads back what it wrote.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sweeps.report.figures.draw import own_style
from sweeps.report.page.page import DrawnFigure
from sweeps.report.problems import attempt
from sweeps.report.records.packed import as_folders
from sweeps.report.spreadsheet import write_csv

SAME = ["workload", "dtype", "device", "config.workload.seq_len", "config.phase.optimizer"]


def draw_batches(runs: pd.DataFrame, out: Path, problems: list[str]) -> list[DrawnFigure]:
    """For each model with two batch sizes or more: batch_analysis_<model>.csv in `out`, two figures in `out`/figures.

    Nothing is filled in: where a finished run lacks a file, its model is a line of `problems` that names the file.
    """
    drawn: list[DrawnFigure] = []
    for name, folders in profiled(runs).items():
        what = f"the batch analysis of {name}"
        with own_style():
            drawn += attempt(problems, what, [], _draw, name, folders, out)
    return drawn


def _draw(name: str, runs: dict[int, Path], out: Path) -> list[DrawnFigure]:
    from profiler.batch_analysis import plot_peak, plot_step_time, read_batches

    with as_folders(list(runs.values())) as folders:
        table = read_batches(dict(zip(runs, folders, strict=True)))
    data = out / f"batch_analysis_{name}.csv"
    write_csv(table, data)
    drawn = []
    peak = "Each bar is as high as the measured peak and shows what it consists of."
    time = "The plain step, and the sum of its nodes' times: the gap is time in which the device waits."
    for kind, plot, reading in (("peak_memory", plot_peak, peak), ("step_time", plot_step_time, time)):
        base = out / "figures" / f"batch_{kind}_{name}"
        svg, png = base.with_suffix(".svg"), base.with_suffix(".png")
        figure = plot(table)
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=150)
        title, message = f"{name}: {kind.replace('_', ' ')} against batch size", figure.axes[0].get_title()
        drawn.append(DrawnFigure(base.name, title, reading, svg, data, message))
    return drawn


def profiled(runs: pd.DataFrame) -> dict[str, dict[int, Path]]:
    """Model -> batch size -> run folder, for finished profiles that differ in batch size only; the latest of each."""
    if "profile.nodes" not in runs:
        return {}
    found = runs[runs["profile.nodes"].notna() & (runs["status"] == "ok")].sort_values("started")
    keys = [key for key in SAME if key in found]
    groups: dict[str, dict[int, Path]] = {}
    for values, rows in found.groupby(keys, dropna=False):
        folders = {int(row["B"]): Path(row["folder"]) for _, row in rows.iterrows()}
        if len(folders) > 1:
            name = str(values[0])
            label = name if name not in groups else "_".join(str(v) for v in values).replace(" ", "-")
            groups[label] = folders
    return groups
