"""The largest batch in a given memory: ours next to torch.compile's alone."""

from __future__ import annotations

import pandas as pd

from sweeps.report.findings.finding import Finding, sentence
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.largest_batch import next_to_torch_compile
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
            "largest batch": rows["batch_size"].map("{:.0f}".format),
            "samples per s": rows["samples_per_s"].map(number),
            "step, ms": rows["step_p50_ms"].map(number),
        }
    )
    return Finding("finding-largest-batch", sentence(text), numbers.astype(str))


def _next_to_torch_compile(ours: pd.DataFrame) -> str:
    """In the memory where the batches differ the most."""
    ratio = (ours["batch_size"] / ours["alone_batch"]).to_numpy()
    best = ours.iloc[int(ratio.argmax())]
    return (
        f"in {best['limit_bytes'] / GB:g} GB {best['model']} trains with a batch of {best['batch_size']:.0f} under a "
        f"memory budget, {ratio.max():.1f} times torch.compile's, at {best['over_alone']:.2f} times its throughput"
    )


def _the_largest(table: pd.DataFrame) -> str:
    best = table.iloc[int(table["batch_size"].to_numpy().argmax())]
    return (
        f"the largest batch of {best['model']} is {best['batch_size']:.0f}, with {best['variant']} in "
        f"{best['limit_bytes'] / GB:g} GB"
    )
