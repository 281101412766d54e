"""The memory/time front of compiled training: our points, those of PyTorch's own ways, and what lies between them.

points = front(recomputed(runs))        # one row a point: kind, label, peak_bytes, step_p50_ms, kernels_ms, alike
dominated(points)                       # one row a baseline: is a point of ours at least as good?
added(points)                           # what recomputation costs at three peaks: ours, automatic, chosen by hand
plans(points)                           # one row a point of ours: what was predicted, and what was measured

Ours is `method=recompute_compiled`, and the baselines are `method=torch_compile`. A point whose step did something else
than torch.compile alone (`alike` is False) is drawn and listed, and counts for nothing.

A step has two times: `step_p50_ms`, the median of the measured steps, and `kernels_ms`, the sum of one step's kernels.
A slow or busy host delays the launches of the first, differently from job to job (`host_bound`), and not the second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sweeps.report.tables.steps.recomputation import SETTING
from sweeps.text import counted

METHODS = ("recompute_compiled", "torch_compile")
OURS, PLAIN, BUDGET, BLOCKS = "ours", "torch.compile", "activation_memory_budget", "checkpointed blocks"
SELECTIVE, LOSS, MODE = "selective checkpointing", "loss in chunks", "CUDA graphs"
KINDS = (OURS, PLAIN, BUDGET, BLOCKS, SELECTIVE, LOSS, MODE)
AUTOMATIC = (PLAIN, BUDGET, BLOCKS)  # what takes a number, and no knowledge of the model
BY_HAND = (PLAIN, SELECTIVE)
KEYS = [*SETTING, "compiler"]  # points of different keys are never compared
TOLERANCE = 1.01  # of a baseline's time, for what is at least as good
STEP, KERNELS = "step_p50_ms", "kernels_ms"
HOST_BOUND = 1.1  # of its kernels' time: a step that takes longer waited for the host
AT = (0.75, 0.5, 0.25)  # of the way from the baselines' lowest peak to that of torch.compile alone
MEASURED = ["host", "budget", "peak_bytes", STEP, KERNELS, "step_lo_ms", "step_hi_ms"]
PLANNED = ["budget_bytes", "predicted_peak_bytes", "predicted_added_s", "planning_s", "gap", "recompilations"]


def front(table: pd.DataFrame) -> pd.DataFrame:
    """The compiled steps of `recomputed`'s table that have a peak and a time, with `kind`, `label` and `alike`."""
    rows = table[table["method"].isin(METHODS) & table[["peak_bytes", STEP]].notna().all(axis=1)].copy()
    ours = rows["method"] == METHODS[0]
    rows["compiler"] = rows["backend"].where(~ours, rows["execution"]).replace("aot_eager", "eager")
    rows["kind"] = [_kind(row) for row in rows.to_dict("records")]
    rows["label"] = [_label(row) for row in rows.to_dict("records")]
    rows["alike"] = rows["trains_alike"].map(lambda value: value in (True, "")).astype(bool)  # "": not recorded
    rows["order"], rows["saved_bytes"] = rows["kind"].map(KINDS.index), -rows["peak_bytes"]
    rows = rows.sort_values([*KEYS, "order", "saved_bytes"])
    return rows[[*KEYS, "kind", "options", "label", "alike", *MEASURED, *PLANNED]].reset_index(drop=True)


def _kind(row: dict[Any, Any]) -> str:
    if row["method"] == METHODS[0]:
        return OURS
    if row["loss"] not in ("plain", ""):
        return LOSS
    if row["mode"] not in ("default", ""):
        return MODE
    if row["checkpoint"] == "blocks":
        return SELECTIVE if row["saved"] else BLOCKS
    return PLAIN if row["budget"] in (1, "") else BUDGET


def _label(row: dict[Any, Any]) -> str:
    """What tells a point from the others of its kind."""
    blocks, kind = row["blocks"], row["kind"]
    in_graphs = row["mode"] not in ("default", "")
    if kind in (OURS, BUDGET):
        return _budget(row) + (f", {MODE}" if in_graphs else "")
    if kind == BLOCKS:
        return "all" if blocks == "" else f"{blocks:g}"
    saved = "+".join(row["saved"]) if isinstance(row["saved"], list) else ""
    in_blocks = saved or ("per block" if row["checkpoint"] == "blocks" else "")
    loss = ", ".join(filter(None, (str(row["loss"]), in_blocks)))
    share = f"{blocks:g} of the blocks" if in_blocks and not saved and blocks != "" else in_blocks
    mode = ", ".join(filter(None, (str(row["mode"]), share or ("" if row["budget"] in (1, "") else _budget(row)))))
    return {PLAIN: "", SELECTIVE: saved, LOSS: loss, MODE: mode}[kind]


def _budget(row: dict[Any, Any]) -> str:
    budget = row["budget"]
    if not isinstance(budget, int | float):
        return str(budget)
    return f"{budget:g}" if budget <= 1 else f"{budget / 2**20:.0f} MiB"


def host_bound(points: pd.DataFrame) -> pd.Series:
    """Which steps the host delayed: the median step takes more than HOST_BOUND of the time of its kernels."""
    return points[STEP] > HOST_BOUND * points[KERNELS]


def envelope(points: pd.DataFrame, time: str = STEP) -> np.ndarray:
    """(peak, time) of the corners of the lower left border, (n, 2): mixtures of two ways lie on the line between them.

    From the lowest peak to the fastest; the lower part of the convex hull.
    """
    corners: list[tuple[float, float]] = []
    for x, y in sorted(zip(points["peak_bytes"], points[time], strict=True)):
        if corners and y >= corners[-1][1]:
            continue  # no faster than one that needs less
        while len(corners) > 1 and _right_of(corners[-2], corners[-1], (x, y)):
            corners.pop()
        corners.append((float(x), float(y)))
    return np.array(corners).reshape(-1, 2)


def _right_of(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])


def time_at(border: np.ndarray, peak: float) -> float:
    """On an envelope; NaN below its lowest peak, and above the fastest's its time."""
    if not len(border) or peak < border[0, 0]:
        return float("nan")
    return float(np.interp(peak, border[:, 0], border[:, 1]))


def dominated(points: pd.DataFrame) -> pd.DataFrame:
    """One row a baseline's point: KEYS, its kind, options, label, budget, peak and times; `added`, its time over
    torch.compile's alone, less 1; the fastest of our points of the same peak or less as `ours_*`, and its time over the
    baseline's as `ratio`; `dominated`, whether that is at most TOLERANCE. `kernels_ratio` and `dominated_by_kernels`:
    the same of the least time of kernels (NaN and False where it is not recorded). Where no point of ours was measured
    there is no row."""
    rows = []
    for key, group in points.groupby(KEYS, sort=False):
        ours = group[(group["kind"] == OURS) & group["alike"]]
        plain_ms, _ = _plain(group)
        for baseline in group[group["kind"] != OURS].to_dict("records") if len(ours) else []:
            within = ours[ours["peak_bytes"] <= baseline["peak_bytes"]].sort_values(STEP)
            best = within.iloc[0] if len(within) else pd.Series(dtype=object)
            row = dict(zip(KEYS, key, strict=True)) | {name: baseline[name] for name in BASELINE}
            row |= {f"ours_{name}": best.get(name) for name in ("options", "label", "peak_bytes", STEP)}
            row["added"] = row[STEP] / plain_ms - 1
            row["ratio"] = best.get(STEP, float("nan")) / baseline[STEP]
            row["kernels_ratio"] = within[KERNELS].min() / baseline[KERNELS]
            row["dominated"] = bool(row["ratio"] <= TOLERANCE)
            row["dominated_by_kernels"] = bool(row["kernels_ratio"] <= TOLERANCE)
            rows.append(row)
    table = pd.DataFrame(rows, columns=[*KEYS, *BASELINE, *OF_OURS])
    numbers = ("ours_peak_bytes", "ours_step_p50_ms", "added", "ratio", "kernels_ratio")
    return table.astype(dict.fromkeys(numbers, float))


BASELINE = ["kind", "options", "label", "alike", "budget", "peak_bytes", STEP, KERNELS]
OF_OURS = [
    *("added", "ours_options", "ours_label", "ours_peak_bytes", "ours_step_p50_ms", "ratio", "kernels_ratio"),
    *("dominated", "dominated_by_kernels"),
]


def verdict(points: pd.DataFrame) -> str:
    """How many baseline points ours is at least as good as, by the median step and, where that differs, by the time of
    kernels; empty where there is none to compare with."""
    judged = dominated(points)
    fair = judged[judged["alike"]]
    if fair.empty:
        return ""
    steps, kernels = int(fair["dominated"].sum()), int(fair["dominated_by_kernels"].sum())
    said = f"our plans are at least as good as {steps} of {counted(len(fair), 'baseline point')}"
    late = int(host_bound(points).sum())
    if fair[KERNELS].notna().all() and steps != kernels:
        said += f", and by the time of kernels as {kernels} of {len(fair)}"
    if late:
        said += f" (the host delayed {late} of {counted(len(points), 'step')} by more than {HOST_BOUND - 1:.0%})"
    return said


def added(points: pd.DataFrame, time: str = STEP) -> pd.DataFrame:
    """What a lower peak costs, at three peaks between torch.compile's alone and the baselines' lowest.

    One row a setting and peak: `peak_bytes`, `plain_ms`, and the milliseconds over it on each envelope: `ours_ms` of
    all variants of ours, `automatic_ms`, `by_hand_ms` (NaN below its lowest peak); `share`, ours of automatic. `time`:
    STEP or KERNELS.
    """
    rows = []
    for key, group in points[points["alike"]].groupby(KEYS, sort=False):
        plain_ms, high = _plain(group, time)
        baselines = group[group["kind"] != OURS]
        if not plain_ms > 0 or not baselines["peak_bytes"].min() < high:
            continue
        low = baselines["peak_bytes"].min()
        kinds = {"ours_ms": (OURS,), "automatic_ms": AUTOMATIC, "by_hand_ms": BY_HAND}
        lines = {name: envelope(group[group["kind"].isin(of)], time) for name, of in kinds.items()}
        if not len(lines["ours_ms"]):
            continue
        for peak in (low + part * (high - low) for part in AT):
            at = {name: time_at(line, peak) - plain_ms for name, line in lines.items()}
            share = np.maximum(at["ours_ms"], 0) / at["automatic_ms"] if at["automatic_ms"] > 0 else float("nan")
            row = {"peak_bytes": peak, "plain_ms": plain_ms, **at, "share": share}
            rows.append(dict(zip(KEYS, key, strict=True)) | row)
    columns = ["peak_bytes", "plain_ms", "ours_ms", "automatic_ms", "by_hand_ms", "share"]
    return pd.DataFrame(rows, columns=[*KEYS, *columns])


def plans(points: pd.DataFrame) -> pd.DataFrame:
    """Our points, with the milliseconds over torch.compile alone as `added_ms` (NaN where that was not measured)."""
    groups = points.groupby(KEYS, sort=False)
    parts = [group.assign(added_ms=group[STEP] - _plain(group)[0]) for _, group in groups]
    return pd.concat(parts).loc[lambda rows: rows["kind"] == OURS] if parts else points.assign(added_ms=[])


def higher_peaks(ours: pd.DataFrame) -> int:
    """How often a lower budget measured a higher peak than the next higher one of its setting and variant."""
    lines = ours.sort_values("budget_bytes").groupby([*KEYS, "options", "host"])["peak_bytes"]
    return int((lines.diff() < 0).sum())


def _plain(group: pd.DataFrame, time: str = STEP) -> tuple[float, float]:
    """The time and the peak of torch.compile alone, the median over hosts; NaN where it was not measured."""
    plain = group.loc[group["kind"] == PLAIN, [time, "peak_bytes"]].median()
    return float(plain[time]), float(plain["peak_bytes"])
