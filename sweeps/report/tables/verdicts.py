"""Supported, refuted, equivalent or undecided: docs/method.md's premise and hypotheses, judged from the results' table.

for verdict in verdicts(results(runs), drift(runs)): print(verdict.name, verdict.outcome, verdict.because)

A comparison is one size on one number of ranks (two or more): a ratio of times and its interval. All comparisons of a
verdict hold together at 95% (Bonferroni). Nothing is decided from a time that was not repeated (intervals.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweeps.report.tables.comparisons import ALIKE, lists
from sweeps.report.tables.intervals import EQUAL, FASTER, MIN_REPEATS, SAME, SLOWER, judged, ratio_intervals
from sweeps.report.tables.layers import OVER_RANKS
from sweeps.text import counted

SUPPORTED, REFUTED, EQUIVALENT, UNDECIDED = "supported", "refuted", "equivalent", "undecided"
MARGIN = 1 + SAME  # what "no more than" allows
ROUNDING_MARGIN = 1.2  # blockshock/jobs/correctness.py's, on the roundings a method must make: docs/method.md
CLAIMS = {
    "premise": "The split computes the same thing: errors and drift are those of the roundings it must make.",
    "H1": "At some size, Block-Shock's forward pass is faster than the faster of row- and column-parallel.",
    "H2": "With packed weights, a training step takes no more time and memory than row-parallel's on the same number "
    "of ranks, and less memory per rank than the dense layer on one.",
    "H3": "At every size, Block-Shock's kernels make the forward pass faster than the same halves multiplied with "
    "their zeros (masked_split_dense).",
}
SIZE = [*ALIKE, "backend", "world_size"]
# What Block-Shock computes, in the words of a verdict; a layer of dense weights needs none.
LAYER, PAIR, MODEL, WINDOWS = "", "an MLP's pair of layers", "models over ranks", "pruned windows"
SUBJECTS = (LAYER, PAIR, MODEL, WINDOWS)


@dataclass(frozen=True)
class Verdict:
    name: str  # premise | H1 | H2 | H3
    hardware: str
    outcome: str
    because: str
    evidence: pd.DataFrame  # a row a comparison
    subject: str = LAYER  # one of SUBJECTS: they are judged apart

    @property
    def is_measured(self) -> bool:
        """Whether there is anything that it is judged from."""
        return not self.evidence.empty

    @property
    def title(self) -> str:
        return f"{self.name} ({self.subject})" if self.subject else self.name

    @property
    def claim(self) -> str:
        return CLAIMS[self.name]


def verdicts(table: pd.DataFrame, curves: pd.DataFrame) -> list[Verdict]:
    """All four for each device, backend and subject on which Block-Shock was measured."""
    found = []
    for (device, backend), rows in table.groupby(["device", "backend"], sort=True):
        drifted = curves[(curves["device"] == device) & (curves["backend"] == backend)]
        subjects = set(_subjects(rows[rows["method"] == "block_shock"]))
        for name in [name for name in SUBJECTS if name in subjects]:
            own, lines = _about(rows, name), _about(drifted, name)
            ranks = ", ".join(str(size) for size in sorted(own["world_size"].unique()))
            hardware = f"{device}, {backend}, ranks {ranks}"
            judged = {"premise": _premise(own, lines), "H1": _forward(own), "H2": _training(own), "H3": _kernels(own)}
            found += [Verdict(claim, hardware, *outcome, subject=name) for claim, outcome in judged.items()]
    return found


def _subjects(rows: pd.DataFrame) -> pd.Series:
    """The subject of each row of Block-Shock."""
    names = [
        WINDOWS if str(mask).startswith("window_") else subject(str(workload))
        for mask, workload in zip(rows["mask"], rows["workload"], strict=True)
    ]
    return pd.Series(names, rows.index, object)


def subject(workload: str) -> str:
    """Layer, pair or model, by the workload's name (layers.py)."""
    return MODEL if workload.endswith(OVER_RANKS) else PAIR if "(" in workload else LAYER


def _about(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Block-Shock's rows of a subject, and those of other methods on the same workloads, pruned where it is."""
    ours = rows["method"] == "block_shock"
    own = ours & (_subjects(rows) == name)
    pruned = rows["mask"].map(str).str.contains("of the energy").astype(bool)  # layers.py says so
    beside = ~ours & rows["workload"].isin(set(rows.loc[own, "workload"])) & (pruned == (name == WINDOWS))
    return rows[own | beside]


def _premise(table: pd.DataFrame, curves: pd.DataFrame) -> tuple[str, str, pd.DataFrame]:
    """Every check passed, and no drift curve ends further from float64 than the roundings allow."""
    ours = table[(table["method"] == "block_shock") & table["passed"].notna()]
    evidence = []
    for (dtype, mask, ranks), rows in ours.groupby(["dtype", "mask", "world_size"]):
        line: dict[str, Any] = {"what": "Y, dX, dW", "dtype": dtype, "mask": mask, "world_size": ranks}
        ratios = [rows[f"{q}_relative_error"] / rows[f"{q}_error_limit"] for q in ("y", "dx", "dw")]
        line["share_of_limit"] = pd.concat(ratios).max()
        evidence.append({**line, "cases": len(rows), "failed": int((~rows["passed"].astype(bool)).sum())})
    checks_failed = sum(line["failed"] for line in evidence)
    drifted = curves[(curves["method"] == "block_shock") & (curves["dense_error"] > 0)]
    last = drifted.sort_values("step").drop_duplicates("folder", keep="last")
    # A layer's limit over the dense error is 1.2 times its roundings: that much more than dense it may drift.
    allowed = (ours["y_error_limit"] / ours["dense_relative_error"]).max()
    for (dtype, mask, ranks, mode), rows in last.groupby(["dtype", "mask", "world_size", "mode"]):
        shares = rows["error"] / rows["dense_error"] / allowed
        line = {"what": f"drift, {mode}", "dtype": dtype, "mask": mask, "world_size": ranks}
        evidence.append(line | {"share_of_limit": shares.max(), "cases": len(rows), "failed": int((shares > 1).sum())})
    shown = pd.DataFrame(evidence)
    if not len(ours):
        return UNDECIDED, "no result of Block-Shock was checked.", shown
    cases, failed = int(shown["cases"].sum()), int(shown["failed"].sum())
    worst = f"the largest error is {shown['share_of_limit'].max():.0%} of what the roundings allow"
    if failed:
        return (
            REFUTED,
            f"{failed} of {cases} cases ({checks_failed} of them checks) exceed their limit; {worst}.",
            shown,
        )
    if last.empty:
        return UNDECIDED, f"all {cases} checked cases are within their limits, but no drift was measured.", shown
    return SUPPORTED, f"{cases} cases, {len(last)} of them drift curves, are all within their limits; {worst}.", shown


def _forward(table: pd.DataFrame) -> tuple[str, str, pd.DataFrame]:
    rival = table[table["method"].isin(["dense_tp_row", "dense_tp_column"])]
    found = _compared(table[table["method"] == "block_shock"], rival, "forward", SIZE)
    text = _range(found, "times the faster dense method's forward time")
    if found.empty:
        return UNDECIDED, _nothing("Block-Shock and dense tensor parallelism"), found
    if (found["decided"] == FASTER).any():
        return SUPPORTED, f"{_counts(found)}; {text}", found
    if (found["decided"] == EQUAL).all():
        return EQUIVALENT, f"{_counts(found)}; {text}", found
    if _not_faster(found).all():
        return REFUTED, f"nowhere faster by more than {SAME:.0%}: {_counts(found)}; {text}", found
    return _open(found, text)


def _training(table: pd.DataFrame) -> tuple[str, str, pd.DataFrame]:
    packed = (table["method"] == "block_shock") & table["options"].str.contains("weights=packed")
    size = [*SIZE, "optimizer", "loss", "input_grad"]
    table = table.assign(memory=_memory(table))
    found = _compared(table[packed], table[table["method"] == "dense_tp_row"], "step", size)
    if found.empty:
        return UNDECIDED, _nothing("training steps of Block-Shock with packed weights and of row-parallel"), found
    single = table[(table["method"] == "dense_single") & (table["world_size"] == 1)]
    alone = single.groupby([*ALIKE, "optimizer", "loss", "input_grad"])["memory"].min().rename("alone").reset_index()
    found = found.merge(alone, how="left")
    found["memory_over_row"] = found["memory"] / found["rival_memory"]
    found["memory_over_dense"] = found["memory"] / found.pop("alone")
    slower = found["lo"] > MARGIN
    larger = (found["memory_over_row"] > MARGIN) | (found["memory_over_dense"] >= 1)
    text = _range(found, "times row-parallel's step time")
    text += f" Memory per rank: {_span(found['memory_over_row'], 'row-parallel')}"
    dense = found["memory_over_dense"]
    text += "." if dense.isna().all() else f", {_span(dense, 'the dense layer')}."
    if slower.any() or larger.any():
        parts = [f"slower by more than {SAME:.0%} at {_of(slower)}"] if slower.any() else []
        parts += [f"more memory at {_of(larger)}"] if larger.any() else []
        return REFUTED, f"{', '.join(parts)}; {text}", found
    kept = (found["hi"] <= MARGIN) & found["memory_over_dense"].notna()
    return (
        (SUPPORTED, f"at {'all ' * (len(found) > 1)}{counted(len(found), 'comparison')}; {text}", found)
        if kept.all()
        else _open(found, text, MARGIN)
    )


def _kernels(table: pd.DataFrame) -> tuple[str, str, pd.DataFrame]:
    split = table[table["method"] == "masked_split_dense"]
    found = _compared(table[table["method"] == "block_shock"], split, "forward", [*SIZE, "mask"])
    found = found.sort_values("ratio").drop_duplicates(SIZE).sort_values(SIZE)  # the mask that suits the kernels best
    if found.empty:
        return UNDECIDED, _nothing("Block-Shock and masked_split_dense"), found
    text = _range(found, "times the masked split's forward time")
    if (found["decided"] == EQUAL).all():
        return EQUIVALENT, f"{_counts(found)}; {text}", found
    if _not_faster(found).any():
        return REFUTED, f"{_counts(found)}; {text}", found
    faster = (found["decided"] == FASTER).all()
    return (SUPPORTED, f"{_counts(found)}; {text}", found) if faster else _open(found, text)


def _compared(ours: pd.DataFrame, rivals: pd.DataFrame, name: str, size: list[str]) -> pd.DataFrame:
    """Ours over the rival's time at each size: of several kernels, masks or rivals the fastest by its median."""
    best = _fastest(ours, name, size)
    rival = _fastest(rivals, name, size)[[*size, "method", f"{name}_p50_ms", f"{name}_ms", *_kept(rivals)]]
    rival = rival.rename(columns={column: f"rival_{column}" for column in rival.columns if column not in size})
    pairs = best.merge(rival, on=size).sort_values(size).reset_index(drop=True)
    pairs["ratio"] = pairs[f"{name}_p50_ms"] / pairs[f"rival_{name}_p50_ms"]
    together = max(1, len(pairs[SIZE].drop_duplicates()))
    edges = ratio_intervals(lists(pairs[f"{name}_ms"]), lists(pairs[f"rival_{name}_ms"]), together)
    pairs["lo"], pairs["hi"] = edges[:, 0], edges[:, 1]
    pairs["decided"] = [judged(*edge) for edge in edges]
    pairs = pairs.rename(columns={f"{name}_p50_ms": "ours_ms", f"rival_{name}_p50_ms": "rival_ms"})
    shown = ["kernel", "ours_ms", "rival_method", "rival_ms", "ratio", "lo", "hi", "decided", *_kept(rivals)]
    shown += [f"rival_{column}" for column in _kept(rivals)]
    return pairs[[*dict.fromkeys([*size, "mask"]), *shown]]


def _kept(table: pd.DataFrame) -> list[str]:
    return [column for column in ("memory",) if column in table]


def _fastest(rows: pd.DataFrame, name: str, size: list[str]) -> pd.DataFrame:
    timed = rows[rows[f"{name}_p50_ms"].notna() & (rows["world_size"] > 1)]
    return timed.sort_values(f"{name}_p50_ms").drop_duplicates(size)


def _memory(table: pd.DataFrame) -> pd.Series:
    """Bytes per rank: the allocator's peak of a step. A resident set also holds Python and PyTorch; there the weights,
    gradients and optimizer state count instead."""
    held = table[["weight_bytes_per_rank", "gradient_bytes_per_rank", "optimizer_bytes_per_rank"]].sum(axis=1)
    allocated = table["memory_peak_kind"].astype(str).str.startswith("allocated")
    return table["step_memory_peak_bytes"].where(allocated, held)


def _range(found: pd.DataFrame, of_what: str) -> str:
    """`it takes 1.08 to 1.30 times ... (8 comparisons; intervals from 1.05 to 1.33).`"""
    if found.empty:
        return ""
    decided = found["lo"].notna()
    span = f"intervals from {found['lo'].min():.2f} to {found['hi'].max():.2f}" if decided.any() else "no intervals"
    few = "" if decided.all() else f"; {_of(~decided)} not repeated {MIN_REPEATS} times"
    low, high = found["ratio"].min(), found["ratio"].max()
    return f"it takes {low:.2f} to {high:.2f} {of_what} ({counted(len(found), 'comparison')}, {span}{few})."


def _span(ratios: pd.Series, of_what: str) -> str:
    """`0.53 to 1.21 times that of row-parallel`, or `same as row-parallel` where both ends round to 1.00."""
    low, high = f"{ratios.min():.2f}", f"{ratios.max():.2f}"
    if low == high:
        return f"same as {of_what}" if low == "1.00" else f"{low} times that of {of_what}"
    return f"{low} to {high} times that of {of_what}"


def _open(found: pd.DataFrame, text: str, limit: float = 1.0) -> tuple[str, str, pd.DataFrame]:
    repeated = found["lo"].notna().all()
    why = f"confidence intervals include {limit}" if repeated else "not every comparison was repeated"
    return UNDECIDED, f"{why}; {text}", found


def _not_faster(found: pd.DataFrame) -> pd.Series:
    """Whether a comparison rules out that ours is faster by more than SAME."""
    return found["lo"] >= 1 - SAME


def _counts(found: pd.DataFrame) -> str:
    """`slower at 8 of 12, the same within 2% at 3 of 12`, of what was decided."""
    words = {SLOWER: "slower", EQUAL: f"the same within {SAME:.0%}", FASTER: "faster"}
    counts = {word: found["decided"] == decision for decision, word in words.items()}
    return ", ".join(f"{word} at {_of(which)}" for word, which in counts.items() if which.any())


def _of(which: pd.Series) -> str:
    return f"{int(which.sum())} of {len(which)}"


def _nothing(what: str) -> str:
    return f"no size was measured for both {what} on two ranks or more."
