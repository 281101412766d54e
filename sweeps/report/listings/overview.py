"""The table for people: few digits, units, and only the columns that tell rows apart.

shown = readable(results(runs))         # all text; index = the table's
print(markdown(shown))
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from sweeps.report.tables.comparisons import SYSTEM
from sweeps.report.tables.layers import PARTS, TRAINING, in_use
from sweeps.text import check, errors, mebibytes, number, percent, times

NAMES = {
    "method": "method",
    "kernel": "kernel",
    "mask": "mask",
    "options": "options",
    "workload": "workload",
    "world_size": "P",
    "timing_mode": "timing",
    "flush_l2": "L2 flushed",
    "threads_per_rank": "threads per rank",
    "torch": "PyTorch",
    "input_grad": "dX",
}
ALWAYS = ("method", "N", "B", "dtype", "world_size")
OPTIONAL = (
    "device",
    "backend",
    "threads_per_rank",
    *SYSTEM,
    "workload",
    "kernel",
    "mask",
    "options",
    "timing_mode",
    "flush_l2",
)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table's rows as text. A value that is the same in every row is left to `the_same` and shown in no column."""
    keys = ["method", *(key for key in OPTIONAL + TRAINING if in_use(table, key)), "N"]
    keys += ["K"] if (table["K"] != table["N"]).any() else []
    shown = table[[*keys, *ALWAYS[2:]]].astype(str).rename(columns=NAMES)
    shown["forward, ms"] = table["forward_p50_ms"].map(number)
    shown["× dense"] = table["speedup"].map(times)
    shown["of the roofline"] = percent(table["roofline_fraction"], table["bound"])
    shown["error of Y (limit)"] = errors(table["y_relative_error"], table["y_error_limit"])
    shown["check"] = [check(p, f) for p, f in zip(table["passed"], table["failed_checks"], strict=True)]
    if table["backward_input_p50_ms"].notna().any():
        shown["backward dX, ms"] = table["backward_input_p50_ms"].map(number)
    if table["step_p50_ms"].notna().any():
        shown["training step, ms"] = table["step_p50_ms"].map(number)
    sizes = {
        "weight_bytes_per_rank": "weights per rank, MiB",
        "forward_memory_peak_bytes": "peak forward, MiB",
        "step_memory_peak_bytes": "peak training, MiB",
    }
    for column, name in sizes.items():
        if table[column].notna().any():
            shown[name] = table[column].map(mebibytes)
    if table["step_p50_ms"].notna().any():
        parts = [f"step_{part}_p50_ms" for part in (*PARTS, "rest")]
        shown["forward · backward · optimizer · compress · rest"] = [
            " · ".join(number(x) or "–" for x in row) if any(pd.notna(x) for x in row) else ""
            for row in table[parts].to_numpy()
        ]
    return shown


def key_columns(table: pd.DataFrame) -> pd.DataFrame:
    """What a table leads with, as text under the names people know: the method, then the size."""
    sizes = ["N", *(["K"] if (table["K"] != table["N"]).any() else []), "B", "world_size"]
    return table[["method", *sizes]].astype(str).rename(columns=NAMES)


def setting_columns(table: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """What else tells the rows apart: it follows the measured numbers."""
    settings = [key for key in (*OPTIONAL, *also) if key in table and in_use(table, key)]
    near = [key for key in ("kernel", "mask") if key in settings]
    last = [key for key in ("options",) if key in settings]  # long texts
    middle = [key for key in settings if key not in (*near, *last)]
    return table[[*near, *middle, "dtype", *last]].astype(str).rename(columns=NAMES)


def the_same(table: pd.DataFrame) -> dict[str, str]:
    """What every row shares and `readable` therefore leaves out, for a line above the table."""
    single = {key: set(table[key]) - {""} for key in OPTIONAL + TRAINING if not in_use(table, key)}
    return {NAMES.get(key, key): next(iter(values)) for key, values in single.items() if values}


def short(table: pd.DataFrame, rows: int = 24) -> tuple[pd.DataFrame, int]:
    """What fits a terminal: the main columns of the last sizes (the largest), and how many rows were left out."""
    forward = table[table["forward_p50_ms"].notna() | table["passed"].notna()]
    sizes = forward.groupby(["N", "K", "B"], sort=True).size().iloc[::-1]
    kept = [size for size, count in sizes.cumsum().items() if count <= rows] or list(sizes.index[:1])
    fits = [size in kept for size in zip(forward["N"], forward["K"], forward["B"], strict=True)]
    chosen = forward.loc[fits].head(rows) if fits else forward
    text = readable(chosen).drop(columns=list(_LONG), errors="ignore")
    return text.drop(columns="dtype") if table["dtype"].nunique() == 1 else text, len(table) - len(chosen)


_LONG = {
    "backward dX, ms",
    "options",
    "error of Y (limit)",
    "forward · backward · optimizer · compress · rest",
    "weights per rank, MiB",
    "peak forward, MiB",
    "peak training, MiB",
}
