"""Two sweeps beside one another, cell by cell: how much longer a step takes in the second.

cells = two_sides(load_runs(["main"]), load_runs(["change"]))      # one row a cell that both have measured
print(in_short(cells))

A cell is a configuration and what was measured of it; seeds and how long it was measured tell no cells apart. Machines
that differ are never merged: where a side has several, a cell has a row for each, beside the same machine of the other
side if it is there. A verdict is of the interval of the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from sweeps.report.tables.benchmarks import PHASES as BENCHMARKS
from sweeps.report.tables.comparisons import repeats
from sweeps.report.tables.intervals import EQUAL, FASTER, OPEN, SLOWER, judged, ratio_intervals
from sweeps.text import counted

VERDICTS = (SLOWER, FASTER, EQUAL, OPEN)

REGIONS = ("total_step", "forward", "backward", "round")  # of a record the first that it has
SYSTEM = {"device": "device", "host": "env.host", "driver": "env.driver", "torch": "env.torch"}
# What a record says beside its configuration of what it measured.
WHAT = ("phase", "part", "method", "mask", "workload", "N", "K", "B", "dtype", "world_size")
OF_A_CONTENDER = ("variant", "kernel", "quantity")  # of benchmarks, whose jobs measure several
NOT_WHAT = (  # of a configuration: where, how long, and by whom
    "config.experiment.",
    "config.bench.",
    "config.hardware.name",
    "config.hardware.recalibrate",
    "config.hardware.timeout_s",
    "config.phase.warmup_iters",
    "config.phase.timed_iters",
    "config.phase.blocks",
)
TIMES = ["a_ms", "b_ms", "ratio", "ratio_lo", "ratio_hi", "memory_ratio", "verdict"]


def two_sides(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """One row a cell and pair of machines. Columns: what tells cells apart, `a_machine`, `b_machine`, and TIMES.

    `ratio` is b's median over a's, `ratio_lo` and `ratio_hi` its 95% interval, NaN where either has fewer than five
    repeats; `memory_ratio` that of the peaks. Raises ValueError where no cell is in both, with what differs.
    """
    found = pd.concat([_cells(a).assign(side="a"), _cells(b).assign(side="b")], ignore_index=True)
    names = sorted((str(name) for name in found if str(name).startswith(("is.", "config."))), key=_config_last)
    keys = found[names].map(_text)
    found["cell"] = list(keys.itertuples(index=False, name=None))
    found["machine"] = list(found[list(SYSTEM)].map(_text).itertuples(index=False, name=None))
    sides = {side: _measured(rows) for side, rows in found.groupby("side")}
    common = [cell for cell in sides.get("a", {}) if cell in sides.get("b", {})]
    if not common:
        raise ValueError(_what_differs(keys[found["side"] == "a"], keys[found["side"] == "b"]))
    rows = [
        (cell, *pair, sides["a"][cell][pair[0]], sides["b"][cell][pair[1]])
        for cell in common
        for pair in _pairs(sides["a"][cell], sides["b"][cell])
    ]
    edges = ratio_intervals([row[4][0] for row in rows], [row[3][0] for row in rows])
    table = _telling_apart(pd.DataFrame([row[0] for row in rows], columns=names))
    table["a_machine"] = [", ".join(filter(None, row[1])) for row in rows]
    table["b_machine"] = [", ".join(filter(None, row[2])) for row in rows]
    table["a_ms"] = [float(np.median(row[3][0])) for row in rows]
    table["b_ms"] = [float(np.median(row[4][0])) for row in rows]
    table["ratio"] = table["b_ms"] / table["a_ms"]
    table["ratio_lo"], table["ratio_hi"] = edges[:, 0], edges[:, 1]
    table["memory_ratio"] = [row[4][1] / row[3][1] if row[3][1] else float("nan") for row in rows]
    table["verdict"] = [judged(*edge) for edge in edges]
    table.attrs["alone"] = tuple(len(sides[side]) - len(common) for side in ("a", "b"))
    return table


def _telling_apart(keys: pd.DataFrame) -> pd.DataFrame:
    """As few of the columns as it takes to tell the cells apart, those of what was measured first; the method at
    least."""
    chosen, told = ["is.method"], keys["is.method"].nunique()
    for name in keys:
        apart = len(keys[[*chosen, str(name)]].drop_duplicates())
        if apart > told:
            chosen, told = [*chosen, str(name)], apart
    order = [name for name in keys if name in chosen]
    return keys[order].rename(columns=lambda name: name.split(".", 1)[1])


def in_short(cells: pd.DataFrame) -> str:
    """One sentence: the mean ratio, how many cells have which verdict, and how many were left out."""
    mean = math.exp(float(np.log(cells["ratio"]).mean()))
    counts = [f"{(cells['verdict'] == verdict).sum()} {verdict}" for verdict in VERDICTS]
    said = f"B takes {mean:.3f} times A's time (geometric mean of {counted(len(cells), 'cell')}): {', '.join(counts)}"
    a, b = cells.attrs["alone"]
    return said + (f"; {a} only in A, {b} only in B" if a or b else "")


def over(cells: pd.DataFrame, limit: float) -> pd.DataFrame:
    """The cells that are slower by more than `limit` (0.05: 5%): by the interval's lower end, or without one by the
    medians."""
    least = cells["ratio_lo"].fillna(cells["ratio"])
    return cells[least > 1 + limit]


def _cells(runs: pd.DataFrame) -> pd.DataFrame:
    """The records with a time, with `region`, the columns `is.*` of what they are, and `timings_ms.round.*` of those of
    benchmarks."""
    benchmark = runs["phase"].isin(BENCHMARKS) if "phase" in runs else pd.Series(False, index=runs.index)
    found = runs.copy()
    if benchmark.any():
        found["timings_ms.round.p50_ms"] = runs["p50_us"] / 1e3
        found["timings_ms.round.blocks_p50_ms"] = runs["rounds_us"].map(
            lambda rounds: [value / 1e3 for value in rounds] if isinstance(rounds, list) else None
        )
    found["region"] = None
    for region in reversed(REGIONS):
        column = f"timings_ms.{region}.p50_ms"
        if column in found:
            found.loc[found[column].notna(), "region"] = region
    found = found[found["region"].notna()]
    for name in WHAT:
        found[f"is.{name}"] = found.get(name)
    for name in OF_A_CONTENDER:
        given = found[name] if name in found else pd.Series(None, index=found.index, dtype=object)
        found[f"is.{name}"] = given.where(found["phase"].isin(BENCHMARKS), None)
    for name, source in SYSTEM.items():
        found[name] = found.get(source)
    unwanted = [c for c in map(str, found) if c.startswith(NOT_WHAT) or c.endswith("._target_")]
    return found.drop(columns=unwanted)


Machine = tuple[str, ...]
Measured = tuple[list[float], float]  # repeats, ms; peak, bytes


def _measured(rows: pd.DataFrame) -> dict[Hashable, dict[Machine, Measured]]:
    """By cell and machine."""
    found: dict[Hashable, dict[Machine, Measured]] = {}
    for region, part in rows.groupby("region"):
        peaks = part.get("memory_peak_bytes", pd.Series(float("nan"), index=part.index)).astype(float)
        peak = peaks.groupby([part["cell"], part["machine"]]).median()
        for key, (values, _) in repeats(part, ["cell", "machine"], str(region)).items():
            assert isinstance(key, tuple)
            found.setdefault(key[0], {})[key[1]] = (values, float(peak.get(key, float("nan"))))
    return found


def _pairs(a: Iterable[Machine], b: Iterable[Machine]) -> list[tuple[Machine, Machine]]:
    """The machines that both have, each beside itself; if there is none, each of the one beside each of the other."""
    both = [machine for machine in a if machine in b]
    return [(machine, machine) for machine in both] or [(one, other) for one in a for other in b]


def _what_differs(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """One line for two sides without a common cell."""
    if a.empty or b.empty:
        return f"{'neither side has' if a.empty and b.empty else 'A has' if b.empty else 'B has'} times to compare"
    apart = {str(name).split(".", 1)[1]: (sorted(set(a[name])), sorted(set(b[name]))) for name in a}
    said = [
        f"{name} ({', '.join(one[:3]) or 'none'}; {', '.join(other[:3]) or 'none'})"
        for name, (one, other) in apart.items()
        if not set(one) & set(other)
    ]
    why = f"they differ in {', '.join(dict.fromkeys(said[:3]))}" if said else "no combination of settings is in both"
    return f"no cell was measured on both sides: {why}"


def _config_last(name: str) -> bool:
    return name.startswith("config.")


def _text(value: Any) -> str:
    """One spelling a value: a column with gaps holds 1 as 1.0, and nothing as NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
