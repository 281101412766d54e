"""Traced training steps as numbers: where the time of the rank with the longest step went.

rows = traces(runs_with_a_trace)        # one row a trace: step_ms, forward_ms, ..., idle_ms, kernels
"""

from __future__ import annotations

import pandas as pd

PARTS = ("forward", "backward", "optimizer", "other", "exposed_communication", "idle")  # they add up to the step
SETTING = ["workload", "N", "K", "B", "dtype", "world_size", "device"]  # steps of different ones are never compared
ALSO = ["trace.backend", "trace.slowdown", "trace.attributed", "folder", "started"]


def traces(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a finished trace. Times are medians over its steps, in ms."""
    columns = ["method", *SETTING, *(f"{part}_ms" for part in ("step", *PARTS)), "kernels"]
    if runs.empty:
        return pd.DataFrame(columns=[*columns, *ALSO])
    rows = runs.sort_values([*SETTING, "method", "started"]).reset_index(drop=True)
    slowest = [steps.index(max(steps)) for steps in rows["trace.step_ms"]]
    found = rows[["method", *SETTING, *ALSO]].copy()
    for name in (*(f"{part}_ms" for part in ("step", *PARTS)), "kernels"):
        found[name] = [values[rank] for values, rank in zip(rows[f"trace.{name}"], slowest, strict=True)]
    return found[[*columns, *ALSO]]


def fastest_and_slowest(own: pd.DataFrame) -> tuple[pd.Series, pd.Series, float] | None:
    """Of the traces of one problem: the methods with the shortest and the longest step, and the ratio of the two; None
    where one method has traced it."""
    best = own.sort_values("step_ms").drop_duplicates("method")
    if len(best) < 2:
        return None
    first, last = best.iloc[0], best.iloc[-1]
    return first, last, last["step_ms"] / first["step_ms"]


def problem(row: pd.Series) -> str:
    """`N=8192 B=4096`, or `resnet152 B=256` of a model."""
    size = f"B={row['B']:.0f}"
    return f"{row['workload']} {size}" if pd.isna(row["N"]) else f"N={row['N']:.0f} {size}"
