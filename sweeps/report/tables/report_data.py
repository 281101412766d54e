"""What run folders hold, as tables: what the report's figures and listings select from.

data = read_report_data(["outputs/sweeps/first_picture"])
data.table, data.benchmarks                  # empty where nothing of the kind was measured
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import pandas as pd

from sweeps.report.problems import attempt
from sweeps.report.records.load import load_runs
from sweeps.report.tables.benchmarks import benchmarks, latest, over_repeats, targets
from sweeps.report.tables.law import law
from sweeps.report.tables.layers import drift, results
from sweeps.report.tables.steps.largest_batch import largest_batches
from sweeps.report.tables.steps.recomputation import recomputed


@dataclass(frozen=True)
class ReportData:
    """One table for each subject. Figures and listings select from these and from nothing else."""

    runs: pd.DataFrame = field(default_factory=pd.DataFrame)  # one row per record, see `load_runs`
    table: pd.DataFrame = field(default_factory=pd.DataFrame)  # layers: `layers.results`
    drift: pd.DataFrame = field(default_factory=pd.DataFrame)
    law: pd.DataFrame = field(default_factory=pd.DataFrame)
    recomputed: pd.DataFrame = field(default_factory=pd.DataFrame)
    largest: pd.DataFrame = field(default_factory=pd.DataFrame)  # batches: `largest_batch.largest_batches`
    profiles: pd.DataFrame = field(default_factory=pd.DataFrame)  # rows of `runs`
    traces: pd.DataFrame = field(default_factory=pd.DataFrame)  # rows of `runs`
    benchmarks: pd.DataFrame = field(default_factory=pd.DataFrame)  # `benchmarks.latest`
    targets: pd.DataFrame = field(default_factory=pd.DataFrame)
    problems: list[str] = field(default_factory=list)  # what could not be computed from the runs, and why

    @property
    def is_empty(self) -> bool:
        tables = (self.table, self.drift, self.recomputed, self.largest, self.profiles, self.traces, self.benchmarks)
        return all(table.empty for table in tables)


def read_report_data(paths: Sequence[str | PathLike[str]]) -> ReportData:
    """Raises FileNotFoundError for a missing path and ValueError where there is no run folder."""
    runs = load_runs(paths)
    if runs.empty:
        raise ValueError(f"{listed(paths)}: no run folder here (a run folder holds a status.json){_old_layout(paths)}")
    problems: list[str] = []
    nothing: dict[str, pd.DataFrame] = {
        "layers": results(runs.head(0)),
        "drift": drift(runs.head(0)),
        "recomputation": recomputed(runs.head(0)),
        "the largest batches": largest_batches(runs.head(0)),
        "benchmarks": benchmarks(runs.head(0)),
    }

    def table(name: str, make: Callable[[pd.DataFrame], pd.DataFrame], of: pd.DataFrame) -> pd.DataFrame:
        return attempt(problems, f"what was measured of {name}", nothing.get(name, pd.DataFrame()), make, of)

    layers, measured = table("layers", results, runs), table("benchmarks", benchmarks, runs)
    return ReportData(
        runs=runs,
        table=layers,
        drift=table("drift", drift, runs),
        law=table("the model", law, layers),
        recomputed=table("recomputation", recomputed, runs),
        largest=table("the largest batches", largest_batches, runs),
        profiles=_with(runs, "profile.nodes"),
        traces=_with(runs, "trace.backend"),
        benchmarks=table("benchmarks", latest, measured),
        targets=table("the targets", lambda rows: targets(over_repeats(rows)), measured),
        problems=problems,
    )


def _old_layout(paths: Sequence[str | PathLike[str]]) -> str:
    """Of the first versions, which wrote no status.json."""
    old = [file for path in paths for file in sorted(Path(path).rglob("metrics.jsonl"))]
    if not old:
        return ""
    return f"; {old[0].parent} has records without one, as the first versions wrote them: measure it again"


def _with(runs: pd.DataFrame, field_name: str) -> pd.DataFrame:
    """The records that have this field."""
    return runs[runs[field_name].notna()] if field_name in runs else pd.DataFrame()


def listed(paths: Sequence[str | PathLike[str]]) -> str:
    return ", ".join(str(path) for path in paths)
