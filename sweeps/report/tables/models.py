"""Models whose layers are over ranks: a step's time and memory, what it sends, and the training loss next to float64's.

table = models(runs, results(runs))      # one row per method and model; empty where no model was over ranks
"""

from __future__ import annotations

import pandas as pd

from sweeps.report.tables.layers import OVER_RANKS, PROBLEM, TRAINING, drift, layer_records

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
    steps = _over_ranks(table[table["step_p50_ms"].notna()])
    records = _over_ranks(layer_records(runs))
    if records.empty:
        return pd.DataFrame()
    kept = [*PROBLEM, *TRAINING, *STEP, *BYTES, "step_folder"]
    found = (
        steps[kept]
        .merge(_losses(_over_ranks(drift(runs))), on=list(PROBLEM), how="outer")
        .merge(_sent(records), on=list(PROBLEM))
    )
    found["folder"] = found["step_folder"].where(found["step_folder"].notna(), found.pop("loss_folder"))
    found[["N", "K", "B", "world_size"]] = found[["N", "K", "B", "world_size"]].astype("int64")
    found[list(TRAINING)] = found[list(TRAINING)].fillna("")
    order = ["device", "dtype", "workload", "B", "world_size", "step_p50_ms", "method", "mask"]
    return found.drop(columns="step_folder").sort_values(order).reset_index(drop=True)


def _over_ranks(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["workload"].astype(str).str.endswith(OVER_RANKS)]


def _losses(curves: pd.DataFrame) -> pd.DataFrame:
    """LOSS of each key, over the runs that trained."""
    curves = curves[curves["loss"].notna()].sort_values("step").rename(columns={"folder": "loss_folder"})
    runs = curves.groupby([*PROBLEM, "loss_folder"], dropna=False)
    ends = runs[["step", "loss"]].last().rename(columns={"step": "train_steps", "loss": "train_loss"})
    ends = ends.join(runs[["loss_distance", "dense_loss_distance"]].max()).reset_index()
    keys = ends.groupby(list(PROBLEM), dropna=False)
    return keys[list(LOSS)].median().join(keys["loss_folder"].first()).reset_index()


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
