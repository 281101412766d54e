"""The targets of the benchmarks' ratios, and by how much they are met or missed.

verdicts(benchmarks(load_runs([...])))      # one row per target and number of ranks
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from sweeps.report.tables.law import predicted_ratio

FIXED = ("complement_1100_0011", "complement_1010_0101", "complement_1001_0110")
BLOCKS = (*FIXED, "checkerboard")
OURS = "block_shock/1100"
JUDGED = (OURS, "block_shock/checkerboard", "block_shock/random")
# Part -> the ratio to its baseline that no cell may exceed, and the contenders that this holds for.
WORST_CELL: dict[str, tuple[float, tuple[str, ...]]] = {
    "product": (1.25, tuple(f"{mask}/auto" for mask in BLOCKS)),
    "forward": (1.05, JUDGED),
    "train": (1.1, JUDGED),
}
SHARE_WITHIN, WITHIN = 0.9, 0.05  # of the prediction: so many cells within so much

CELL = ["world_size", "N", "B", "K"]


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """target, world_size, measured, limit, met, cells: every target for which there are rows.

    `rows` of several runs have a column `run`, larger for a later one: no ratio is of times of two runs, and of a cell
    in which several runs measured both, the latest counts.
    """
    found = [verdict for part in (_product, _random, _forward, _train, _all_reduce, _law) for verdict in part(rows)]
    columns = ["world_size", "target", "measured", "limit", "met", "cells", "worst cell"]
    return pd.DataFrame(found, columns=columns)


def ratios(rows: pd.DataFrame, part: str, column: str = "p50_us") -> pd.DataFrame:
    """The times of one part, a row a cell (and run, if `rows` say it), and a column a contender (`method/variant`)."""
    chosen = rows[rows["part"] == part]
    pairs = zip(chosen["method"], chosen["variant"], strict=True)
    return chosen.assign(contender=[f"{method}/{variant}".rstrip("/") for method, variant in pairs]).pivot_table(
        index=_place(rows), columns="contender", values=column, aggfunc="median"
    )


def _place(rows: pd.DataFrame) -> list[str]:
    """What times must share to be compared."""
    return [*CELL, "run"] if "run" in rows else CELL


def _latest(found: pd.Series) -> pd.Series:
    """Of each cell that of the latest run which has one."""
    return found.dropna().groupby(level=CELL).last()


def _verdict(
    ratio: pd.Series, target: str, limit: float, measured: float | None = None, least: bool = False
) -> dict[str, Any]:
    """`measured` (default: the worst of `ratio`) against `limit`, an upper bound or with `least` a lower one."""
    place = int(ratio.to_numpy().argmin() if least else ratio.to_numpy().argmax())
    worst: Any = ratio.index[place]
    value = float(ratio.iloc[place]) if measured is None else measured
    return {
        "world_size": int(worst[0]),
        "target": target,
        "measured": value,
        "limit": limit,
        "met": value >= limit if least else value <= limit,
        "cells": len(ratio),
        "worst cell": f"{_size(*worst[1:4])}: {ratio.iloc[place]:.3f}",
    }


def _size(N: int, B: int, K: int) -> str:
    return f"N={N} B={B}" + (f" K={K}" if K != N else "")


def _over(times: pd.DataFrame, mine: str, other: str) -> pd.Series:
    """The ratio of two contenders in the cells that have both; a benchmark that goes on may still lack either."""
    return _latest(times[mine] / times[other]) if {mine, other} <= set(times) else pd.Series(dtype=float)


def _by_ranks(times: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for _, group in times.groupby(level="world_size"):
        yield group


def _product(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    times = ratios(rows, "product")
    for title, masks in (("fixed patterns", FIXED), ("checkerboard", ("checkerboard",))):
        found = [_over(times, f"{mask}/auto", "half_k_dense") for mask in masks]
        if any(len(ratio) for ratio in found):
            ratio = pd.concat([ratio for ratio in found if len(ratio)])
            mean = float(np.exp(np.log(ratio).mean()))
            yield _verdict(ratio, f"matmul, {title}, over half-K dense: geometric mean", 1.10, mean)
            yield _verdict(ratio, f"matmul, {title}, over half-K dense: worst cell", WORST_CELL["product"][0])


def _random(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    times = ratios(rows, "product")
    if "random_2of4/auto" not in times:
        return
    auto = _latest(times["random_2of4/auto"])
    small = auto[auto.index.get_level_values("B") <= 64]
    if len(small):
        N, B, K = (small.index.get_level_values(name) for name in ("N", "B", "K"))
        rate = float(rows["copy_gbs"].max()) * 1e3  # bytes a µs
        floor = (N * K * 2 * 9 / 16 + 2 * B * (N + K)) / rate  # two bytes an element: values, metadata, X and Y
        yield _verdict(small / floor, "matmul, random 2-of-4, B <= 64, over the bytes floor", 1.25)
    vendor = _over(times, "random_2of4/auto", "random_2of4/cusparselt")
    if len(vendor):
        yield _verdict(vendor, "matmul, random 2-of-4, over cuSPARSELt", 1.0)


def _forward(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for times in _by_ranks(ratios(rows, "forward")):
        row = _over(times, OURS, "dtensor_row")
        if len(row):
            share = float((row <= 0.9).mean())
            yield _verdict(row, "forward over dtensor_row: share of cells <= 0.9", 0.8, share) | {"met": share >= 0.8}
            yield _verdict(row, "forward over dtensor_row: worst cell", WORST_CELL["forward"][0])
        peer = _over(times, "torch_semi_structured", OURS)
        small = peer[peer.index.get_level_values("B") <= 256] if len(peer) else peer
        if len(small):
            yield _verdict(small, "torch_semi_structured over ours, B <= 256", 5.0, least=True)
        if len(peer):
            yield _verdict(peer, "torch_semi_structured over ours", 1.0, least=True)
        alike = _over(times, OURS, "dense_tp_row")
        if len(alike):
            yield _verdict(alike, "forward over dense_tp_row, which chooses alike", 1.0)


def _train(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for times in _by_ranks(ratios(rows, "train")):
        for ours, other in itertools.product(JUDGED, ("dense_tp_row", "dtensor_row")):
            ratio = _over(times, ours, other)
            if len(ratio):
                yield _verdict(ratio, f"AdamW step of {ours} over {other}", WORST_CELL["train"][0])
    if (rows["part"] == "train").any():
        share = ratios(rows, "train", "state_bytes") / ratios(rows, "train", "dense_state_bytes")
        for own in _by_ranks(share):
            for name in (str(n) for n in own if str(n).startswith("block_shock/")):
                if own[name].notna().any():
                    yield _verdict(_latest(own[name]), f"{name}: weight, gradient and optimizer bytes over dense", 0.57)


def _all_reduce(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    if "chosen" not in rows:
        return
    mine = rows[(rows["part"] == "all_reduce") & rows["chosen"].eq(True)]
    if mine.empty:
        return
    chosen = mine.set_index(_place(mine))
    times = ratios(rows, "all_reduce")
    eager = ratios(rows, "all_reduce", "eager_p50_us") if "eager_p50_us" in rows else pd.DataFrame()
    better = times[[n for n in ("nccl", "two_shot") if n in times]].min(axis=1)
    for ranks in sorted(chosen.index.unique("world_size")):
        own = chosen.xs(ranks, drop_level=False)
        yield _verdict(
            _latest(own["p50_us"] / better[own.index]), "all-reduce chosen over the better of NCCL, two-shot", 1.03
        )
        small = own[own["bytes"] <= 1 << 21]
        if len(small) and "nccl" in eager:
            yield _verdict(
                _latest(small["p50_us"] / eager["nccl"][small.index]), "all-reduce up to 2 MiB over eager NCCL", 0.6
            )


def _law(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    found = law(rows)
    if found.empty:
        return
    for column, name in (("error", "max(2/s, 9/8)"), ("parts_error", "the sum of the measured parts")):
        error = found[column].abs()
        share = float((error <= WITHIN).mean())
        target = f"{name}: share of cells within {WITHIN:.0%}"
        yield _verdict(error, target, SHARE_WITHIN, share) | {"met": share >= SHARE_WITHIN}


def law(rows: pd.DataFrame) -> pd.DataFrame:
    """Predicted and measured Block-Shock over row-parallel, by cell, and by how much the measured ratio is larger.

    s is the sparse half's speed over the whole dense matmul. Predicted is max(2/s, 9/8) times row-parallel's matmul,
    plus the collective, over row-parallel's matmul plus the collective (docs/method.md). This assumes that
    row-parallel's matmul takes half of the dense one's time, which a small matmul does not; `parts` is the ratio of the
    sums of what each method does, measured alone: where it holds and the prediction does not, that assumption is all
    that is wrong.
    """
    names = ["dense", "half_k_dense", "sparse_half", "all_reduce", "block_shock", "dense_tp_row"]
    times = ratios(rows, "law").reindex(columns=names)
    s = times["dense"] / times["sparse_half"]
    factor = predicted_ratio(s)
    row_parallel = times["half_k_dense"] + times["all_reduce"]
    predicted = (factor * times["half_k_dense"] + times["all_reduce"]) / row_parallel
    parts = (times["sparse_half"] + times["all_reduce"]) / row_parallel
    measured = times["block_shock"] / times["dense_tp_row"]
    columns = {"s": s, "factor": factor, "predicted": predicted, "parts": parts, "measured": measured}
    columns |= {"error": measured / predicted - 1, "parts_error": measured / parts - 1}
    found = pd.DataFrame(columns).dropna()
    return found.reset_index().groupby(CELL).tail(1).set_index(CELL)[list(columns)] if len(found) else found
