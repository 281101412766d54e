"""The law of docs/method.md against the measurements: time(Block-Shock) / time(row-parallel) = max(2/s, 9/8).

law(results(load_runs([...])))          # one row a size and mask where all four times of it were measured

For the rank-local product on sparse tensor cores (kernel cusparselt), two ranks. s, the realised sparse speedup, is
measured on one rank: there Block-Shock multiplies two halves, so s = 2 · time(dense_single) / time(block_shock). The
addition of the halves counts with the product, which makes s a few percent too small where B is large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sweeps.report.tables.comparisons import ALIKE, lists
from sweeps.report.tables.intervals import ratio_intervals

MEMORY_BOUND = 9 / 8  # half of the values and 1/16 for their metadata, over half of the values
AGREES, SLOWER, FASTER, OPEN = "agrees", "slower than the model", "faster than the model", "undecided"


def predicted_ratio(s: pd.Series) -> pd.Series:
    """max(2/s, 9/8): time of a sparse half over that of the half-K dense matmul, at a sparse speedup `s` over dense."""
    return (2 / s).clip(lower=MEMORY_BOUND)


def law(table: pd.DataFrame) -> pd.DataFrame:
    """Columns: the size, `mask`, `s`, `predicted`, `local_ratio` (forward without the collective) and `ratio` (all of
    the forward), the first three with `_lo` and `_hi`, and `finding`: whether the intervals of `predicted` and
    `local_ratio` overlap; OPEN where one is missing."""
    sparse = table[(table["method"] == "block_shock") & (table["kernel"] == "cusparselt")]
    own = [*ALIKE, "mask", "options"]
    two = _times(sparse, 2, [*own, "backend"], "two")
    one = _times(sparse, 1, own, "one")
    dense = _times(table[table["method"] == "dense_single"], 1, ALIKE, "dense")
    row = _times(table[table["method"] == "dense_tp_row"], 2, [*ALIKE, "backend"], "row")
    found = two.merge(one, on=own).merge(dense, on=ALIKE).merge(row, on=[*ALIKE, "backend"]).reset_index(drop=True)
    if found.empty:
        return pd.DataFrame(columns=COLUMNS)
    found["s"] = 2 * found["dense_forward"] / found["one_forward"]
    twice = [[2 * value for value in values] for values in lists(found["dense_repeats"])]
    found[["s_lo", "s_hi"]] = ratio_intervals(twice, lists(found["one_repeats"]))
    for edge, of in (("", ""), ("_lo", "_hi"), ("_hi", "_lo")):
        found[f"predicted{edge}"] = predicted_ratio(found[f"s{of}"])
    found["local_ratio"] = found["two_local"] / found["row_local"]
    edges = ratio_intervals(lists(found["two_local_repeats"]), lists(found["row_local_repeats"]))
    found[["local_ratio_lo", "local_ratio_hi"]] = edges
    found["ratio"] = found["two_forward"] / found["row_forward"]
    decided = found[["predicted_lo", "local_ratio_lo"]].notna().all(axis=1)
    slower = found["local_ratio_lo"] > found["predicted_hi"]
    faster = found["local_ratio_hi"] < found["predicted_lo"]
    found["finding"] = np.select([~decided, slower, faster], [OPEN, SLOWER, FASTER], AGREES)
    return found[list(COLUMNS)]


COLUMNS = (
    *ALIKE,
    *("backend", "mask", "s", "s_lo", "s_hi", "predicted", "predicted_lo", "predicted_hi"),
    *("local_ratio", "local_ratio_lo", "local_ratio_hi", "ratio", "finding"),
)


def _times(table: pd.DataFrame, world_size: int, keys: list[str], name: str) -> pd.DataFrame:
    """The forward and rank-local times of each key, and their repeats."""
    rows = table[(table["world_size"] == world_size) & table["forward_p50_ms"].notna()].drop_duplicates(keys)
    local = [float(np.median(values)) if values else np.nan for values in lists(rows["local_ms"])]
    columns: dict[str, Any] = {
        f"{name}_forward": rows["forward_p50_ms"],
        f"{name}_repeats": rows["forward_ms"],
        f"{name}_local": local,
        f"{name}_local_repeats": rows["local_ms"],
    }
    return rows[keys].assign(**columns)
