"""Benchmarks: Block-Shock's time over row-parallel's and PyTorch's, or of any contenders the best over the baseline."""

from __future__ import annotations

import pandas as pd

from sweeps.report.findings.finding import Finding, mean_ratio, sentence
from sweeps.report.tables.benchmarks import CELL
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.targets import FIXED, OURS
from sweeps.text import counted

WHAT = {
    "forward": "forward pass",
    "train": "AdamW step",
    "product": "rank-local matmul",
    "backward": "backward matmuls",
    "all_reduce": "all-reduce",
    "law": "forward pass with cuSPARSELt",
}
# Part, contenders, baseline, and whose times these are.
ASKED = (
    ("forward", (OURS,), "dense_tp_row", "Block-Shock"),
    ("forward", (OURS,), "dtensor_row", "Block-Shock"),
    ("train", (OURS,), "dense_tp_row", "Block-Shock"),
    ("train", (OURS,), "dtensor_row", "Block-Shock"),
    ("product", tuple(f"{mask}/auto" for mask in FIXED), "half_k_dense", "Block-Shock"),
    ("all_reduce", ("chosen",), "nccl", "the chosen all-reduce"),
)
MOST = 8  # rows of the table


def find(data: ReportData) -> Finding | None:
    table = data.benchmarks
    if table.empty:
        return None
    chosen = table[table["part"].eq("all_reduce") & table["chosen"]].assign(contender="chosen")
    table = pd.concat([table, chosen])
    found = [(whose, part, mine, other, over(table, part, mine, other)) for part, mine, other, whose in ASKED]
    found = [one for one in found if len(one[4])] or _any(table)
    if not found:
        return None
    said: list[str] = []
    for whose, part, _, other, ratio in found:
        if len(said) == 2 or any(WHAT.get(part, part) in clause for clause in said):
            continue
        said.append(
            f"{whose}'s {WHAT.get(part, part)} takes {mean_ratio(ratio):.2f} times {other}'s time "
            f"({ratio.min():.2f} to {ratio.max():.2f} in {counted(len(ratio), 'cell')})"
        )
    rows = [
        {
            "part": part,
            "method": ", ".join(mine) if len(mine) < 3 else "fixed patterns",
            "over": other,
            "mean ratio": f"{mean_ratio(ratio):.3f}",
            "from – to": f"{ratio.min():.3f} – {ratio.max():.3f}",
            "cells": str(len(ratio)),
        }
        for _, part, mine, other, ratio in found[:MOST]
    ]
    return Finding("finding-benchmarks", sentence(", and ".join(said)), pd.DataFrame(rows))


def over(table: pd.DataFrame, part: str, mine: tuple[str, ...], other: str) -> pd.Series:
    """Of each cell the time of `mine` over that of `other` in the same run; of several runs the latest."""
    keys = [*CELL, "quantity", "run"]
    rows = table[table["part"].eq(part)]
    baseline = rows[rows["contender"].eq(other)].groupby(keys)["p50_us"].median()
    times = rows[rows["contender"].isin(mine)].groupby([*keys, "contender"])["p50_us"].median().reset_index("contender")
    ratios = times.assign(ratio=times["p50_us"] / baseline.reindex(times.index)).dropna().reset_index()
    return ratios.sort_values("run", kind="stable").groupby([*CELL, "quantity", "contender"])["ratio"].last()


Asked = tuple[str, str, tuple[str, ...], str, pd.Series]


def _any(table: pd.DataFrame) -> list[Asked]:
    """Every contender over its part's baseline, the fastest of each part first."""
    rows = table[table["ratio"].notna() & table["method"].ne(table["baseline"]) & table["contender"].ne("chosen")]
    found: list[Asked] = []
    for part, own in rows.groupby("part", sort=False):
        each = [(str(name), str(of["baseline"].iloc[0]), of["ratio"]) for name, of in own.groupby("contender")]
        for name, baseline, ratio in sorted(each, key=lambda one: mean_ratio(one[2])):
            found.append((name, str(part), (name,), baseline, ratio))
    return found
