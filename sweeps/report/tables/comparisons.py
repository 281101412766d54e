"""What a time is beside another's: the medians of repeats, their intervals, and speedups over the two baselines.

Baselines: `dense_single` on one rank (what one would use without parallelism) and `dense_tp_row` on as many ranks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sweeps.report.tables.intervals import MIN_REPEATS, intervals, ratio_intervals

# What repeats of one measurement share besides its settings: their times are never merged into one median.
SYSTEM = ("host", "driver", "torch")
# What must be the same for a speedup to mean something. (Hosts: see `compare`.)
ALIKE = ["device", "driver", "torch", "threads_per_rank", "dtype", "workload", "N", "K", "B", "timing_mode", "flush_l2"]
BASELINES = {"speedup": ("dense_single", ALIKE), "speedup_row": ("dense_tp_row", [*ALIKE, "backend", "world_size"])}


Repeats = dict[Hashable, tuple[list[float], str]]


def repeats(records: pd.DataFrame, keys: list[str], region: str, without: Sequence[str] = ()) -> Repeats:
    """By key: the medians, in ms, of repeats of `region`, and what a repeat is: a job (a record) where there are
    MIN_REPEATS of them or hydra.sweeper.repeats made them, else a block of a job's iterations. The regions `without`,
    nested in it, are subtracted."""
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
    # Of hydra.sweeper.repeats: blocks of one process say nothing of the next one.
    number = pd.to_numeric(timed["config.experiment.repeat"]) if "config.experiment.repeat" in timed else None
    repeated = np.zeros(len(timed), dtype=bool) if number is None else number.fillna(0).gt(0).to_numpy()
    for key, rows in timed.groupby(keys, dropna=False).indices.items():
        if len(rows) >= MIN_REPEATS or repeated[rows].any():
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
    """`table` with `<prefix>speedup` and `<prefix>speedup_row` of `<name>_p50_ms`, each with `_lo` and `_hi`.

    The baseline is the same host's. A host that measured none is compared with the one, of the same devices and
    versions, on which the baseline was fastest.
    """
    own = lists(table[f"{name}_ms"])
    for speedup, (method, keys) in BASELINES.items():
        alike = [*keys, *also]
        base = table[(table["method"] == method) & table[f"{name}_p50_ms"].notna()]
        base = base if method != "dense_single" else base[base["world_size"] == 1]
        baselines = _baselines(base, alike, name)
        hosts = [*alike, "host"]
        keyed = [
            baselines.get(key) or baselines.get(key[:-1]) for key in table[hosts].itertuples(index=False, name=None)
        ]
        below = [found[1] if found else [] for found in keyed]
        base_ms = np.array([found[0] if found else np.nan for found in keyed], dtype=float)
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


def _baselines(base: pd.DataFrame, alike: list[str], name: str) -> dict[tuple[Any, ...], tuple[float, list[float]]]:
    """The baseline's median and repeats by `alike` and host, and by `alike` alone those of the fastest host."""
    found: dict[tuple[Any, ...], tuple[float, list[float]]] = {}
    for key, rows in base.groupby([*alike, "host"], dropna=False):
        median = float(rows[f"{name}_p50_ms"].median())
        found[key] = (median, [value for one in lists(rows[f"{name}_ms"]) for value in one])
        if key[:-1] not in found or median < found[key[:-1]][0]:
            found[key[:-1]] = found[key]
    return found


def lists(column: pd.Series) -> list[list[float]]:
    return [value if isinstance(value, list) else [] for value in column]
