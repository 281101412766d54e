"""Compiled training under a memory budget: what a lower peak costs, ours next to PyTorch's own ways."""

from __future__ import annotations

import pandas as pd

from sweeps.report.findings.finding import Finding, listed, sentence
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.compiled_front import AT, KERNELS, OURS, STEP, added, front, host_bound, verdict
from sweeps.report.tables.steps.recomputation import MIB, trained_on
from sweeps.text import number

MOST = 8


def find(data: ReportData) -> Finding | None:
    points = front(data.recomputed) if len(data.recomputed) else pd.DataFrame()
    if points.empty:
        return None
    by_kernels = bool(host_bound(points).any()) and bool(points[KERNELS].notna().all())
    costs = added(points, KERNELS if by_kernels else STEP)
    said = list(filter(None, [verdict(points)]))
    middle = costs.iloc[AT.index(0.5) :: len(AT)] if len(costs) else costs
    unit = "ms of kernels" if by_kernels else "ms"
    for row in middle.head(2).to_dict("records"):
        said.append(
            f"on {row['model']} a peak of {number(row['peak_bytes'] / MIB)} MiB "
            + _adds(row["ours_ms"], unit, "our plan")
            + ", and "
            + _adds(row["automatic_ms"], "ms", "torch.compile's automatic ways")
        )
    if not said:
        kinds = list(dict.fromkeys(points["kind"]))
        missing = "no baseline" if kinds == [OURS] else "none of our plans"
        said.append(f"{listed(kinds)} measured, and {missing} to compare with")
    return Finding(
        "finding-compiled", sentence("; ".join(said)), _numbers(costs if len(costs) <= MOST else middle, points, unit)
    )


def _numbers(costs: pd.DataFrame, points: pd.DataFrame, unit: str) -> pd.DataFrame:
    if costs.empty:
        rows = points.head(MOST)
        text = {
            "method": rows["kind"],
            "of": rows["label"].astype(str),
            "model": rows["model"],
            "training": [trained_on(*each) for each in zip(rows["world_size"], rows["data_parallel"], strict=True)],
            "peak, MiB": (rows["peak_bytes"] / MIB).map(number),
            "step, ms": rows["step_p50_ms"].map(number),
        }
        return pd.DataFrame(text).astype(str)
    rows = costs.head(MOST)
    return pd.DataFrame(
        {
            "model": rows["model"].astype(str),
            "at a peak of, MiB": (rows["peak_bytes"] / MIB).map(number),
            "ours adds": rows["ours_ms"].map(_reached),
            "automatic adds": rows["automatic_ms"].map(_reached),
            "by hand adds": rows["by_hand_ms"].map(_reached),
            f"torch.compile, {unit}": rows["plain_ms"].map(number),
        }
    )


def _adds(ms: float, unit: str, way: str) -> str:
    if pd.isna(ms):
        return f"is out of reach of {way}"
    return f"{'saves' if ms < 0 else 'adds'} {abs(ms):.1f} {unit} with {way}"


def _reached(ms: float) -> str:
    return "not reached" if pd.isna(ms) else f"{ms:.1f} ms"
