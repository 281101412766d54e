"""The records of phase=benchmark: times of contenders that took turns in one job, and their ratios to a baseline.

table = benchmarks(load_runs([...]))        # numbers, a row a contender, cell and run
shown = benchmark_table(latest(table))      # of each contender and cell the latest, as text for people
judged = targets(table)                     # the ratios against the targets of sweeps.report.tables.targets
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from sweeps.report.tables import clocks
from sweeps.report.tables.targets import verdicts

PHASES = ("benchmark", "bench")  # the second: `python -m blockshock.bench`, which measured many cells in one folder
SETTING = ["device", "dtype", "workload"]  # never to be mixed
CELL = [*SETTING, "part", "world_size", "N", "K", "B"]
# Part -> what its times are divided by, for records of `bench`; those of `benchmark` say it. Part law has a
# prediction instead (sweeps.report.tables.targets.law).
BASELINES = {
    "product": "half_k_dense",
    "backward": "half_k_dense",
    "forward": "dtensor_row",
    "train": "dtensor_row",
    "all_reduce": "nccl",
}
PARTS = (*BASELINES, "law")
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # records have PyTorch's names, people type these
TEXTS = ["method", "variant", "mask", "kernel", "quantity"]
NUMBERS = ["p50_us", "eager_p50_us", "relative_error", "dense_relative_error", "bytes", "copy_gbs"]
NUMBERS += ["state_bytes", "dense_state_bytes", "matmul_tflops", "link_gbs", "energy_kept"]
WAY = ["contender", "chosen_kernel", "kernel_options", "collective", "chunks"]
RATIOS = ["baseline", "baseline_us", "ratio", "ratio_lo", "ratio_hi"]
CLOCKS = list(clocks.COLUMNS)
# Of forwards whose parts were timed alone (phase.time_parts), and where records hold them.
PARTS_OF = {
    "parts_chunks": "parts.chunks",
    **{f"{name}_us": f"parts.{name}_p50_us" for name in ("empty", "matmul", "collective", "inside")},
    "matmul_sm_mhz": "parts.matmul_clocks.sm_mhz",
    "floor_ms": "roofline.floor_ms",
    "bound": "roofline.bound",
}
ROUNDS = ["rounds_us", *(f"{name}_rounds_us" for name in ("empty", "matmul", "collective"))]
COLUMNS = ["run", *CELL, *TEXTS, *WAY, *NUMBERS, *RATIOS, *CLOCKS, *PARTS_OF, *ROUNDS, "chosen", "folder", "repeat"]


def benchmarks(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a contender, cell and run folder.

    Columns: COLUMNS. `run` numbers the run folders from the earliest. `ratio` is p50_us over that of the part's
    baseline in the same cell and run, `ratio_lo` and `ratio_hi` the smallest and largest of those of single rounds, in
    which they took turns. `chosen_kernel` and `collective` are what `auto` chose. Empty, with these columns, where
    there is no such record.
    """
    phase = runs["phase"] if "phase" in runs else pd.Series(dtype=object)
    rows = runs[phase.isin(PHASES).reindex(runs.index, fill_value=False)].reset_index(drop=True)
    if rows.empty:
        return pd.DataFrame(columns=COLUMNS)
    ended = rows.groupby("folder", sort=False)["timestamp_unix"].max().rank(method="first").astype(int)
    table = rows.reindex(columns=[*CELL, *TEXTS, *NUMBERS, "rounds_us", "chosen", "folder"])
    of_parts = rows.reindex(columns=[*PARTS_OF.values(), *(f"parts.{name}" for name in ROUNDS[1:])])
    table[[*PARTS_OF, *ROUNDS[1:]]] = of_parts.to_numpy()
    measured = [name for name in PARTS_OF if name != "bound"]
    table[measured] = table[measured].apply(pd.to_numeric)
    table["run"] = rows["folder"].map(ended)
    told = rows["config.experiment.repeat"] if "config.experiment.repeat" in rows else pd.Series(0, index=rows.index)
    table["repeat"] = pd.to_numeric(told).fillna(0).astype(int)
    table["dtype"] = table["dtype"].replace(DTYPES)
    table["workload"] = table["workload"].astype(object).fillna("gaussian")  # of `bench`, whose records don't say it
    table[TEXTS] = table[TEXTS].astype(object).fillna("")
    sizes = ["world_size", "N", "K", "B"]
    table[sizes] = table[sizes].astype(int)  # beside records without them they had become floats
    table[NUMBERS] = table[NUMBERS].apply(pd.to_numeric)
    table["chosen"] = table["chosen"].eq(True)
    pairs = zip(table["method"], table["variant"], strict=True)
    table["contender"] = [f"{method}/{variant}".rstrip("/") for method, variant in pairs]
    said = rows["baseline"] if "baseline" in rows else pd.Series(None, index=rows.index, dtype=object)
    table["_divisor"] = said.where(said.notna(), table["part"].map(BASELINES))
    table = pd.concat([table, _choices(rows), clocks.clock_columns(rows)], axis=1).merge(
        _baselines(table), on=["run", *CELL, "quantity"], how="left"
    )
    table["baseline"] = table["baseline"].fillna("")
    table["ratio"] = table["p50_us"] / table["baseline_us"]
    each = [_of_rounds(a, b) for a, b in zip(table["rounds_us"], table["baseline_rounds"], strict=True)]
    table[["ratio_lo", "ratio_hi"]] = pd.DataFrame(each, index=table.index)
    table["_part"] = table["part"].map({part: place for place, part in enumerate(PARTS)})
    return table.sort_values(["_part", *CELL], kind="stable")[COLUMNS].reset_index(drop=True)


def latest(table: pd.DataFrame) -> pd.DataFrame:
    """Of a contender (also its mask, kernel and quantity) that several runs measured in a cell, the latest run's rows.

    Each keeps the ratio to the baseline of its own run: one that only an older run measured stays, and is held against
    what it took turns with.
    """
    same = [*CELL, *TEXTS]
    rows = over_repeats(table)
    return rows[rows["run"] == rows.groupby(same)["run"].transform("max")].reset_index(drop=True)


def over_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the processes of hydra.sweeper.repeats as one row each contender and cell, with the latest run's
    number: median times, the median of the ratios, and the smallest and the largest ratio of a process."""
    same = [*CELL, *TEXTS]
    several = table.groupby(same)["repeat"].transform("nunique") > 1
    if not several.any():
        return table
    rows = table[several].sort_values("run", kind="stable").drop_duplicates([*same, "repeat"], keep="last")
    groups = rows.groupby(same, sort=False)
    last = rows.drop_duplicates(same, keep="last").set_index(same)
    for name in ("p50_us", "eager_p50_us", "baseline_us", "ratio"):
        last[name] = groups[name].median()
    last[CLOCKS] = clocks.over_repeats(rows, same)[CLOCKS]
    last["ratio_lo"], last["ratio_hi"] = groups["ratio"].min(), groups["ratio"].max()
    return pd.concat([table[~several], last.reset_index()[list(table)]]).sort_index(kind="stable")


def targets(table: pd.DataFrame) -> pd.DataFrame:
    """`sweeps.report.tables.targets.verdicts` of each SETTING, with its columns in front.

    The targets are for GPUs: what was measured on a CPU shows that it works, and is not judged.
    """
    return by_setting(table[table["device"] != "cpu"], verdicts)


def by_setting(table: pd.DataFrame, judge: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """What `judge` makes of the rows of each SETTING, with its columns in front; empty if it made nothing."""
    found = []
    for setting, rows in table.groupby(SETTING):
        made = judge(rows)
        for place, (name, value) in enumerate(zip(SETTING, setting, strict=True)):
            made.insert(place, name, str(value))
        if not made.empty:
            found.append(made)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def clock(table: pd.DataFrame) -> str:
    """What the times are: CUDA graphs are what GPUs replay."""
    return "time, µs" if table["device"].eq("cpu").any() else "CUDA graph, µs"


def _baselines(table: pd.DataFrame) -> pd.DataFrame:
    """The baseline of each cell (of `backward`, of each quantity)."""
    plain = table["variant"].eq("") | table["part"].eq("backward")
    found = table[table["method"].eq(table["_divisor"]) & plain]
    names = {"method": "baseline", "p50_us": "baseline_us", "rounds_us": "baseline_rounds"}
    return found[["run", *CELL, "quantity", *names]].rename(columns=names)


def _of_rounds(own: Any, baseline: Any) -> tuple[float, float]:
    if not isinstance(own, list) or not isinstance(baseline, list):
        return float("nan"), float("nan")
    each = [a / b for a, b in zip(own, baseline, strict=True)]
    return min(each), max(each)


def _choices(rows: pd.DataFrame) -> pd.DataFrame:
    """The kernel and the collective of each row's `detail`: a matmul's is the kernel, a layer's holds both."""
    detail = rows[[name for name in rows if str(name).startswith("detail.")]]
    found = []
    for row in detail.to_dict("records"):
        said = {str(key).removeprefix("detail."): value for key, value in row.items() if not _nothing(value)}
        of_layer = {key.removeprefix("kernel."): said[key] for key in said if key.startswith("kernel.")}
        kernel = of_layer or {key: value for key, value in said.items() if "name" in said and "." not in key}
        chunks = said.get("collective.chunks")
        found.append(
            {
                "chosen_kernel": " ".join(str(kernel[key]) for key in ("name", "variant") if key in kernel),
                "kernel_options": " ".join(
                    f"{key}={_plain(value)}" for key, value in kernel.items() if key not in ("name", "variant")
                ),
                "collective": said.get("collective.implementation", ""),
                "chunks": "" if chunks is None else _plain(chunks),
            }
        )
    return pd.DataFrame(found, index=rows.index, columns=["chosen_kernel", "kernel_options", "collective", "chunks"])


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and pd.isna(value))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
