"""Where a family of 2:4 splits breaks even with dense tensor parallelism: by measured times, and by the model.

table = phase_diagram(runs)          # a row per cell and family: `ratio` to the best dense method, `s_even`

The model of a forward, with the machine's calibrated rates: max(compute, memory, link) (docs/method.md). A family's
rank multiplies 2:4 weights s times as fast as dense ones of that size, and reads half of them and 2 bits of each kept
value. `s_even` is the least s at which it takes no longer than row-parallel: infinite where its bytes alone do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sweeps.report.tables import clocks
from sweeps.report.tables.benchmarks import CELL, benchmarks
from sweeps.report.tables.diagram.forward_parts import forward_parts
from sweeps.report.tables.layers import DENSE, FP8_ROW

RATES = ("copy_gbs", "matmul_tflops", "link_gbs")
ITEMSIZE = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
FASTER, SLOWER, OPEN = "faster", "slower", "undecided"


@dataclass(frozen=True)
class Family:
    """A rank of P holds 2:4 weights of `width`/P of W's columns, of which two of every four are kept."""

    name: str
    width: float
    ranks: int  # P is a multiple


HALVES = Family("halves of dense weights", 2.0, 2)
FAMILIES = {
    "window_4of6": Family("4:6 windows of pruned weights", 4 / 3, 2),
    "window_6of8": Family("6:8 windows of pruned weights", 3 / 2, 3),
}


def family_of(mask: str) -> Family:
    return FAMILIES.get(mask, HALVES)


def s_even(
    family: Family, ranks: int, N: Any, K: Any, B: Any, itemsize: int, rates: dict[str, float]
) -> np.ndarray | float:
    """The least sparse speedup at which `family` is no slower than row-parallel. Sizes may be arrays of one shape."""
    operations, rate = 2.0 * B * N * K / ranks, rates["matmul_tflops"] * 1e12
    link = 2 * (ranks - 1) / ranks * B * N * itemsize / (rates["link_gbs"] * 1e9)
    dense = _bytes(1.0, itemsize, ranks, N, K, B, itemsize) / (rates["copy_gbs"] * 1e9)
    sparse = _bytes(family.width, itemsize / 2 + 1 / 8, ranks, N, K, B, itemsize) / (rates["copy_gbs"] * 1e9)
    row_parallel = np.maximum(np.maximum(operations / rate, dense), link)
    return np.where(sparse > row_parallel, np.inf, family.width * operations / rate / row_parallel)


def _bytes(width: float, of_weight: float, ranks: int, N: Any, K: Any, B: Any, itemsize: int) -> Any:
    """That a rank reads of X and of its weight, `of_weight` bytes each, and writes of Y."""
    features = width * K / ranks
    return features * N * of_weight + (B * features + B * N) * itemsize


def phase_diagram(runs: pd.DataFrame) -> pd.DataFrame:
    """Columns: CELL, `family`, `contender` (the family's fastest), `p50_us`, `dense`, `dense_us` (the fastest dense
    method), `ratio` with `ratio_lo` and `ratio_hi` (the extremes over processes, else over rounds), `decided`,
    `s_even`, `energy_kept` of pruned weights, `fp8_us` (dense row-parallel in fp8), `ratio_fp8`, RATES;
    the clocks of the contender, with what held down either's; of both `predicted_us`, `of_predicted` and `why`
    (forward_parts), and whether both are `within` 5% of what their parts predict (None where these were not timed).
    Empty where no forward was measured with the machine's rates."""
    if not set(RATES) <= set(runs):
        return pd.DataFrame()
    table = benchmarks(runs)
    table = table[table["part"].eq("forward") & table["matmul_tflops"].notna()]
    table = table[table["method"].isin([*DENSE, FP8_ROW, "block_shock"]) & table["link_gbs"].gt(0)]
    found = pd.DataFrame([row for _, cell in table.groupby(CELL, sort=True) for row in _of_cell(cell)])
    return found if found.empty else _with_parts(found, forward_parts(table))


def _with_parts(found: pd.DataFrame, parts: pd.DataFrame) -> pd.DataFrame:
    told = [*CELL, "contender", "predicted_us", "of_predicted", "within", "why"]
    parts = parts[told] if len(parts) else pd.DataFrame(columns=told)
    found = found.merge(parts, on=[*CELL, "contender"], how="left")
    dense = {name: f"dense_{name}" for name in told[len(CELL) + 1 :]} | {"contender": "dense"}
    found = found.merge(parts.rename(columns=dense), on=[*CELL, "dense"], how="left")
    both = found[["within", "dense_within"]]
    found["within"] = both.eq(True).all(axis=1).astype(object).where(both.notna().all(axis=1), None)
    return found.drop(columns="dense_within")


def _of_cell(cell: pd.DataFrame) -> list[dict[str, Any]]:
    runs = [own for _, own in cell.groupby("run", sort=True)]
    several = cell["repeat"].nunique() > 1
    runs = runs if several else runs[-1:]
    last = runs[-1]
    sparse = last[last["method"].eq("block_shock")]
    found = []
    for family, own in sparse.groupby(sparse["mask"].map(lambda mask: family_of(str(mask)).name)):
        masks = set(own["mask"])
        each = [ratio for run in runs if (ratio := _ratio(run, masks))]
        if not each:
            continue
        ratios = [ratio["ratio"] for ratio in each] if several else each[-1]["rounds"]
        low, high = min(ratios), max(ratios)
        one = family_of(next(iter(masks)))
        size = {name: int(last[name].iloc[0]) for name in ("N", "K", "B")}
        rates = {name: float(last[name].iloc[0]) for name in RATES}
        itemsize, ranks = ITEMSIZE[str(last["dtype"].iloc[0])], int(last["world_size"].iloc[0])
        found.append(
            {
                **{name: last[name].iloc[0] for name in CELL},
                "family": family,
                **{name: each[-1][name] for name in ("contender", "p50_us", "dense", "dense_us")},
                "ratio": float(np.median([ratio["ratio"] for ratio in each])),
                "ratio_lo": low,
                "ratio_hi": high,
                "decided": FASTER if high < 1 else SLOWER if low > 1 else OPEN,
                "s_even": float(s_even(one, ranks, **size, itemsize=itemsize, rates=rates)),
                "energy_kept": float(last.loc[last["contender"] == each[-1]["contender"], "energy_kept"].iloc[0]),
                **_next_to_fp8(last, each[-1]["p50_us"]),
                **rates,
                **_clocks(last, each[-1]["contender"], each[-1]["dense"]),
            }
        )
    return found


def _next_to_fp8(run: pd.DataFrame, p50_us: float) -> dict[str, float]:
    """Of the run: dense row-parallel in fp8, and the family's time over its; NaN where the device has no fp8."""
    fp8_us = float(run.loc[run["method"].eq(FP8_ROW), "p50_us"].min())
    return {"fp8_us": fp8_us, "ratio_fp8": p50_us / fp8_us}


def _clocks(run: pd.DataFrame, contender: str, dense: str) -> dict[str, Any]:
    ours, both = run[run["contender"].eq(contender)].iloc[0], run[run["contender"].isin([contender, dense])]
    found = {name: ours[name] for name in clocks.NUMBERS} | {name: both[name].max() for name in clocks.SHARES}
    return {**found, clocks.THROTTLED: clocks.together(both[clocks.THROTTLED])}


def _ratio(run: pd.DataFrame, masks: set[str]) -> dict[str, Any] | None:
    """The fastest of the family over the fastest dense method in one run, and the same of each round."""
    own, dense = run[run["mask"].isin(masks) & run["method"].eq("block_shock")], run[run["method"].isin(DENSE)]
    if own.empty or dense.empty:
        return None
    ours, theirs = own.nsmallest(1, "p50_us").iloc[0], dense.nsmallest(1, "p50_us").iloc[0]
    lists = [row["rounds_us"] if isinstance(row["rounds_us"], list) else [row["p50_us"]] for row in (ours, theirs)]
    return {
        "contender": ours["contender"],
        "p50_us": ours["p50_us"],
        "dense": theirs["contender"],
        "dense_us": theirs["p50_us"],
        "ratio": ours["p50_us"] / theirs["p50_us"],
        "rounds": [a / b for a, b in zip(*lists, strict=False)],
    }
