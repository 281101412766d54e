"""The tables that claims may ask, by name: those that the report is made of, and a few that join their rows.

TABLES["comparisons"](read_report_data(["outputs/reference/hypotheses_h200"]))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from sweeps.report.figures.hypotheses import select as comparisons
from sweeps.report.records.runs import jobs
from sweeps.report.tables import targets
from sweeps.report.tables.benchmarks import CELL, benchmarks
from sweeps.report.tables.diagram.phase_diagram import phase_diagram
from sweeps.report.tables.models import models
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps import compiled_front
from sweeps.report.tables.steps.data_parallel import data_parallel
from sweeps.report.tables.steps.recomputation import KEEP_ALL, SETTING
from sweeps.report.tables.verdicts import verdicts

OURS, TORCH = "recompute_optimal", "torch_checkpoint"
HALF = "0.5"  # of the activation memory
MIB = 2**20


def _verdicts(data: ReportData) -> pd.DataFrame:
    rows = [(v.title, v.outcome, v.because) for v in verdicts(data.table, data.drift)]
    return pd.DataFrame(rows, columns=["name", "outcome", "because"])


def _premise(data: ReportData) -> pd.DataFrame:
    """A row a mask, number of ranks and kind of check: its cases, and the largest error as a share of its limit."""
    found = [v.evidence for v in verdicts(data.table, data.drift) if v.title == "premise"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _times(data: ReportData, part: str, column: str = "p50_us") -> pd.DataFrame:
    """Times in µs of one part of phase=benchmark: a row a cell, a column a contender."""
    if data.benchmarks.empty or not (data.benchmarks["part"] == part).any():
        return pd.DataFrame()
    return targets.ratios(data.benchmarks, part, column).reset_index()


def _prediction(data: ReportData) -> pd.DataFrame:
    """The model max(2/s, 9/8) beside what was measured, a row a cell."""
    return targets.law(data.benchmarks).reset_index() if len(data.benchmarks) else pd.DataFrame()


def _recomputation(data: ReportData) -> pd.DataFrame:
    """With what each step adds to keep_all's time, of its kernels too, and peaks in MiB."""
    table = data.recomputed
    if table.empty:
        return table
    plain = table[table["method"] == KEEP_ALL][[*SETTING, "kernels_ms"]].drop_duplicates(list(SETTING))
    table = table.merge(plain.rename(columns={"kernels_ms": "keep_all_kernels_ms"}), on=list(SETTING), how="left")
    return table.assign(
        added=table["slowdown"] - 1,
        kernels_added=table["kernels_ms"] / table["keep_all_kernels_ms"] - 1,
        peak_mib=table["peak_bytes"] / MIB,
        budget=table["budget"].astype(str),
        off=(table["peak_bytes"] / table["predicted_peak_bytes"] - 1).abs(),
        bound_added=table["bound_added_s"] * 1e3 / table["keep_all_ms"],
        activations_kept=table["above_static_bytes"]
        / table.groupby(list(SETTING))["above_static_bytes"].transform("max"),
    )


def _models(data: ReportData) -> pd.DataFrame:
    """A row a model and batch: keep_all, ours at half of the activation memory, torch.utils.checkpoint, ours at its
    peak (the budget in MiB that does not exceed it), and ours at the lowest peak."""
    table = _recomputation(data)
    found = []
    for key, rows in table.groupby(["model", "B"]) if len(table) else []:
        ours, torch = rows[rows["method"] == OURS], rows[rows["method"] == TORCH]
        half = ours[ours["budget"] == HALF]
        at_torch = ours[ours["budget"].str.endswith("MiB")]
        if not (len(half) and len(torch) and len(at_torch)):
            continue
        parts = {"half": half, "torch": torch, "ours": at_torch, "lowest": ours.nsmallest(1, "peak_bytes")}
        row = {"model": key[0], "B": key[1], "peak_mib": rows["keep_all_peak_bytes"].iloc[0] / MIB}
        row["ms"] = rows["keep_all_ms"].iloc[0]
        for name, part in parts.items():
            first = part.iloc[0]
            row |= {f"{name}_mib": first["peak_mib"], f"{name}_added": first["added"]}
            row[f"{name}_kernels_added"] = first["kernels_added"]
        found.append(row)
    return pd.DataFrame(found)


def _profiles(data: ReportData) -> pd.DataFrame:
    """With names that expressions can hold."""
    names = {
        "profile.simulated_peak_bytes": "simulated_bytes",
        "profile.measured_peak_bytes": "measured_bytes",
        "profile.eager.peak_bytes": "eager_bytes",
        "profile.node_time_s": "nodes_s",
        "profile.idle_s": "idle_s",
        "profile.cuda_graph.p50_ms": "graph_ms",
        "profile.eager.p50_ms": "eager_ms",
        "timings_ms.total_step.p50_ms": "traced_ms",
        "profile.profile_s": "profile_s",
        "profile.trace_s": "trace_s",
        "config.workload.dropout": "dropout",
    }
    table = data.profiles.rename(columns=names)
    return table.sort_values(["workload", "B", "dtype", "started"]) if len(table) else table


def _traces(data: ReportData) -> pd.DataFrame:
    """Of the rank with the longest step."""
    found = []
    for run in data.traces.to_dict("records"):
        slowest = run["trace.step_ms"].index(max(run["trace.step_ms"]))
        names = {str(key).removeprefix("trace."): value for key, value in run.items() if str(key).startswith("trace.")}
        single = {name: value[slowest] if _is_of_each_rank(value) else value for name, value in names.items()}
        found.append({"method": run["method"], "N": run["N"], "B": run["B"], **single})
    return pd.DataFrame(found)


def _is_of_each_rank(value: object) -> bool:
    """Whether it is a list of numbers, and not one of names."""
    return isinstance(value, list) and len(value) > 0 and not isinstance(value[0], str)


def _front(data: ReportData) -> pd.DataFrame:
    """Points of compiled steps, with peaks in MiB and times as shares of torch.compile's alone."""
    if data.recomputed.empty:
        return data.recomputed
    table = compiled_front.front(data.recomputed)
    plain_ms = table.loc[table["kind"] == compiled_front.PLAIN, "step_p50_ms"].median()
    peak = table["peak_bytes"]
    return table.assign(
        peak_mib=peak / MIB,
        of_plain=table["step_p50_ms"] / plain_ms,
        off=(peak / table["predicted_peak_bytes"] - 1).abs(),
        within=peak <= table["budget_bytes"],
    )


def _baselines(data: ReportData) -> pd.DataFrame:
    """Each baseline of compiled steps next to the best of our points that needs no more memory."""
    return compiled_front.dominated(compiled_front.front(data.recomputed)) if len(data.recomputed) else data.recomputed


def _phase_diagram(data: ReportData) -> pd.DataFrame:
    """With the matmul alone of each family's fastest over that of the fastest dense method, in the last process."""
    table = phase_diagram(data.runs)
    if table.empty:
        return table
    last = benchmarks(data.runs).drop_duplicates([*CELL, "contender"], keep="last")
    alone = last.set_index([*CELL, "contender"])["matmul_us"]
    cells = table[CELL].itertuples(index=False, name=None)
    ratios = [
        alone[(*cell, ours)] / alone[(*cell, dense)]
        for cell, ours, dense in zip(cells, table["contender"], table["dense"], strict=True)
    ]
    return table.assign(matmul_ratio=ratios)


def _added_by_kernels(data: ReportData) -> pd.DataFrame:
    """What a lower peak costs at three peaks between torch.compile's and the baselines' lowest, in kernels' time."""
    return compiled_front.added(compiled_front.front(data.recomputed), compiled_front.KERNELS)


PARTS = ("product", "backward", "forward", "train", "all_reduce", "law")
TABLES: dict[str, Callable[[ReportData], pd.DataFrame]] = {
    "runs": lambda data: data.runs,
    "jobs": lambda data: jobs(data.runs),
    "layers": lambda data: data.table,
    "drift": lambda data: data.drift,
    "law": lambda data: data.law,
    "comparisons": comparisons,
    "verdicts": _verdicts,
    "premise": _premise,
    "benchmarks": lambda data: data.benchmarks,
    "targets": lambda data: data.targets,
    **{f"{part} times": partial(_times, part=part) for part in PARTS},
    **{f"{part} eager times": partial(_times, part=part, column="eager_p50_us") for part in PARTS},
    "prediction": _prediction,
    "recomputation": _recomputation,
    "models": _models,
    "models over ranks": lambda data: models(data.runs, data.table),
    "data parallel": lambda data: data_parallel(data.recomputed, data.runs),
    "compiled steps": _front,
    "compiled baselines": _baselines,
    "compiled added": _added_by_kernels,
    "phase diagram": _phase_diagram,
    "profiles": _profiles,
    "traces": _traces,
}
