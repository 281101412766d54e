"""What run folders hold, as tables: what the report's figures and listings select from.

data = read_report_data(["outputs/sweeps/first_picture"])
data.table, data.benchmarks                  # empty where nothing of the kind was measured
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike

import pandas as pd

from sweeps.report.records.load import load_runs
from sweeps.report.tables.benchmarks import benchmarks, latest, targets
from sweeps.report.tables.law import law
from sweeps.report.tables.layers import drift, results
from sweeps.report.tables.recomputation import recomputed


@dataclass(frozen=True)
class ReportData:
    """One table for each subject. Figures and listings select from these and from nothing else."""

    runs: pd.DataFrame = field(default_factory=pd.DataFrame)  # one row per record, see `load_runs`
    table: pd.DataFrame = field(default_factory=pd.DataFrame)  # layers: `layers.results`
    drift: pd.DataFrame = field(default_factory=pd.DataFrame)
    law: pd.DataFrame = field(default_factory=pd.DataFrame)
    recomputed: pd.DataFrame = field(default_factory=pd.DataFrame)
    profiles: pd.DataFrame = field(default_factory=pd.DataFrame)  # rows of `runs`
    traces: pd.DataFrame = field(default_factory=pd.DataFrame)  # rows of `runs`
    benchmarks: pd.DataFrame = field(default_factory=pd.DataFrame)  # `benchmarks.latest`
    targets: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def is_empty(self) -> bool:
        tables = (self.table, self.drift, self.recomputed, self.profiles, self.traces, self.benchmarks)
        return all(table.empty for table in tables)


def read_report_data(paths: Sequence[str | PathLike[str]]) -> ReportData:
    """Raises FileNotFoundError for a missing path and ValueError where there is no run folder."""
    runs = load_runs(paths)
    if runs.empty:
        raise ValueError(f"{listed(paths)}: no run folder here (a run folder holds a status.json)")
    table, measured = results(runs), benchmarks(runs)
    return ReportData(
        runs=runs,
        table=table,
        drift=drift(runs),
        law=law(table),
        recomputed=recomputed(runs),
        profiles=_with(runs, "profile.nodes"),
        traces=_with(runs, "trace.backend"),
        benchmarks=latest(measured),
        targets=targets(measured),
    )


def _with(runs: pd.DataFrame, field_name: str) -> pd.DataFrame:
    """The records that have this field."""
    return runs[runs[field_name].notna()] if field_name in runs else pd.DataFrame()


def listed(paths: Sequence[str | PathLike[str]]) -> str:
    return ", ".join(str(path) for path in paths)
