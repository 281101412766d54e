"""Layers: Block-Shock's time over what one would use otherwise; of other methods, which one is the fastest."""

from __future__ import annotations

import pandas as pd

from sweeps.report.findings.finding import Finding, listed, mean_ratio, sentence
from sweeps.report.tables.comparisons import ALIKE
from sweeps.report.tables.intervals import EQUAL, FASTER, MIN_REPEATS, OPEN, SAME, SLOWER
from sweeps.report.tables.layers import TRAINING
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.verdicts import WINDOWS, Verdict, verdicts
from sweeps.text import counted, number, span

# Hypothesis → what it is about, in a sentence and in a table.
ABOUT = {
    "H1": ("forward pass is", "forward pass", "the faster dense method"),
    "H2": ("training step is", "training step", "row-parallel"),
    "H3": ("kernels are", "forward pass", "the same halves with their zeros"),
}
TIMES = {"forward": "forward pass", "step": "training step"}


def find(data: ReportData) -> Finding | None:
    if data.table.empty:
        return None
    compared = [v for v in verdicts(data.table, data.drift) if v.name in ABOUT and len(v.evidence)]
    if compared:
        return _of_hypotheses(compared)
    return _of_the_fastest(data.table) or _of_errors(data.table)


def _of_hypotheses(compared: list[Verdict]) -> Finding:
    machines = list(dict.fromkeys(verdict.hardware.split(", ranks")[0] for verdict in compared))
    said = []
    for machine, subject in dict.fromkeys((v.hardware.split(", ranks")[0], v.subject) for v in compared):
        own = [v for v in compared if v.hardware.split(", ranks")[0] == machine and v.subject == subject]
        asked = [verdict for verdict in own if verdict.name != "H3"] or own  # of the kernels where nothing else is
        text = listed(_said(verdict, verdict is asked[0]) for verdict in asked)
        where = [f"on {machine.split(', ')[0]}"] * (len(machines) > 1) + [f"for {_of_what(own)}"] * bool(subject)
        said.append(", ".join([" ".join(where), text]) if where else text)
    rows = [_row(verdict, len(machines) > 1) for verdict in compared]
    return Finding("finding-layers", sentence("; ".join(said)), pd.DataFrame(rows))


def _of_what(own: list[Verdict]) -> str:
    """A subject in a sentence; of windows, which weights they keep."""
    masks = sorted({str(mask) for verdict in own for mask in verdict.evidence["mask"]})
    return f"{own[0].subject} ({', '.join(masks)})" if own[0].subject == WINDOWS else own[0].subject


def _said(verdict: Verdict, first: bool) -> str:
    """`Block-Shock's forward pass is 0 to 11% slower than the faster dense method`."""
    subject, _, rival = ABOUT[verdict.name]
    ratios = verdict.evidence["ratio"]
    whose = "Block-Shock's" if first else "its"
    text = f"{whose} {subject} "
    if (verdict.evidence["decided"] == EQUAL).all():
        return f"{text}as fast as {rival} within {SAME:.0%}"
    unsure = " (medians; too few repeats for intervals)" if verdict.evidence["lo"].isna().all() else ""
    return f"{text}{span(ratios.min(), ratios.max())} than {rival}{unsure}"


def _row(verdict: Verdict, several: bool) -> dict[str, str]:
    found = verdict.evidence
    _, what, rival = ABOUT[verdict.name]
    words = {FASTER: "faster", EQUAL: "the same", SLOWER: "slower", OPEN: "undecided"}
    counts = found["decided"].value_counts()
    decided = [f"{word} at {counts[kind]}" for kind, word in words.items() if kind in counts]
    edges = f"fewer than {MIN_REPEATS} repeats"
    if found["lo"].notna().any():
        edges = f"{found['lo'].min():.2f} – {found['hi'].max():.2f}"
    return {
        **({"machine": verdict.hardware} if several else {}),
        "measured": f"{what}, {verdict.subject}" if verdict.subject else what,
        "over": rival,
        "mean ratio": f"{mean_ratio(found['ratio']):.2f}",
        "from – to": f"{found['ratio'].min():.2f} – {found['ratio'].max():.2f}",
        "95% intervals": edges,
        "decided": f"{', '.join(decided)} of {len(found)}",
        "hypothesis": f"{verdict.title} {verdict.outcome}",
    }


def _of_the_fastest(table: pd.DataFrame) -> Finding | None:
    """Where Block-Shock has no rival: how often each method is the fastest, and its time over the fastest's."""
    said, rows = [], []
    for name, what in TIMES.items():
        column = f"{name}_p50_ms"
        keys = [*ALIKE, "backend", "world_size", *(TRAINING if name == "step" else ())]
        timed = table[table[column].notna()]
        if timed.empty:
            continue
        best = timed.loc[timed.groupby([*keys, "method"], dropna=False)[column].idxmin()]
        best = best.assign(over=best[column] / best.groupby(keys, dropna=False)[column].transform("min"))
        sizes = best.groupby(keys, dropna=False).ngroups
        wins = best[best["over"] == 1]["method"].value_counts()
        first = str(wins.index[0])
        alone = best["method"].nunique() == 1
        one = "the only method measured" if alone else f"the fastest at {wins.iloc[0]} of {counted(sizes, 'size')}"
        said.append(f"{what}: {first} is {one}")
        for method, own in best.groupby("method"):
            rows.append(
                {
                    "measured": what,
                    "method": str(method),
                    "fastest at": f"{wins.get(method, 0)} of {len(own)}",
                    "time over the fastest's": f"{mean_ratio(own['over']):.2f}",
                    "ms": f"{number(own[column].min())} – {number(own[column].max())}",
                }
            )
    return Finding("finding-layers", sentence("; ".join(said)), pd.DataFrame(rows)) if said else None


def _of_errors(table: pd.DataFrame) -> Finding | None:
    """Where nothing was timed."""
    checked = table[table["passed"].notna()]
    if checked.empty:
        return None
    failed = int((~checked["passed"].astype(bool)).sum())
    text = (
        f"{failed} of {counted(len(checked), 'check')} failed"
        if failed
        else f"all {counted(len(checked), 'check')} passed"
    )
    if len(checked) == 1:
        text = "the check failed" if failed else "the check passed"
    rows = []
    for method, own in checked.groupby("method"):
        shares = pd.concat([own[f"{q}_relative_error"] / own[f"{q}_error_limit"] for q in ("y", "dx", "dw")])
        passed = f"{int(own['passed'].astype(bool).sum())} of {len(own)}"
        rows.append({"method": str(method), "passed": passed, "largest error, of its limit": f"{shares.max():.0%}"})
    return Finding("finding-layers", sentence(f"{text}: errors against float64, and their limits"), pd.DataFrame(rows))
