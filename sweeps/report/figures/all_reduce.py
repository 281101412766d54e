"""All-reduce: the bandwidth that a forward pass gets for its message, against the message's size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sweeps.report.figures.shared.figure import FigureSpec, ordered
from sweeps.report.figures.shared.panels import (
    KEYS,
    canvas,
    cut,
    legend,
    line_style,
    log_axes,
    method_handles,
    name_panel,
    panels,
    rank_handles,
    size_axis,
)
from sweeps.report.figures.shared.style import marker, palette
from sweeps.report.tables.report_data import ReportData
from sweeps.text import byte_size, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
ROW, HALVES = ("dense_tp_row",), ("masked_split_dense", "torch_semi_structured", "block_shock")


def select(measured: ReportData) -> pd.DataFrame:
    """A row a method, world size and message: `message_bytes`, the median `allreduce_ms`, `bus_gbs` and `link_gbs`."""
    table = measured.table
    known = table["method"].isin([*ROW, *HALVES]) & (table["world_size"] > 1)
    data = table[known & (table["forward_allreduce_p50_ms"] > 0) & table["dtype"].isin(list(BYTES))].copy()
    # docs/method.md: row-parallel sums all of Y over all P ranks; halves sum one of P/2 shards of Y over two.
    halves = data["method"].isin(HALVES)
    data["summing_ranks"] = data["world_size"].mask(halves, 2)
    shards = (data["world_size"] // 2).where(halves, 1)
    data["message_bytes"] = data["B"] * data["N"] // shards * data["dtype"].map(BYTES).astype("int64")
    keys = ["method", "world_size", "summing_ranks", "message_bytes", "host", *KEYS]
    medians = data.groupby(keys)[["forward_allreduce_p50_ms", "link_gbs"]].median().reset_index()
    medians = medians.rename(columns={"forward_allreduce_p50_ms": "allreduce_ms"})
    group = medians["summing_ranks"]
    medians["bus_gbs"] = 2 * (group - 1) / group * medians["message_bytes"] / medians["allreduce_ms"] / 1e6
    same = [key for key in keys if key != "host"]
    return medians.sort_values("allreduce_ms", kind="stable").drop_duplicates(same).sort_values(same)


def allreduce(data: pd.DataFrame) -> Figure:
    """Bus bandwidth (as NCCL's tests define it) against the message; horizontal: the calibrated link."""
    from matplotlib.lines import Line2D

    found, title = cut(panels(data.assign(N=1, K=1), []), _message(data))
    figure, axes = canvas(len(found), 6.0 if len(found) == 1 else 4.4, 3.6, title)
    colours, order = palette(data["method"]), ordered(data["method"])
    widths = {name: 4.0 - 2.8 * i / max(1, len(order) - 1) for i, name in enumerate(order)}  # equal curves stay visible
    for axis, (label, rows) in zip(axes, found, strict=True):
        lines = rows.sort_values("message_bytes").groupby(["method", "world_size"])
        for line in sorted((line for _, line in lines), key=lambda line: order.index(line["method"].iloc[0])):
            method, world_size = line["method"].iloc[0], line["world_size"].iloc[0]
            axis.plot(
                line["message_bytes"],
                line["bus_gbs"],
                color=colours[method],
                marker=marker(world_size),
                linestyle=line_style(world_size) if len(line) > 2 else "",  # two points are no curve
                ms=3.5 + widths[method],
                lw=widths[method],
            )
        limits = rows[rows["link_gbs"] > 0].groupby("world_size")["link_gbs"].median()
        for world_size, limit in zip(limits.index, limits, strict=True):
            axis.axhline(limit, color="#777777", lw=1.3, linestyle=line_style(world_size))
        size_axis(axis, rows["message_bytes"], byte_size)
        log_axes(axis, y=True)
        axis.set(xlabel="message", ylabel="effective bus bandwidth, GB/s")
        name_panel(axis, label)
    handles = method_handles(colours, order)
    if (data["link_gbs"] > 0).any():
        handles.append(Line2D([], [], color="#777777", lw=1.3, label="link limit"))
    legend(figure, [*handles, *rank_handles(data["world_size"])])
    return figure


def _message(data: pd.DataFrame) -> str:
    best = data["bus_gbs"].max()
    text = f"All-reduce in the forward pass: at most {number(best)} GB/s effective"
    return text + (", partly hidden by the matmul" if (data["bus_gbs"] > data["link_gbs"]).any() else "")


ALLREDUCE = FigureSpec(
    "allreduce",
    "Effective all-reduce bandwidth",
    "Higher is better: the effective bandwidth, 2(g−1)/g times the message over its median time inside the forward "
    "pass of g summing ranks, counts only the time that no matmul hides, and so can exceed the link's. The grey line "
    "is the large all-reduce that the machine was calibrated with.",
    select,
    allreduce,
)
