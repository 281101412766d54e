"""The comparisons behind a verdict, as text."""

from __future__ import annotations

from sweeps.report.listings.listing import without_empty_columns
from sweeps.report.listings.overview import key_columns, setting_columns
from sweeps.report.page.page_table import PageTable
from sweeps.report.tables.verdicts import Verdict
from sweeps.text import number


def evidence(verdict: Verdict) -> PageTable | None:
    """A verdict's comparisons as text."""
    rows = verdict.evidence
    if rows.empty:
        return None
    if "method" not in rows and "ratio" in rows:
        keys = rows.assign(method="block_shock")
        shown = key_columns(keys).drop(columns="method")
        for old, new in EVIDENCE.items():
            if old in rows:
                shown[new] = rows[old].map(number) if rows[old].dtype.kind == "f" else rows[old].astype(str)
        shown = shown.join(setting_columns(keys))
    else:
        shown = rows.astype({"share_of_limit": object})
        shown["share_of_limit"] = rows["share_of_limit"].map(lambda value: f"{value:.0%}")
        shown = shown.rename(columns={"share_of_limit": "of the limit, at most", "world_size": "P"}).astype(str)
    shown = without_empty_columns(shown)
    return PageTable(f"evidence-{verdict.title}", f"{verdict.title}: comparisons", "", shown)


EVIDENCE = {
    "ours_ms": "Block-Shock, ms",
    "rival_method": "against",
    "rival_ms": "its time, ms",
    "ratio": "ratio",
    "lo": "from",
    "hi": "to",
    "decided": "Block-Shock is",
    "memory_over_row": "memory / row-parallel's",
    "memory_over_dense": "memory / dense's",
}
