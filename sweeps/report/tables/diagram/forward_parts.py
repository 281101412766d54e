"""A forward next to its parts, which the same job timed alone: what they predict, and in which part a miss lies.

    rows = forward_parts(runs)          # `of_predicted` is measured over predicted, `why` where a miss of over 5% is

With m and a the times of all matmuls and of all sums, each less e, what an empty step takes, c chunks of X's rows are a
pipeline in which each chunk's sum overlaps the next chunk's matmul:

    predicted = e + m/c + (c-1) · max(m/c, a/c) + a/c           c = 1:  e + m + a

The matmul's bytes are within its time; `bound` says which of max(compute, memory, link) is largest by calibrated rates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sweeps.report.tables.benchmarks import CELL
from sweeps.report.tables.clocks import COLUMNS as CLOCKS
from sweeps.report.tables.clocks import over_repeats

WITHIN = 0.05
CLOCK_DIFFERS = 0.01  # of the SM clock: below, it explains nothing
NOT_LOCATED = "not located"
TIMES = ["p50_us", "empty_us", "matmul_us", "collective_us", "inside_us", "matmul_sm_mhz", "sm_mhz", "floor_ms"]
OF_PREDICTED = ["predicted_us", "of_predicted", "of_predicted_lo", "of_predicted_hi"]


def predict(matmul: Any, collective: Any, empty: Any, chunks: Any) -> Any:
    """The forward's time; all of one unit."""
    m, a = (matmul - empty) / chunks, (collective - empty) / chunks
    return empty + m + (chunks - 1) * np.maximum(m, a) + a


def forward_parts(rows: pd.DataFrame) -> pd.DataFrame:
    """Of `benchmarks` rows of one part forward: a row per cell and contender whose parts were timed.

    Columns: CELL, `contender`, `parts_chunks`, TIMES (medians over processes), OF_PREDICTED (the median, and the
    extremes over processes, else over rounds), `bound`, CLOCKS, `within`, `why`: the part in which a miss lies, from
    the record alone; `not located` where that has no such part. It is no cause: the last two parts add up to the miss.
    """
    timed = rows[rows["matmul_us"].notna() & rows["collective_us"].notna()]
    keys = [*CELL, "contender"]
    found = [_of_contender(own, keys) for _, own in timed.groupby(keys, sort=True)]
    return pd.DataFrame(found)


def _of_contender(own: pd.DataFrame, keys: list[str]) -> dict[str, Any]:
    own = own.sort_values("run", kind="stable")
    several = own["repeat"].nunique() > 1
    own = own.drop_duplicates("repeat", keep="last") if several else own.iloc[-1:]
    last = own.iloc[-1]
    predicted = predict(*(own[name].to_numpy() for name in ("matmul_us", "collective_us", "empty_us", "parts_chunks")))
    each = own["p50_us"].to_numpy() / predicted
    spread = list(each) if several else _of_rounds(last)
    row: dict[str, Any] = {
        **{name: last[name] for name in (*keys, "bound")},
        "parts_chunks": int(last["parts_chunks"]),
        **{name: float(own[name].median()) for name in TIMES},
        "predicted_us": float(np.median(predicted)),
        "of_predicted": float(np.median(each)),
        "of_predicted_lo": float(min(spread)),
        "of_predicted_hi": float(max(spread)),
        **{name: value for name, value in over_repeats(own, keys).iloc[0].items() if name in CLOCKS},
    }
    row["within"] = bool(abs(row["of_predicted"] - 1) <= WITHIN)
    return {**row, "why": "" if row["within"] else why(row)}


def _of_rounds(row: pd.Series) -> list[float]:
    lists = [row[f"{name}rounds_us"] for name in ("", "matmul_", "collective_", "empty_")]
    if not all(isinstance(each, list) for each in lists):
        return [row["p50_us"] / predict(row["matmul_us"], row["collective_us"], row["empty_us"], row["parts_chunks"])]
    each = zip(*lists, strict=True)
    return [own / predict(m, a, empty, row["parts_chunks"]) for own, m, a, empty in each]


def why(row: dict[str, Any]) -> str:
    """In which recorded part a forward misses its prediction; the first that accounts for it."""
    measured, empty, chunks, inside = (row[name] for name in ("p50_us", "empty_us", "parts_chunks", "inside_us"))
    matmul, collective = row["matmul_us"], row["collective_us"]
    ran, timed = row["sm_mhz"], row["matmul_sm_mhz"]
    if pd.notna(ran) and pd.notna(timed) and abs(ran / timed - 1) > CLOCK_DIFFERS:
        at_its_clock = predict(empty + (matmul - empty) * timed / ran, collective, empty, chunks)
        if abs(measured / at_its_clock - 1) <= WITHIN:
            return f"clock: SM at {ran:.0f} MHz, at {timed:.0f} MHz while the matmul was timed"
    over = measured - row["predicted_us"]
    if abs(over) <= (1 + chunks) * empty:  # each chunk's sum waits for its matmul, and the first for the start
        return f"launch overhead: {over:+.1f} µs; an empty step takes {empty:.1f} µs, and there are {1 + chunks} waits"
    if pd.notna(inside):
        return _part(measured, matmul, collective, inside, empty, chunks)
    if row["of_predicted_lo"] <= 1 + WITHIN and row["of_predicted_hi"] >= 1 - WITHIN:
        return f"spread: {row['of_predicted_lo']:.2f} to {row['of_predicted_hi']:.2f} of the prediction"
    return NOT_LOCATED


def _part(measured: float, matmul: float, collective: float, inside: float, empty: float, chunks: int) -> str:
    """The part in which most of the miss is. `inside`: the collective's time in the forward that no matmul hides."""
    m, a = (matmul - empty) / chunks, (collective - empty) / chunks
    expected = empty + a + (chunks - 1) * max(0.0, a - m)  # what the pipeline leaves of the collective
    in_collective = inside - expected
    in_matmul = (measured - inside) - (matmul - empty)  # the two add up to the miss
    if abs(in_matmul) > abs(in_collective):
        meanwhile = ", where sums run at the same time," if chunks > 1 else ""
        return f"matmul: {measured - inside + empty:.1f} µs in the forward{meanwhile} and {matmul:.1f} µs alone"
    if chunks > 1:
        return f"overlap: {inside:.1f} µs of the collective are not hidden, {expected:.1f} µs by the pipeline"
    return f"collective: {inside:.1f} µs in the forward and {collective:.1f} µs alone"
