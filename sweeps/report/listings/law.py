"""The law max(2/s, 9/8): predicted and measured ratios of Block-Shock's time to row-parallel's."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.listings.overview import key_columns, setting_columns
from sweeps.report.tables.report_data import ReportData
from sweeps.text import bounds, number, percent


def select(data: ReportData) -> pd.DataFrame:
    return data.law


def show(ratios: pd.DataFrame) -> pd.DataFrame:
    keys = ratios.assign(method="block_shock", kernel="cusparselt", world_size=2)
    shown = pd.DataFrame({"mask": ratios["mask"].astype(str)}).join(key_columns(keys).drop(columns=["method", "P"]))
    for column, name in (("s", "s"), ("predicted", "predicted ratio"), ("local_ratio", "measured, matmul")):
        shown[name] = ratios[column].map(number)
        shown[f"{name}, 95%"] = bounds(ratios, f"{column}_lo", f"{column}_hi")
    shown["measured, whole forward"] = ratios["ratio"].map(number)
    shown["measured / predicted"] = percent(ratios["local_ratio"] / ratios["predicted"])
    shown["finding"] = ratios["finding"]
    settings = setting_columns(keys).drop(columns=["kernel", "mask"], errors="ignore")
    return without_empty_columns(shown.join(settings))


LAW = Listing(
    "law",
    "The model max(2/s, 9/8)",
    "time(Block-Shock) / time(row-parallel) = max(2/s, 9/8) for the rank-local matmul of two ranks on sparse tensor "
    "cores. The realised sparse speedup s is twice dense_single's time over Block-Shock's on one rank with cuSPARSELt, "
    "including the addition of the two halves. Agrees: the 95% intervals of both sides overlap.",
    select,
    show,
)
