"""A report's title: what was measured, never where it lies."""

from __future__ import annotations

import pandas as pd

from sweeps.report.findings.finding import listed
from sweeps.report.tables.benchmarks import PARTS
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.traces import problem, traces
from sweeps.report.tables.verdicts import LAYER, MODEL, PAIR, subject

NAMED = 6  # models at most in a title


def title(data: ReportData) -> str:
    """`Forward pass and training step of a linear layer, N 4096 to 8192, B 64 to 4096`."""
    parts = [*_layers(data.table), *_benchmarks(data.benchmarks)]
    if len(data.recomputed):
        parts.append(f"recomputation in {_names(data.recomputed['model'])}")
    if len(data.largest):
        parts.append(f"largest batch of {_names(data.largest['model'])}")
    if len(data.profiles):
        parts.append(f"profiled training steps of {_names(data.profiles['workload'])}")
    if len(data.traces):
        parts.append(_traces(data))
    text = "; ".join(parts) or "nothing measured yet"
    return text[:1].upper() + text[1:]


def _layers(table: pd.DataFrame) -> list[str]:
    if table.empty:
        return []
    columns = {
        "forward_p50_ms": "forward pass",
        "backward_input_p50_ms": "backward pass",
        "step_p50_ms": "training step",
    }
    timed = [what for column, what in columns.items() if table[column].notna().any()]
    return [f"{listed(timed or ['correctness'])} of {'; of '.join(_subjects(table))}"]


def _subjects(table: pd.DataFrame) -> list[str]:
    """Layers, pairs of layers, and models by name."""
    kinds = table["workload"].map(str).map(subject)
    sized = {LAYER: "a linear layer", PAIR: PAIR}
    found = [
        f"{words}, {_span(rows, 'N')}, {_span(rows, 'B')}"
        for kind, words in sized.items()
        if len(rows := table[kinds == kind])
    ]
    models = table.loc[kinds == MODEL, "workload"].str.split(" ").str[0]
    return [*found, f"{_names(models)} over ranks"] if len(models) else found


def _benchmarks(table: pd.DataFrame) -> list[str]:
    if table.empty:
        return []
    words = {
        "product": "matmul",
        "forward": "forward pass",
        "backward": "backward matmuls",
        "train": "training step",
        "all_reduce": "all-reduce",
        "law": "the model max(2/s, 9/8)",
    }
    parts = [
        words.get(part, part)
        for part in (*PARTS, *sorted(set(table["part"]) - set(PARTS)))
        if part in set(table["part"])
    ]
    return [f"benchmark of {listed(parts)}, {_span(table, 'N')}, {_span(table, 'B')}"]


def _traces(data: ReportData) -> str:
    rows = traces(data.traces)
    each = list(dict.fromkeys(f"{row['method']} ({problem(row)})" for _, row in rows.iterrows()))
    if len(each) > NAMED:
        return f"{len(rows)} traced training steps"
    return f"traced training step{'s' if len(each) > 1 else ''} of {listed(each)}"


def _names(column: pd.Series) -> str:
    names = list(dict.fromkeys(map(str, column)))
    return listed(names) if len(names) <= NAMED else f"{len(names)} models"


def _span(table: pd.DataFrame, name: str) -> str:
    low, high = int(table[name].min()), int(table[name].max())
    return f"{name} {low}" if low == high else f"{name} {low} to {high}"
