"""Benchmarks and their targets, as text."""

from __future__ import annotations

import pandas as pd

from sweeps.report.tables.benchmarks import SETTING, clock
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
        "part": table["part"],
        "method": table["method"],
        "variant": table["variant"],
        "mask": table["mask"],
        "kernel": table["kernel"],
        "chosen kernel": table["chosen_kernel"],
        "its options": table["kernel_options"],
        "collective": table["collective"],
        "chunks": table["chunks"],
        **{name: table[name] for name in SETTING if table[name].nunique() > 1},
        "N": table["N"],
        "B": table["B"],
        "P": table["world_size"],
        clock(table): table["p50_us"].map(number),
        "eager, µs": table["eager_p50_us"].map(number),
        "baseline": table["baseline"],
        "ratio": table["ratio"].map(_ratio),
        "of single rounds": [
            "" if pd.isna(low) else f"{low:.3f} – {high:.3f}"
            for low, high in zip(table["ratio_lo"], table["ratio_hi"], strict=True)
        ],
        "relative error": errors(table["relative_error"]),
    }
    shown = pd.DataFrame(columns).astype(str)
    return shown[[name for name in shown if (shown[name] != "").any()]]


def _ratio(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"
