"""The figures that runs drew themselves: traces, and the memory of plans. The page holds the first of them.

for figure in run_figures(load_runs([...]), Path("report"), problems=[]):
    figure.title, figure.address
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from sweeps.report.records.runs import jobs

# Of each phase what its runs draw, the most telling first, and what it is called.
OF_PHASE = {
    "trace": {
        "step_breakdown": "where the step goes",
        "bottlenecks": "the kernels that take the most time",
        "layer_runtime": "time by module",
        "throughput": "throughput by module",
        "memcpy_and_passes": "copies and passes",
        "stacks_and_kernels": "Python stack and kernels",
    },
    "checkpoint": {"memory_against_rank": "memory with and without the plan"},
}
ROOM = 600_000  # bytes of pictures in the page; the others are links


@dataclass(frozen=True)
class RunFigure:
    title: str
    address: str  # of the file as seen from the report
    data_uri: str  # empty where the page has no room


def run_figures(runs: pd.DataFrame, report: Path) -> list[RunFigure]:
    """Those of the run folders that are there: a packed run has no pictures."""
    ran = jobs(runs)
    phases = runs.drop_duplicates("folder")["phase"].to_numpy() if "phase" in runs else [None] * len(ran)
    kinds: dict[str, dict[str, str]] = {}
    for folder, label, phase in zip(ran["folder"], ran["label"], phases, strict=True):
        if phase in OF_PHASE and os.path.isdir(folder):
            kinds[folder] = {name: f"{label}: {what}" for name, what in OF_PHASE[phase].items()}
    found, left = [], ROOM
    names = dict.fromkeys(name for titles in kinds.values() for name in titles)
    for name in names:  # of every run the most telling before any run's second
        for folder, titles in kinds.items():
            png = Path(folder) / f"{name}.png"
            if name not in titles or not png.is_file():
                continue
            left -= png.stat().st_size
            content = base64.b64encode(png.read_bytes()).decode() if left >= 0 else ""
            address = quote(Path(os.path.relpath(png.resolve(), report.resolve())).as_posix())
            found.append(RunFigure(titles[name], address, f"data:image/png;base64,{content}" if content else ""))
    return found
