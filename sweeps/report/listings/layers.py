"""The report's tables, one a subject: forward, training step, memory, errors, the law.

for topic in topics(results(runs), law(results(runs))): topic.numbers.to_csv(...), topic.shown
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from sweeps.report.listings.overview import key_columns
from sweeps.report.tables.layers import COLLECTIVES, COLUMNS, PARTS, QUANTITIES, TRAINING
from sweeps.text import bounds, errors, mebibytes, number, percent, times


@dataclass(frozen=True)
class Topic:
    name: str  # of its files, tables/<name>.csv and .md
    title: str
    note: str  # what the columns mean
    numbers: pd.DataFrame
    shown: pd.DataFrame  # the same as text


def topics(table: pd.DataFrame, ratios: pd.DataFrame) -> list[Topic]:
    """Those that have a row."""
    found = [_forward(table), _training(table), _law(ratios), _memory(table), _errors(table)]
    return [topic for topic in found if not topic.numbers.empty]


INTERVALS = (
    "Medians, with bootstrap 95% intervals over repeats where there are five or more (jobs of the same configuration, "
    "else the blocks of a job). "
)


def _forward(table: pd.DataFrame) -> Topic:
    rows = table[table["forward_p50_ms"].notna()]
    shown = key_columns(rows)
    shown["forward, ms"] = rows["forward_p50_ms"].map(number)
    shown["95% interval, ms"] = bounds(rows, "forward_lo_ms", "forward_hi_ms")
    shown["repeats"] = rows["forward_repeated"]
    for column, name in (("speedup", "× dense"), ("speedup_row", "× row-parallel")):
        shown[name] = rows[column].map(times)
        shown[f"{name}, 95%"] = bounds(rows, f"{column}_lo", f"{column}_hi")
    shown["TFLOP/s"] = rows["tflops"].map(number)
    shown["of the roofline"] = percent(rows["roofline_fraction"], rows["bound"])
    for name, title in zip(COLLECTIVES, ("all-reduce, ms", "all-gather, ms"), strict=True):
        shown[title] = rows[f"forward_{name}_p50_ms"].map(number)
    if rows["backward_input_p50_ms"].notna().any():
        shown["backward to X, ms"] = rows["backward_input_p50_ms"].map(number)
    note = (
        INTERVALS
        + "× dense: the speed beside dense_single on one rank; × row-parallel: beside dense_tp_row on as many "
        "ranks P. TFLOP/s counts the whole product. Of the roofline: the least time that the machine's calibrated "
        "rates allow over the time taken, and what bounds it"
        + (
            "; above 100% the data was served from a cache, not from the memory that was calibrated."
            if (rows["roofline_fraction"] > 1).any()
            else "."
        )
    )
    numbers = rows[[name for name in COLUMNS if not name.startswith(("step_", "dx_", "dw_", "y_"))]]
    return Topic("forward", "Forward pass", note, numbers, _without_empty(shown))


def _training(table: pd.DataFrame) -> Topic:
    rows = table[table["step_p50_ms"].notna()]
    shown = key_columns(rows, TRAINING)
    shown["step, ms"] = rows["step_p50_ms"].map(number)
    shown["95% interval, ms"] = bounds(rows, "step_lo_ms", "step_hi_ms")
    shown["repeats"] = rows["step_repeated"]
    for column, name in (("step_speedup", "× dense"), ("step_speedup_row", "× row-parallel")):
        shown[name] = rows[column].map(times)
        shown[f"{name}, 95%"] = bounds(rows, f"{column}_lo", f"{column}_hi")
    titles = ("forward", "backward", "optimizer", "compress", "rest", "all-reduce", "all-gather")
    for part, title in zip((*PARTS, "rest", *COLLECTIVES), titles, strict=True):
        shown[f"{title}, ms"] = rows[f"step_{part}_p50_ms"].map(number)
    shown["rows/s"] = rows["step_rows_per_s"].map(number)
    shown["of the roofline"] = percent(rows["step_roofline_fraction"])
    note = (
        INTERVALS + "Parts are timed inside the step, each with its own clock, so that they may add up to more than "
        "the step; rest is what they leave of it. All-reduce and all-gather lie inside forward and backward. rows/s: "
        "rows of X trained on a second."
    )
    numbers = rows[[name for name in COLUMNS if not name.startswith(("forward_", "speedup", "dx_", "dw_", "y_"))]]
    return Topic("training_step", "Training step", note, numbers, _without_empty(shown))


def _law(ratios: pd.DataFrame) -> Topic:
    shown = key_columns(ratios.assign(method="block_shock", kernel="cusparselt", world_size=2))
    shown = shown.drop(columns=["method", "kernel", "P"], errors="ignore")
    shown = shown.assign(mask=ratios["mask"].astype(str))
    for column, name in (("s", "s"), ("predicted", "predicted ratio"), ("local_ratio", "measured, product")):
        shown[name] = ratios[column].map(number)
        shown[f"{name}, 95%"] = bounds(ratios, f"{column}_lo", f"{column}_hi")
    shown["measured, whole forward"] = ratios["ratio"].map(number)
    shown["measured / predicted"] = percent(ratios["local_ratio"] / ratios["predicted"])
    shown["finding"] = ratios["finding"]
    note = (
        "time(Block-Shock) / time(row-parallel) = max(2/s, 9/8) for the rank-local product of two ranks on sparse "
        "tensor cores; s, twice dense_single's time over Block-Shock's on one rank with cuSPARSELt, is the realised "
        "sparse speedup (adding the two halves there counts against it). It agrees where both sides' 95% intervals "
        "overlap."
    )
    return Topic("law", "The law max(2/s, 9/8)", note, ratios, _without_empty(shown))


def _memory(table: pd.DataFrame) -> Topic:
    sizes = {
        "weight_bytes_per_rank": "weights, MiB",
        "gradient_bytes_per_rank": "gradients, MiB",
        "optimizer_bytes_per_rank": "optimizer, MiB",
        "forward_memory_peak_bytes": "peak forward, MiB",
        "step_memory_peak_bytes": "peak training, MiB",
    }
    rows = table[table[list(sizes)].notna().any(axis=1)]
    shown = key_columns(rows, TRAINING)
    for column, name in sizes.items():
        shown[name] = rows[column].map(mebibytes)
    resident = rows["memory_peak_kind"].astype(str).str.startswith("resident").any()
    note = "Of one rank, the largest of all ranks." + (
        " Peaks on a CPU are the process's resident set, Python and PyTorch included." if resident else ""
    )
    keys = [name for name in rows if name in {*KEPT, *TRAINING}]
    return Topic("memory", "Memory", note, rows[[*keys, *sizes, "memory_peak_kind"]], _without_empty(shown))


def _errors(table: pd.DataFrame) -> Topic:
    rows = table[table["passed"].notna()]
    columns = [f"{quantity.lower()}_{what}" for quantity in QUANTITIES for what in ("relative_error", "error_limit")]
    keys = [name for name in rows if name in KEPT and name not in ("timing_mode", "flush_l2")]
    # The error belongs to a layer, and a layer has as many rows as it was timed in ways.
    rows = rows[[*keys, *columns, "dense_relative_error", "passed", "failed_checks"]].drop_duplicates()
    shown = key_columns(rows)
    for quantity in QUANTITIES:
        name = quantity.lower()
        shown[f"{quantity} (limit)"] = errors(rows[f"{name}_relative_error"], rows[f"{name}_error_limit"])
    shown["one rounding"] = errors(rows["dense_relative_error"])
    shown["check"] = [
        "pass" if passed else f"FAIL {failed}"
        for passed, failed in zip(rows["passed"], rows["failed_checks"], strict=True)
    ]
    note = (
        "‖A − A*‖ / ‖A*‖ against float64 for Y, dX and dW, and what the roundings that a method must make allow. One "
        "rounding: a dense product's error on the same data. The check covers every phase that made one."
    )
    return Topic("errors", "Errors", note, rows, _without_empty(shown))


KEPT = {
    *("method", "kernel", "mask", "options", "workload", "N", "K", "B", "dtype", "world_size", "device", "backend"),
    *("threads_per_rank", "timing_mode", "flush_l2"),
}


def _without_empty(shown: pd.DataFrame) -> pd.DataFrame:
    return shown[[name for name in shown if (shown[name].astype(str) != "").any()]].astype(str)
