"""Traced steps: of two methods on one problem how much longer one takes, and where the time of a step goes."""

from __future__ import annotations

import pandas as pd

from sweeps.report.findings.finding import Finding, listed, sentence
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.traces import PARTS, SETTING, fastest_and_slowest, problem, traces
from sweeps.text import number, ranks, span

MOST = 8
NAMES = {part: part.replace("exposed_", "exposed ").replace("_", " ") for part in PARTS}


def find(data: ReportData) -> Finding | None:
    rows = traces(data.traces)
    if rows.empty:
        return None
    said = [clause for _, own in rows.groupby(SETTING, dropna=False, sort=False) for clause in _clauses(own)]
    text = {
        "method": rows["method"].astype(str),
        "of": [f"{problem(row)}, {ranks(int(row['world_size']))}" for _, row in rows.iterrows()],
        "step, ms": rows["step_ms"].map(number),
        **{NAMES[part]: (rows[f"{part}_ms"] / rows["step_ms"]).map("{:.0%}".format) for part in PARTS},
    }
    shown = pd.DataFrame(text)
    told = [name for name in shown if not shown[name].eq("0%").all()]
    return Finding("finding-traces", sentence("; ".join(said[:2])), shown[told].head(MOST))


def _clauses(own: pd.DataFrame) -> list[str]:
    """Of the traces of one problem: the slowest method next to the fastest, or where each step's time goes."""
    compared = fastest_and_slowest(own)
    if compared is not None:
        first, last, ratio = compared
        on = f"{problem(first)}, {ranks(int(first['world_size']))}"
        return [f"{last['method']}'s traced step is {span(ratio, ratio)} than {first['method']}'s ({on})"]
    return [_goes(row) for _, row in own.sort_values("step_ms").drop_duplicates("method").iterrows()]


def _goes(row: pd.Series) -> str:
    shares = {NAMES[part]: row[f"{part}_ms"] / row["step_ms"] for part in PARTS}
    largest = sorted(shares.items(), key=lambda pair: -pair[1])[:3]
    parts = listed(f"{share:.0%} {name}" for name, share in largest if share >= 0.005)
    return f"a step of {row['method']} ({problem(row)}) takes {number(row['step_ms'])} ms: {parts}"
