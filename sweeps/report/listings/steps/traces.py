"""Traced training steps: where their time went, of the rank with the longest step."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.traces import PARTS, SETTING, problem, traces
from sweeps.text import number


def select(data: ReportData) -> pd.DataFrame:
    return traces(data.traces)


def show(rows: pd.DataFrame) -> pd.DataFrame:
    text = {
        "method": rows["method"].astype(str),
        "workload": rows["workload"].astype(str),
        "size": [problem(row) for _, row in rows.iterrows()],
        "P": rows["world_size"].map("{:.0f}".format),
        **{f"{part.replace('_', ' ')}, ms": rows[f"{part}_ms"].map(number) for part in ("step", *PARTS)},
        "dtype": rows["dtype"].astype(str),
        "back end": rows["trace.backend"].astype(str),
        "kernels": rows["kernels"].map("{:.0f}".format),
        "slower by": rows["trace.slowdown"].map("{:.1%}".format),
        "attributed": rows["trace.attributed"].map(lambda share: "" if pd.isna(share) else f"{share:.2%}"),
    }
    return pd.DataFrame(text)


TRACES = Listing(
    "traces",
    "Traced training steps",
    "Medians over the traced steps of the slowest rank. Forward to idle add up to the step. Slower by: what tracing "
    "added to the step. Attributed: the share of device time attributed to a module, the loss, the optimizer or a "
    "collective.",
    select,
    show,
    best=(("step_ms", "step, ms"),),
    among=tuple(SETTING),
)
