"""Recomputation's records (phase=checkpoint): peak memory and step time of each method, model, batch and budget.

table = recomputed(load_runs([...]))            # numbers
shown = recomputation_table(table)              # text for people

Where records hold each number is said once, in SOURCES.
"""

from __future__ import annotations

import pandas as pd

from sweeps.report.tables.comparisons import repeats
from sweeps.report.tables.intervals import intervals
from sweeps.text import ranks

PHASE = "checkpoint"
MIB, MS = 2**20, 1e-3
# Column -> where a record (or its configuration) has it.
SETTING = {
    "model": "workload",
    "B": "B",
    "dtype": "dtype",
    "device": "device",
    "driver": "env.driver",
    "torch": "env.torch",
    "seq_len": "config.workload.seq_len",
    "dropout": "config.workload.dropout",
    "autocast": "config.workload.autocast",
    "optimizer": "config.phase.optimizer",
    "layers": "layers",  # the method that builds them over the ranks; empty: the model as it is
    "world_size": "world_size",
    "data_parallel": "config.workload.data_parallel",  # empty: none
}
WRAPPERS = {"ddp": "DDP", "ddp_buckets": "DDP, a graph per bucket", "fsdp2": "FSDP2"}  # of several ranks
WAY = {
    "host": "env.host",
    "method": "method",
    "backend": "config.method.backend",
    "options": "step.variant",  # what tells steps of one method apart, in its own words
    "budget": "config.method.memory_budget",
}
SOURCES = {
    "peak_bytes": "memory.peak_bytes",
    "static_bytes": "memory.static_bytes",
    "above_static_bytes": "memory.above_static_bytes",
    "reserved_peak_bytes": "memory.reserved_peak_bytes",
    "baseline_peak_bytes": "memory.baseline_peak_bytes",
    "step_p50_ms": "timings_ms.total_step.p50_ms",
    "step_p95_ms": "timings_ms.total_step.p95_ms",
    "kernels_ms": "device_ms",
    "first_step_s": "step.first_s",
    "gradient_error": "proof.gradient_error",
    "buffer_error": "proof.buffer_error",
    "budget_bytes": "plan.budget_bytes",
    "predicted_peak_bytes": "plan.predicted_peak_bytes",
    "predicted_step_s": "plan.predicted_step_s",
    "predicted_added_s": "plan.predicted_added_s",
    "bound_added_s": "plan.bound_added_s",
    "planning_s": "plan.planning_s",
    "gap": "plan.gap",
    "recompilations": "plan.recompilations",
    "recomputed": "plan.recomputed",
    "activations": "plan.activations",
}
TEXTS = {
    "solver": "plan.solver",
    "identical": "proof.identical",
    "passed": "proof.passed",
    "trains_alike": "proof.trains_alike",
    "execution": "config.method.execution",
    "mode": "config.method.mode",
    "checkpoint": "config.method.checkpoint",
    "blocks": "config.method.blocks",
    "saved": "config.method.saved",
    "loss": "config.method.loss",
    "folder": "folder",  # of several runs the first
}
KEEP_ALL = "keep_all"


def trained_on(world_size: float, data_parallel: str) -> str:
    """`one rank`, or `FSDP2, 2 ranks`."""
    number = "one rank" if world_size == 1 else ranks(int(world_size))
    return ", ".join(filter(None, [WRAPPERS.get(data_parallel, data_parallel), number]))


def recomputed(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a setting, method, compiler backend and budget; repetitions become medians.

    Columns: those of SETTING, WAY, SOURCES and TEXTS; `variant`, the method, its backend and options as one name;
    `step_lo_ms` and `step_hi_ms`; `keep_all_ms` and `keep_all_peak_bytes`, of `keep_all` in the same setting, and
    `slowdown`, the step time over it. Empty, with these columns, where no such record is.
    """
    phase = runs["phase"] if "phase" in runs else pd.Series(dtype=object)
    records = runs[(phase == PHASE).reindex(runs.index, fill_value=False)].copy()
    keys = [*SETTING, *WAY]
    for name, source in {**SETTING, **WAY, **TEXTS}.items():
        records[name] = records.get(source)
        records[name] = records[name].astype(object).where(records[name].notna(), "")
    records["data_parallel"] = records["data_parallel"].replace("none", "")  # older records lack the key
    for name, source in SOURCES.items():
        values = records[source] if source in records else pd.Series(index=records.index, dtype=float)
        records[name] = pd.to_numeric(values.map(lambda v: len(v) if isinstance(v, list) else v)).astype(float)
    groups = records.groupby(keys, sort=False)
    table = groups[list(SOURCES)].median().join(groups[list(TEXTS)].first()).reset_index()
    found = repeats(records, keys, "total_step")
    edges = intervals([found.get(key, ([], ""))[0] for key in table[keys].itertuples(index=False, name=None)])
    table["step_lo_ms"], table["step_hi_ms"] = edges[:, 0], edges[:, 1]
    backend = table["backend"].astype(str)
    table["variant"] = table["method"].astype(str)
    for words in (backend, table["options"].astype(str)):
        table["variant"] = table["variant"].where(words == "", table["variant"] + ", " + words)
    table = _beside_keep_all(table)
    table["slowdown"] = table["step_p50_ms"] / table["keep_all_ms"]
    return table.sort_values(["model", "device", "dtype", "B", "variant", "peak_bytes"]).reset_index(drop=True)


def _beside_keep_all(table: pd.DataFrame) -> pd.DataFrame:
    """With `keep_all_ms` and `keep_all_peak_bytes`: the same host's, or of those that measured it the fastest's."""
    plain = table[table["method"] == KEEP_ALL].sort_values("step_p50_ms")
    plain = plain[[*SETTING, "host", "step_p50_ms", "peak_bytes"]]
    plain = plain.rename(columns={"step_p50_ms": "keep_all_ms", "peak_bytes": "keep_all_peak_bytes"})
    own = table.merge(plain.drop_duplicates([*SETTING, "host"]), on=[*SETTING, "host"], how="left")
    fastest = table.merge(plain.drop_duplicates(list(SETTING)).drop(columns="host"), on=list(SETTING), how="left")
    return own.fillna({name: fastest[name] for name in ("keep_all_ms", "keep_all_peak_bytes")})


def smallest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each method in each setting, the budget with the smallest measured peak."""
    measured = table[table["peak_bytes"].notna() & table["step_p50_ms"].notna()]
    return measured.loc[measured.groupby([*SETTING, "variant"])["peak_bytes"].idxmin()].sort_index()


def bound(table: pd.DataFrame) -> pd.DataFrame:
    """The linear program's lower bound: at each memory budget no plan's step is shorter than `bound_ms`, the measured
    step of `keep_all` and the bound on what recomputation adds. Columns: SETTING, `budget_bytes`, `bound_ms`."""
    known = table[table[["bound_added_s", "budget_bytes", "keep_all_ms"]].notna().all(axis=1)]
    lines = known.assign(bound_ms=known["keep_all_ms"] + known["bound_added_s"] / MS)
    return lines.groupby([*SETTING, "budget_bytes"])["bound_ms"].max().reset_index()
