"""Compiled training steps under a memory budget, as text: the baselines, what a lower peak costs, and our plans."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.listings.steps.recomputation import plain
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.compiled_front import (
    BLOCKS,
    BUDGET,
    KERNELS,
    KEYS,
    added,
    dominated,
    front,
    higher_peaks,
    plans,
)
from sweeps.report.tables.steps.recomputation import MIB, MS
from sweeps.text import number, signed, times

LINES = ("ours", "automatic", "by_hand")


def select_baselines(data: ReportData) -> pd.DataFrame:
    return dominated(front(data.recomputed))


def baselines_table(table: pd.DataFrame) -> pd.DataFrame:
    """Each baseline next to the fastest of our points that need no more memory."""
    verdict = table["dominated"].map({True: "yes", False: "no"})
    verdict = verdict.mask(table["dominated_by_kernels"] & ~table["dominated"], "by kernels").where(
        table["alike"], "(wrong)"
    )
    columns = {
        "baseline": [_baseline(*row) for row in table[["kind", "options", "label"]].itertuples(index=False)],
        **_setting(table),
        "step, ms": table["step_p50_ms"].map(number),
        "added": table["added"].map(signed),
        "peak, MiB": (table["peak_bytes"] / MIB).map(number),
        "ours": table["ours_options"].fillna("").astype(str),
        "its budget": table["ours_label"].fillna("").astype(str),
        "its peak, MiB": (table["ours_peak_bytes"] / MIB).map(number),
        "its step, ms": table["ours_step_p50_ms"].map(number),
        "× the baseline's time": table["ratio"].map(_ratio),
        "× by kernels": table["kernels_ratio"].map(_ratio),
        "ours dominates it": verdict,
    }
    return without_empty_columns(pd.DataFrame(columns))


def _baseline(kind: str, options: str, label: str) -> str:
    what = label if kind in (BUDGET, BLOCKS) else options.removeprefix("per block, ")
    return f"{kind}: {what}" if what else kind


def _undominated(table: pd.DataFrame) -> str:
    counted = table[table["alike"]]
    steps, kernels = int(counted["dominated"].sum()), int(counted["dominated_by_kernels"].sum())
    return f" Ours dominates {steps} of {len(counted)} baseline points, by the time of kernels {kernels}."


def select_added(data: ReportData) -> pd.DataFrame:
    """With kernels' times beside those of steps, as `*_kernels_ms`."""
    points = front(data.recomputed)
    kernels = added(points, KERNELS).rename(columns={f"{name}_ms": f"{name}_kernels_ms" for name in LINES})
    beside = [*KEYS, "peak_bytes", *(f"{name}_kernels_ms" for name in LINES)]
    return added(points).merge(kernels[beside], on=[*KEYS, "peak_bytes"], how="left")


def added_table(table: pd.DataFrame) -> pd.DataFrame:
    """Added milliseconds at three peaks."""
    columns = _setting(table) | {
        "peak, MiB": (table["peak_bytes"] / MIB).map(number),
        "torch.compile, ms": table["plain_ms"].map(number),
        "ours adds, ms": table["ours_ms"].map(_reached),
        "automatic adds, ms": table["automatic_ms"].map(_reached),
        "chosen by hand adds, ms": table["by_hand_ms"].map(_reached),
        "ours of automatic": table["share"].map(times),
        "ours adds, ms of kernels": table["ours_kernels_ms"].map(_milliseconds),
        "automatic adds, ms of kernels": table["automatic_kernels_ms"].map(_milliseconds),
    }
    return without_empty_columns(pd.DataFrame(columns))


def select_plans(data: ReportData) -> pd.DataFrame:
    return plans(front(data.recomputed))


def plans_table(table: pd.DataFrame) -> pd.DataFrame:
    """Predicted next to measured."""
    columns = _setting(table) | {
        "ours": table["options"],
        "budget": table["label"],
        "budget, MiB": (table["budget_bytes"] / MIB).map(number),
        "predicted peak, MiB": (table["predicted_peak_bytes"] / MIB).map(number),
        "peak, MiB": (table["peak_bytes"] / MIB).map(number),
        "peak over predicted": (table["peak_bytes"] / table["predicted_peak_bytes"] - 1).map(signed),
        "predicted to add, ms": (table["predicted_added_s"] / MS).map(_milliseconds),
        "adds, ms": table["added_ms"].map(_milliseconds),
        "planning, s": table["planning_s"].map(number),
        "gap": table["gap"].map(signed),
        "recompilations": table["recompilations"].map(number),
    }
    return without_empty_columns(pd.DataFrame(columns))


def _kept(table: pd.DataFrame) -> str:
    over = int((table["peak_bytes"] > table["budget_bytes"]).sum())
    said = f" Above their budgets: {over} of {len(table)} peaks."
    return f"{said} A lower budget measured a higher peak {higher_peaks(table)} times."


def _setting(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The model, and of the other keys those that differ, or that a reader asks for first."""
    told = [key for key in KEYS if key in ("model", "B", "device", "torch") or table[key].nunique() > 1]
    return {key: table[key].map(plain) for key in told}


def _ratio(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}×"


def _reached(value: float) -> str:
    return _milliseconds(value) or "not reached"


def _milliseconds(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.2f}"


BASELINES = Listing(
    "compiled_baselines",
    "Compiled training: the baselines",
    "Each way that PyTorch offers to lower a compiled step's peak, next to the fastest of our plans that needs no more "
    "memory. Ours dominates a baseline whose time it takes at most 1.01 times. By kernels: the sum of one step's "
    "kernels, which a slow host can't delay. Added: over torch.compile alone. Wrong: "
    "gradients or batch-norm statistics differ from torch.compile's by more than rounding.",
    select_baselines,
    baselines_table,
    _undominated,
)
ADDED_TIME = Listing(
    "compiled_added_time",
    "Compiled training: what a lower peak costs",
    "Milliseconds over torch.compile alone, at three peaks spread between its own and the baselines' lowest, on the "
    "lower envelopes of ours, of the automatic ways (activation_memory_budget, checkpointed blocks) and of the "
    "selective policies that were chosen by hand.",
    select_added,
    added_table,
)
PLANS = Listing(
    "compiled_plans",
    "Compiled training: our plans",
    "What each plan promised and what its step needed. Adds: over torch.compile alone. Gap: to a bound on the least "
    "time that any plan within the budget adds.",
    select_plans,
    plans_table,
    _kept,
)
