"""What a plan adds to a training step of several ranks, next to what it adds to that of one rank.

rows = data_parallel(recomputed(runs), runs)    # one row a plan: ddp, planned_ms, unplanned_ms, added, over_alone, ...

A plan is a step of `method=recompute_compiled`; the unplanned step is `method=torch_compile` without options in the
same setting, under the same data parallelism. Both have two times: the median step, of the slowest rank, and the
kernels of one step less the collectives, which wait for other ranks.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sweeps.report.tables.steps.compiled_front import KERNELS, METHODS, STEP
from sweeps.report.tables.steps.recomputation import SETTING

ALONE = ""
OF_RANKS = ("world_size", "data_parallel")
KEYS = [*(key for key in SETTING if key not in OF_RANKS), "host", "compiler"]  # rows of different keys are not compared
PLAN = ["options", "budget"]
ORDER = (ALONE, "ddp", "ddp_buckets", "fsdp2")
TAKEN = ["peak_bytes", "budget_bytes", "predicted_peak_bytes", "gradient_error", "folder"]


def data_parallel(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a plan, and one an unplanned step without a plan, of those settings in which several ranks trained.

    Columns: KEYS, OF_RANKS, PLAN, `unplanned_ms`, `planned_ms`, `added` (planned over unplanned, less 1), `over_alone`
    (`added` less that of the same budget on one rank), the same of kernels as `*_kernels*`; TAKEN,
    `unplanned_peak_bytes`, `rank_peaks` and `rank_budgets` (bytes, by rank), `rounding_limit`, `plans_alike`,
    `collectives` and `reference_collectives` (per step). Empty where no step was measured under data parallelism.
    """
    if table.empty or not (table["data_parallel"] != ALONE).any():
        return pd.DataFrame()
    steps = table.assign(compiler=table["backend"].where(table["backend"] != "", table["execution"]))
    steps["compiler"] = steps["compiler"].replace("aot_eager", "eager")
    planned = steps[steps["method"] == METHODS[0]]
    unplanned = steps[(steps["method"] == METHODS[1]) & (steps["options"] == "") & (steps["budget"] == 1)]
    setting = [*KEYS, *OF_RANKS]
    mine = planned[[*setting, *PLAN, STEP, KERNELS, *TAKEN]].rename(
        columns={STEP: "planned_ms", KERNELS: "planned_kernels_ms"}
    )
    theirs = unplanned[[*setting, STEP, KERNELS, "peak_bytes"]].rename(
        columns={STEP: "unplanned_ms", KERNELS: "unplanned_kernels_ms", "peak_bytes": "unplanned_peak_bytes"}
    )
    rows = theirs.merge(mine, on=setting, how="outer")
    rows = rows[
        rows[KEYS].apply(tuple, axis=1).isin(rows.loc[rows["data_parallel"] != ALONE, KEYS].apply(tuple, axis=1))
    ]
    for end in ("", "_kernels"):
        rows[f"added{end}"] = rows[f"planned{end}_ms"] / rows[f"unplanned{end}_ms"] - 1
    alone = rows.loc[rows["data_parallel"] == ALONE, [*KEYS, *PLAN, "added", "added_kernels"]]
    alone = alone.rename(columns={"added": "_alone", "added_kernels": "_alone_kernels"})
    rows = rows.merge(alone, on=[*KEYS, *PLAN], how="left")
    for end in ("", "_kernels"):
        rows[f"over_alone{end}"] = (rows[f"added{end}"] - rows.pop(f"_alone{end}")).where(
            rows["data_parallel"] != ALONE
        )
    by_folder = runs.drop_duplicates("folder").set_index("folder")
    rows = rows.join(pd.DataFrame([_of_ranks(by_folder, folder) for folder in rows["folder"]], index=rows.index))
    rows["_order"] = rows["data_parallel"].map(ORDER.index)
    rows = rows.sort_values([*KEYS, "_order", "world_size"], kind="stable").drop(columns="_order")
    return rows.reset_index(drop=True)


def _of_ranks(by_folder: pd.DataFrame, folder: Any) -> dict[str, Any]:
    """What the record of this run says of each rank."""
    run = by_folder.loc[folder] if folder in by_folder.index else pd.Series(dtype=object)
    ranks = run.get("each_rank")
    ranks = ranks if isinstance(ranks, list) else []
    counts = [(own["collectives"], own["reference_collectives"]) for own in ranks if own["collectives"] is not None]
    most, expected = max(counts, key=lambda pair: pair[0] - pair[1], default=(None, None))
    return {
        "rank_peaks": [own["peak_bytes"] for own in ranks],
        "rank_budgets": [own["budget_bytes"] for own in ranks],
        "rounding_limit": run.get("proof.rounding_limit"),
        "plans_alike": run.get("ranks.plans_alike"),
        "collectives": most,
        "reference_collectives": expected,
    }


def within_budget(rows: pd.DataFrame) -> tuple[int, int]:
    """How many of the ranks' peaks are within the rank's budget, and how many were measured."""
    pairs = [
        (peak, budget)
        for peaks, budgets in zip(rows["rank_peaks"], rows["rank_budgets"], strict=True)
        for peak, budget in zip(peaks, budgets, strict=True)
        if peak is not None and budget is not None
    ]
    return sum(peak <= budget for peak, budget in pairs), len(pairs)
