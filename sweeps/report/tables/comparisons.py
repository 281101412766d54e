"""What a time is beside another's: the medians of repeats, their intervals, and speedups over the two baselines.

Baselines: `dense_single` on one rank (what one would use without parallelism) and `dense_tp_row` on as many ranks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sweeps.report.tables.intervals import MIN_REPEATS, intervals, ratio_intervals

# What must be the same for a speedup to mean something.
ALIKE = ["device", "threads_per_rank", "dtype", "workload", "N", "K", "B", "timing_mode", "flush_l2"]
BASELINES = {"speedup": ("dense_single", ALIKE), "speedup_row": ("dense_tp_row", [*ALIKE, "backend", "world_size"])}


Repeats = dict[Hashable, tuple[list[float], str]]


def repeats(records: pd.DataFrame, keys: list[str], region: str, without: Sequence[str] = ()) -> Repeats:
    """By key: the medians, in ms, of repeats of `region`, and what a repeat is: a job (a record) where there are
    MIN_REPEATS of them, else a block of a job's iterations. The regions `without`, nested in it, are subtracted."""
    median = f"timings_ms.{region}.p50_ms"
    if median not in records:
        return {}
    timed = records[records[median].notna()]
    single = timed[median].astype(float).to_numpy().copy()
    several = _blocks(timed, region)
    for inner in without:
        inner_median = f"timings_ms.{inner}.p50_ms"
        if inner_median in timed:
            single -= timed[inner_median].astype(float).fillna(0.0).to_numpy()
            several = [_minus(*pair) for pair in zip(several, _blocks(timed, inner), strict=True)]
    found: Repeats = {}
    for key, rows in timed.groupby(keys, dropna=False).indices.items():
        if len(rows) >= MIN_REPEATS:
            found[key] = (single[rows].tolist(), "jobs")
            continue
        listed = [value for i in rows for value in (several[i] or [float(single[i])])]
        found[key] = (listed, "blocks" if len(listed) > len(rows) else "jobs")
    return found


def _blocks(timed: pd.DataFrame, region: str) -> list[list[float]]:
    """Of each record, empty where it has none."""
    column = f"timings_ms.{region}.blocks_p50_ms"
    return lists(timed[column]) if column in timed else [[]] * len(timed)


def _minus(whole: list[float], part: list[float]) -> list[float]:
    return [a - b for a, b in zip(whole, part, strict=True)] if part else whole


def with_repeats(table: pd.DataFrame, found: Repeats, name: str) -> pd.DataFrame:
    """`table`, whose first columns are the keys of `found`, with the repeats in `<name>_ms` (a list), what they are in
    `<name>_repeated`, and the interval of their median in `<name>_lo_ms` and `<name>_hi_ms`."""
    width = next((len(key) for key in found if isinstance(key, tuple)), 0)
    rows = [found.get(key, ([], "")) for key in table.iloc[:, :width].itertuples(index=False, name=None)]
    edges = intervals([row[0] for row in rows])
    columns: dict[str, Any] = {
        f"{name}_lo_ms": edges[:, 0],
        f"{name}_hi_ms": edges[:, 1],
        f"{name}_repeated": [_counted(*row) for row in rows],
        f"{name}_ms": pd.Series([row[0] for row in rows], index=table.index, dtype=object),
    }
    return table.assign(**columns)


def _counted(values: list[float], of_what: str) -> str:
    return "" if not values else f"{len(values)} {of_what if len(values) > 1 else of_what.removesuffix('s')}"


def compare(table: pd.DataFrame, name: str, prefix: str, also: Sequence[str] = ()) -> pd.DataFrame:
    """`table` with `<prefix>speedup` and `<prefix>speedup_row` of `<name>_p50_ms`, each with `_lo` and `_hi`."""
    own = lists(table[f"{name}_ms"])
    for speedup, (method, keys) in BASELINES.items():
        alike = [*keys, *also]
        base = table[(table["method"] == method) & table[f"{name}_p50_ms"].notna()]
        base = base if method != "dense_single" else base[base["world_size"] == 1]
        groups = base.groupby(alike, dropna=False)
        medians = groups[f"{name}_p50_ms"].median()
        rivals = {key: [value for one in lists(rows) for value in one] for key, rows in groups[f"{name}_ms"]}
        keyed = list(table[alike].itertuples(index=False, name=None))
        below = [rivals.get(key, []) for key in keyed]
        base_ms = np.array([medians.get(key, np.nan) for key in keyed], dtype=float)
        edges = ratio_intervals(below, own)
        edges[table.index.isin(base.index)] = np.nan  # the baseline beside itself is 1, and not by measurement
        table = table.assign(
            **{
                f"{prefix}{speedup}": base_ms / table[f"{name}_p50_ms"],
                f"{prefix}{speedup}_lo": edges[:, 0],
                f"{prefix}{speedup}_hi": edges[:, 1],
            }
        )
    return table


def lists(column: pd.Series) -> list[list[float]]:
    return [value if isinstance(value, list) else [] for value in column]
