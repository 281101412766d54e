"""What run folders hold, as tables: what the report is made of.

found = find(["outputs/sweeps/first_picture"])
found.table, found.benchmarks                  # empty where nothing of the kind was measured
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import pandas as pd

from sweeps.benchmarks import benchmarks, latest, targets
from sweeps.law import law
from sweeps.load import load_runs
from sweeps.profiles import profile_table
from sweeps.recomputation import recomputed
from sweeps.tables import drift, results
from sweeps.traces import trace_table


@dataclass(frozen=True)
class Found:
    """What run folders hold, as tables."""

    runs: pd.DataFrame
    table: pd.DataFrame
    drift: pd.DataFrame
    law: pd.DataFrame
    recomputed: pd.DataFrame
    profiles: pd.DataFrame
    traces: pd.DataFrame
    benchmarks: pd.DataFrame
    targets: pd.DataFrame

    @property
    def nothing(self) -> bool:
        found = (self.table, self.drift, self.recomputed, self.profiles, self.traces, self.benchmarks)
        return all(table.empty for table in found)


def find(paths: Sequence[str | PathLike[str]]) -> Found:
    """Raises FileNotFoundError for a missing path and ValueError where there is no run folder."""
    runs = load_runs(paths)
    if runs.empty:
        raise ValueError(f"{listed(paths)}: no run folder here (a run folder holds a status.json)")
    table = results(runs)
    parts = (recomputed(runs), profile_table(runs), trace_table(runs))
    measured = benchmarks(runs)
    return Found(runs, table, drift(runs), law(table), *parts, latest(measured), targets(measured))


def listed(paths: Sequence[str | PathLike[str]]) -> str:
    return ", ".join(str(path) for path in paths)
