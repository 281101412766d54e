"""The report's tables, each on the page and as files of numbers and of text.

listings(find(folders), Path("report/tables"))
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sweeps.benchmarks import benchmark_table, target_table
from sweeps.found import Found
from sweeps.page import Listing
from sweeps.readable import key_columns, markdown, number
from sweeps.recomputation import recomputation_table
from sweeps.topics import topics
from sweeps.verdicts import Verdict


def listings(found: Found, folder: Path) -> list[Listing]:
    """Every table of the page, written as CSV (numbers) and Markdown (text) as well."""
    made = []
    for topic in topics(found.table, found.law):
        files = write_table(folder / topic.name, topic.shown, text_lists(topic.numbers))
        made.append(Listing(topic.name, topic.title, topic.note, topic.shown, files))
    if not found.recomputed.empty:
        shown = recomputation_table(found.recomputed)
        files = write_table(folder / "recomputation", shown, found.recomputed)
        note = "Of each setting, method and memory budget. Predicted: by the plan's cost model. LP: the linear "
        note += "program's lower bound on the time that any plan within the budget adds. Same numbers: the rewritten "
        note += "step's loss, gradients and states against the plain step's."
        made.append(Listing("recomputation", "Recomputation", note, shown, files))
    if not found.profiles.empty:
        files = write_table(folder / "profiles", found.profiles)
        note = "The simulated peak comes from the step's graph and its nodes' workspaces, the measured one from the "
        note += "allocator. The sum of the nodes' times belongs beside the step as a CUDA graph, which has no gaps "
        note += "between kernels; with the idle time it belongs beside the eager step."
        made.append(Listing("profiles", "Profiled training steps", note, found.profiles, files))
    if not found.traces.empty:
        files = write_table(folder / "traces", found.traces)
        note = (
            "Medians over the traced steps, of the rank with the longest. Forward to idle add up to the step. Slower "
        )
        note += "by: what tracing added to it. With an owner: the share of device time that belongs to a module, the "
        note += "loss, the optimizer or a collective."
        made.append(Listing("traces", "Traced training steps", note, found.traces, files))
    if not found.targets.empty:
        shown = target_table(found.targets)
        files = write_table(folder / "targets", shown, found.targets)
        note = "Ratios of medians of what took turns in one run. Shares of cells, and how many times as long as ours "
        note += "torch_semi_structured takes, shall reach the limit; all other ratios shall stay below it."
        made.append(Listing("targets", "Benchmarks: targets", note, shown, files))
    if not found.benchmarks.empty:
        shown = benchmark_table(found.benchmarks)
        files = write_table(folder / "benchmarks", shown, text_lists(found.benchmarks))
        note = "Times are medians; as CUDA graphs, on GPUs, with the L2 cache cold, and eager with the host's part and "
        note += "a warm cache. Ratio: over the baseline's time in the same run; of single rounds: its smallest and "
        note += "largest value over the rounds in which both took turns. Of several runs of a contender in a cell the "
        note += "latest counts, with that run's baseline."
        if found.benchmarks["device"].eq("cpu").any():
            note += " The targets are for GPUs: times on a CPU only show that it works, and are not judged."
        made.append(Listing("benchmarks", "Benchmarks", note, shown, files))
    return made


def write_table(base: Path, shown: pd.DataFrame, numbers: pd.DataFrame | None = None) -> tuple[str, ...]:
    """<base>.csv and <base>.md; their paths from the report."""
    if shown.empty:
        return ()
    (shown if numbers is None else numbers).to_csv(base.with_suffix(".csv"), index=False)
    base.with_suffix(".md").write_text(markdown(shown.astype(str)), encoding="utf-8")
    return tuple(f"{base.parent.name}/{base.name}{ending}" for ending in (".csv", ".md"))


def text_lists(table: pd.DataFrame) -> pd.DataFrame:
    """Repeats as `0.5;0.6;0.4`, which a spreadsheet can split."""
    lists = [name for name in ("forward_ms", "local_ms", "step_ms", "rounds_us") if name in table]
    as_text = {name: table[name].map(lambda v: ";".join(map(repr, v)) if isinstance(v, list) else "") for name in lists}
    return table.assign(**as_text)


def evidence(verdict: Verdict) -> Listing | None:
    """A verdict's comparisons as text."""
    rows = verdict.evidence
    if rows.empty:
        return None
    if "method" not in rows and "ratio" in rows:
        shown = key_columns(rows.assign(method="block_shock"))
        for old, new in EVIDENCE.items():
            if old in rows:
                shown[new] = rows[old].map(number) if rows[old].dtype.kind == "f" else rows[old].astype(str)
    else:
        shown = rows.astype({"share_of_limit": object})
        shown["share_of_limit"] = rows["share_of_limit"].map(lambda value: f"{value:.0%}")
        shown = shown.rename(columns={"share_of_limit": "of the limit, at most", "world_size": "P"}).astype(str)
    shown = shown[[name for name in shown if (shown[name] != "").any()]]
    return Listing(f"evidence-{verdict.name}", f"{verdict.name}: comparisons", "", shown)


EVIDENCE = {
    "ours_ms": "Block-Shock, ms",
    "rival_method": "against",
    "rival_ms": "its time, ms",
    "ratio": "ratio",
    "lo": "from",
    "hi": "to",
    "memory_over_row": "memory / row-parallel's",
    "memory_over_dense": "memory / dense's",
}
