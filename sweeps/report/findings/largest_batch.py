"""The largest batch in a given memory: ours next to torch.compile's alone."""

from __future__ import annotations

import pandas as pd

from sweeps.report.findings.finding import Finding, listed, sentence
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.largest_batch import batch_text, next_to_torch_compile
from sweeps.text import number

GB, OURS, MOST = 1e9, "recompute_compiled", 12


def find(data: ReportData) -> Finding | None:
    if data.largest.empty:
        return None
    table = next_to_torch_compile(data.largest)
    ours = table[(table["method"] == OURS) & table["over_alone"].notna()]
    text = _next_to_torch_compile(ours) if len(ours) else _the_largest(table)
    rows = table.head(MOST)
    numbers = pd.DataFrame(
        {
            "method": rows["variant"],
            "model": rows["model"].astype(str),
            "memory, GB": (rows["limit_bytes"] / GB).map(number),
            "largest batch": batch_text(rows),
            "samples per s": rows["samples_per_s"].map(number),
            "step, ms": rows["step_p50_ms"].map(number),
        }
    )
    return Finding("finding-largest-batch", sentence(text), numbers.astype(str))


def _next_to_torch_compile(ours: pd.DataFrame) -> str:
    """Over every memory in which both were measured."""
    models = listed(sorted(set(ours["model"].astype(str))))
    faster, limits = _range(ours["over_alone"], "{:.2f}"), _range(ours["limit_bytes"] / GB, "{:g}")
    batches = ours["batch_over_alone"].dropna()
    larger = f", with batches {_range(batches, '{:.1f}')} times as large" if len(batches) else ""
    train = "trains" if ours["model"].nunique() == 1 else "train"
    return f"with a memory budget {models} {train} at {faster} times torch.compile's throughput in {limits} GB{larger}"


def _range(values: pd.Series, form: str) -> str:
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"


def _the_largest(table: pd.DataFrame) -> str:
    best = table.iloc[int(table["batch_size"].to_numpy().argmax())]
    return (
        f"the largest batch of {best['model']} is {best['batch_size']:.0f}, with {best['variant']} in "
        f"{best['limit_bytes'] / GB:g} GB"
    )
