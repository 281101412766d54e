"""The largest batches (phase=largest_batch): of each method in each memory, the batch and its throughput.

table = largest_batches(load_runs([...]))       # one row per setting, method and memory
"""

from __future__ import annotations

import pandas as pd

from sweeps.report.tables.steps.recomputation import SETTING, WAY

PHASE = "largest_batch"
# Column -> where a record (or its configuration) has it. The batch is a result here, and the memory a setting.
KEYS = {name: source for name, source in SETTING.items() if name != "B"} | {
    name: source for name, source in WAY.items() if name != "budget"
}
LIMIT = {"limit_bytes": "largest_batch.limit_bytes"}
NUMBERS = {
    "batch_size": "largest_batch.batch_size",
    "samples_per_s": "largest_batch.samples_per_s",
    "tokens_per_s": "largest_batch.tokens_per_s",
    "peak_bytes": "largest_batch.peak_bytes",
    "step_p50_ms": "timings_ms.total_step.p50_ms",
    "is_bound": "largest_batch.is_bound",
}


def largest_batches(runs: pd.DataFrame) -> pd.DataFrame:
    """Columns: those of KEYS, LIMIT and NUMBERS, `variant` (the method with its backend and options as one name) and
    `folder`. Repetitions become medians. Empty, with these columns, where no such record is."""
    phase = runs["phase"] if "phase" in runs else pd.Series(dtype=object)
    records = runs[(phase == PHASE).reindex(runs.index, fill_value=False)].copy()
    for name, source in {**KEYS, "folder": "folder"}.items():
        records[name] = records.get(source, "")
        records[name] = records[name].astype(object).where(records[name].notna(), "")
    for name, source in {**LIMIT, **NUMBERS}.items():
        values = records[source] if source in records else pd.Series(index=records.index, dtype=float)
        records[name] = pd.to_numeric(values).astype(float)
    groups = records.groupby([*KEYS, *LIMIT], sort=False)
    table = groups[list(NUMBERS)].median().join(groups["folder"].first()).reset_index()
    table["variant"] = table["method"].astype(str)
    for words in (table["backend"].astype(str), table["options"].astype(str)):
        table["variant"] = table["variant"].where(words == "", table["variant"] + ", " + words)
    return table.sort_values(["model", "device", "dtype", "limit_bytes", "variant"]).reset_index(drop=True)


def next_to_torch_compile(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with `alone_batch`, the batch of torch.compile alone in the same memory, `over_alone`, the throughput
    over its, and `batch_over_alone`, the batch over its, where those were measured. A search that ended at the largest
    batch allowed does not know the latter."""
    alone = table[(table["method"] == "torch_compile") & (table["options"] == "")]
    keys = ["model", "device", "dtype", "torch", "host", "seq_len", "autocast", "optimizer", "limit_bytes"]
    names = {"samples_per_s": "alone_per_s", "batch_size": "alone_batch", "is_bound": "alone_bound"}
    alone = alone.drop_duplicates(keys)[[*keys, *names]].rename(columns=names)
    table = table.merge(alone, on=keys, how="left")
    known = table["is_bound"].eq(0) & table.pop("alone_bound").eq(0)
    return table.assign(
        over_alone=table["samples_per_s"] / table.pop("alone_per_s"),
        batch_over_alone=(table["batch_size"] / table["alone_batch"]).where(known),
    )


def batch_text(table: pd.DataFrame, more: str = " or more") -> list[str]:
    """The batches; with `more` where the search ended at the largest batch allowed."""
    pairs = zip(table["batch_size"], table["is_bound"], strict=True)
    return [f"{size:.0f}{more if bound == 1 else ''}" for size, bound in pairs]
