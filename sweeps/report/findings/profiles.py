"""Profiled steps: how well the peak is foreseen, and how long the device waits."""

from __future__ import annotations

import pandas as pd

from sweeps.report.findings.finding import Finding, sentence
from sweeps.report.tables.report_data import ReportData
from sweeps.text import counted, number

MIB = 2**20
MOST = 12


def find(data: ReportData) -> Finding | None:
    if data.profiles.empty:
        return None
    rows = data.profiles.sort_values(["workload", "B", "dtype", "started"]).reset_index(drop=True)
    simulated, measured = (_numbers(rows, f"profile.{name}_peak_bytes") for name in ("simulated", "measured"))
    nodes, step = _numbers(rows, "profile.node_time_s") * 1e3, _numbers(rows, "timings_ms.total_step.p50_ms")
    off = (simulated / measured - 1).abs()
    said = []
    if off.notna().any():
        said.append(
            f"the simulated peak is within {off.max():.2%} of the measured one on {counted(len(rows), 'profile')}"
        )
    wait = (1 - nodes / step).where(step > 0).fillna(0.0)
    if wait.max() > 0:
        worst = rows.iloc[int(wait.to_numpy().argmax())]
        said.append(
            f"kernels fill {1 - wait.max():.0%} to {min(1.0, 1 - wait.min()):.0%} of a step, the least on "
            f"{worst['workload']} at batch {worst['B']:.0f}"
        )
    if not said:
        said.append(f"{counted(len(rows), 'step')} profiled")
    text = {
        "model": rows["workload"].astype(str),
        "B": rows["B"].map("{:.0f}".format),
        "dtype": rows["dtype"].astype(str),
        **_dropout(rows),
        "step, ms": step.map(number),
        "nodes, ms": nodes.map(number),
        "measured peak, MiB": (measured / MIB).map(number),
        "simulated, over measured": (simulated / measured).map(lambda ratio: "" if pd.isna(ratio) else f"{ratio:.4f}"),
    }
    return Finding("finding-profiles", sentence("; ".join(said)), pd.DataFrame(text).head(MOST))


def _dropout(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Where it tells steps apart."""
    dropout = _numbers(rows, "config.workload.dropout").map(lambda p: "the model's" if pd.isna(p) else f"{p:g}")
    return {"dropout": dropout} if dropout.nunique() > 1 else {}


def _numbers(rows: pd.DataFrame, name: str) -> pd.Series:
    return pd.to_numeric(rows[name]) if name in rows else pd.Series(float("nan"), index=rows.index)
