"""Recomputed steps: what half of the activation memory costs, and how little a step can do with."""

from __future__ import annotations

import pandas as pd

from sweeps.report.findings.finding import Finding, listed, sentence, share_span
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.compiled_front import METHODS as COMPILED
from sweeps.report.tables.steps.recomputation import KEEP_ALL, MIB, SETTING
from sweeps.text import counted, number, times

HALF = 0.505  # a plan for half reaches it within half a percent
OURS = "recompute_optimal"


def find(data: ReportData) -> Finding | None:
    table = data.recomputed
    table = table[~table["method"].isin(COMPILED)] if len(table) else table
    table = table[table["step_p50_ms"].notna()] if len(table) else table
    if table.empty:
        return None
    keep = table[table["method"] == KEEP_ALL].drop_duplicates(list(SETTING))
    keep = keep[[*SETTING, "above_static_bytes"]].rename(columns={"above_static_bytes": "all_bytes"})
    table = table.merge(keep, on=list(SETTING), how="left")
    table["activations_share"] = table["above_static_bytes"] / table["all_bytes"]
    table["peak_share"] = table["peak_bytes"] / table["keep_all_peak_bytes"]
    ours = table[table["method"].eq(OURS) & table["slowdown"].notna()]
    if ours.empty:
        return _without_ours(table)
    half = _fastest(ours[ours["activations_share"] <= HALF])
    least = _least(ours)
    said = []
    if len(half):
        models = counted(half["model"].nunique(), "model")
        said.append(
            f"half of the activation memory costs {share_span(half['slowdown'] - 1)} of the step's time on {models}"
        )
    if len(least):
        said.append(
            f"the smallest peak is {share_span(least['peak_share'])} of keep_all's, "
            f"for {share_span(least['slowdown'] - 1)} more time"
        )
    if not said:
        more = share_span(ours["slowdown"] - 1)
        said.append(f"{OURS} takes {more} more time than keep_all (a CPU reports no peaks)")
    shown = pd.concat([_fastest(ours) if half.empty and least.empty else half, least])
    per_block = table[table["method"].eq("torch_checkpoint")].merge(shown[list(SETTING)].drop_duplicates())
    rows = pd.concat([shown, per_block], ignore_index=True)
    rows = rows.sort_values([*SETTING, "slowdown"]).drop_duplicates([*SETTING, "variant", "budget"])
    return Finding("finding-recomputation", sentence("; ".join(said)), _numbers(rows))


def _without_ours(table: pd.DataFrame) -> Finding:
    names = list(dict.fromkeys(table["variant"]))
    text = f"{listed(names)} measured, and nothing to compare with: {OURS} and keep_all are not both there"
    return Finding("finding-recomputation", sentence(text), _numbers(table.head(8)))


def _fastest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each model's largest batch."""
    return rows.sort_values(["B", "slowdown"], ascending=[False, True]).drop_duplicates(_model())


def _least(rows: pd.DataFrame) -> pd.DataFrame:
    known = rows[rows["peak_share"].notna()]
    return known.sort_values(["B", "peak_bytes"], ascending=[False, True]).drop_duplicates(_model())


def _model() -> list[str]:
    return [key for key in SETTING if key != "B"]


def _numbers(rows: pd.DataFrame) -> pd.DataFrame:
    text = {
        "method": rows["variant"],
        "model": rows["model"],
        "B": rows["B"].map("{:.0f}".format),
        "budget": rows["budget"].map(str),
        "peak, MiB": (rows["peak_bytes"] / MIB).map(number),
        "of keep_all's": rows["peak_share"].map(lambda share: "" if pd.isna(share) else f"{share:.0%}"),
        "step, ms": rows["step_p50_ms"].map(number),
        "× keep_all's time": rows["slowdown"].map(times),
    }
    shown = pd.DataFrame(text).astype(str)
    return shown[[name for name in shown if (shown[name] != "").any()]]
