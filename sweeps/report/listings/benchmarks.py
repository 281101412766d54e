"""Benchmarks and their targets, as text."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.tables import clocks
from sweeps.report.tables.benchmarks import CELL, SETTING, clock
from sweeps.report.tables.report_data import ReportData
from sweeps.text import errors, number


def target_table(judged: pd.DataFrame) -> pd.DataFrame:
    """The targets as text."""
    columns = {
        **{name: judged[name] for name in SETTING if judged[name].nunique() > 1},
        "target": judged["target"],
        "P": judged["world_size"],
        "measured": judged["measured"].map("{:.3f}".format),
        "limit": judged["limit"].map("{:g}".format),
        "verdict": judged["met"].map({True: "met", False: "missed"}),
        "cells": judged["cells"],
        "worst cell": judged["worst cell"],
    }
    return pd.DataFrame(columns).astype(str)


def benchmark_table(table: pd.DataFrame) -> pd.DataFrame:
    """The rows as text; columns that say nothing are left out."""
    columns = {
        "method": table["contender"],
        "part": table["part"],
        "N": table["N"],
        **({"K": table["K"]} if table["K"].ne(table["N"]).any() else {}),
        "B": table["B"],
        "P": table["world_size"],
        clock(table): table["p50_us"].map(number),
        "ratio": table["ratio"].map(_ratio),
        "of single rounds": [
            "" if pd.isna(low) else f"{low:.3f} – {high:.3f}"
            for low, high in zip(table["ratio_lo"], table["ratio_hi"], strict=True)
        ],
        "baseline": table["baseline"],
        "eager, µs": table["eager_p50_us"].map(number),
        "quantity": table["quantity"],
        "mask": table["mask"],
        "kernel": table["kernel"],
        "chosen kernel": table["chosen_kernel"],
        "collective": table["collective"],
        "chunks": table["chunks"],
        **{name: table[name] for name in SETTING if table[name].nunique() > 1},
        "relative error": errors(table["relative_error"]),
        "its options": table["kernel_options"],
    }
    return without_empty_columns(pd.DataFrame(columns).join(clocks.as_text(table)))


def _ratio(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def select_targets(data: ReportData) -> pd.DataFrame:
    return data.targets


def select_benchmarks(data: ReportData) -> pd.DataFrame:
    return data.benchmarks


def remark(table: pd.DataFrame) -> str:
    on_cpu = table["device"].eq("cpu").any()
    said = " The targets are for GPUs: times on a CPU only show that it works, and are not judged." if on_cpu else ""
    return said + clocks.remark(table)


TARGETS = Listing(
    "targets",
    "Benchmarks: targets",
    "Ratios of medians of contenders that took turns in one job. Shares of cells, and torch_semi_structured's time "
    "over ours, must reach the limit; all other ratios must stay below it.",
    select_targets,
    target_table,
)
BENCHMARKS = Listing(
    "benchmarks",
    "Benchmarks",
    "Times are medians: on GPUs as CUDA graphs with a cold L2 cache, and eager, which includes the host, with a warm "
    "one. Ratio: over the baseline's time in the same job; of single rounds: the smallest and the largest ratio of a "
    "round. Where several jobs measured a contender in a cell the latest counts, with its own baseline.",
    select_benchmarks,
    benchmark_table,
    remark,
    best=(("p50_us", "CUDA graph, µs"), ("p50_us", "time, µs")),
    among=(*CELL, "quantity"),
)
