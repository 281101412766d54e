"""Models whose layers are over ranks: a step's time and memory, what it sends, and the training loss next to float64's.

table = models(runs, results(runs))      # one row per method and model; empty where no model was over ranks
"""

from __future__ import annotations

import pandas as pd

from sweeps.report.tables.layers import OVER_RANKS, PROBLEM, TRAINING, layer_records

PASSES = ("forward", "backward")
KINDS = {"all_reduce": "all-reduce", "reduce_scatter": "reduce-scatter", "all_gather": "all-gather"}
STEP = ("step_p50_ms", "step_lo_ms", "step_hi_ms", "step_speedup_row", "step_speedup_row_lo", "step_speedup_row_hi")
BYTES = ("step_memory_peak_bytes", "memory_peak_kind", "weight_bytes_per_rank")
LOSS = ("train_steps", "train_loss", "loss_distance", "dense_loss_distance")
SENT = tuple(f"{each}_collectives" for each in PASSES)


def models(runs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """PROBLEM's keys, TRAINING's, STEP and BYTES of the results, SENT as text (`4 all-reduce`), and LOSS.

    `train_loss` is the training loss after `train_steps` steps of phase=phasex_drift; `loss_distance` the farthest that
    it was from a dense run's in float64 at any step, `dense_loss_distance` the same of a dense run in the same dtype.
    Of several runs the medians.
    """
    steps = table[table["workload"].map(_is_over_ranks).astype(bool) & table["step_p50_ms"].notna()]
    records = layer_records(runs)
    records = records[records["workload"].map(_is_over_ranks).astype(bool)]
    if records.empty:
        return pd.DataFrame()
    kept = [*PROBLEM, *TRAINING, *STEP, *BYTES, "step_folder"]
    found = steps[kept].merge(_losses(records), on=list(PROBLEM), how="outer").merge(_sent(records), on=list(PROBLEM))
    found["folder"] = found["step_folder"].where(found["step_folder"].notna(), found.pop("loss_folder"))
    found[["N", "K", "B", "world_size"]] = found[["N", "K", "B", "world_size"]].astype("int64")
    found[list(TRAINING)] = found[list(TRAINING)].fillna("")
    order = ["device", "dtype", "workload", "B", "world_size", "step_p50_ms", "method", "mask"]
    return found.drop(columns="step_folder").sort_values(order).reset_index(drop=True)


def _is_over_ranks(workload: str) -> bool:
    return workload.endswith(OVER_RANKS)


def _losses(records: pd.DataFrame) -> pd.DataFrame:
    """LOSS of each key, over the runs that trained."""
    nothing = records.head(0)[list(PROBLEM)].assign(**dict.fromkeys([*LOSS, "loss_folder"]))
    if "drift.loss" not in records:
        return nothing
    rows = records[records["drift.loss"].notna()]
    exact = rows["drift.exact_loss"].astype(float)
    rows = rows.assign(
        train_steps=rows["drift.step"].astype(int),
        train_loss=rows["drift.loss"].astype(float),
        loss_distance=(rows["drift.loss"].astype(float) - exact).abs(),
        dense_loss_distance=(rows["drift.dense_loss"].astype(float) - exact).abs(),
    ).sort_values("train_steps")
    if rows.empty:
        return nothing
    runs = rows.groupby([*PROBLEM, "folder"], dropna=False)
    ends = runs[["train_steps", "train_loss"]].last()
    ends[["loss_distance", "dense_loss_distance"]] = runs[["loss_distance", "dense_loss_distance"]].max()
    keys = ends.reset_index().groupby(list(PROBLEM), dropna=False)
    return keys[list(LOSS)].median().join(keys["folder"].first().rename("loss_folder")).reset_index()


def _sent(records: pd.DataFrame) -> pd.DataFrame:
    """SENT of each key; empty text where records do not have it."""
    one = records.drop_duplicates(list(PROBLEM))
    texts = {}
    for each, name in zip(PASSES, SENT, strict=True):
        columns = {
            kind: f"layer.collectives.{each}.{kind}" for kind in KINDS if f"layer.collectives.{each}.{kind}" in one
        }
        counts = one[list(columns.values())].astype(float).fillna(0).astype(int).to_numpy()
        words = [KINDS[kind] for kind in columns]
        texts[name] = [", ".join(f"{n} {word}" for n, word in zip(row, words, strict=True) if n) for row in counts]
    return one[list(PROBLEM)].assign(**texts)
