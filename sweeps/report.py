"""From run folders to a report: report.html, tables/, table.csv, table.md and figures/, also while a sweep goes on.

write_report(["outputs/sweeps/first_picture"], "outputs/sweeps/first_picture/report")
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import pandas as pd

from blockshock.errors import writable
from blockshock.record import UNREADABLE
from sweeps.benchmarks import benchmark_table, benchmarks, latest, target_table, targets
from sweeps.drawing import draw
from sweeps.figures import Measured
from sweeps.jobs import BROKEN, counts, environments, jobs, machines, reasons, when
from sweeps.law import law
from sweeps.load import load_runs
from sweeps.page import Content, Listing, page
from sweeps.panels import ranks
from sweeps.profiles import draw_batches, profile_table
from sweeps.readable import key_columns, markdown, number, readable, short, the_same
from sweeps.recomputation import recomputation_table, recomputed
from sweeps.tables import drift, results
from sweeps.topics import topics
from sweeps.traces import trace_table
from sweeps.verdicts import Verdict, verdicts


@dataclass(frozen=True)
class Found:
    """What run folders hold, as tables."""

    runs: pd.DataFrame
    table: pd.DataFrame
    drift: pd.DataFrame
    law: pd.DataFrame
    recomputed: pd.DataFrame
    profiles: pd.DataFrame
    traces: pd.DataFrame
    benchmarks: pd.DataFrame
    targets: pd.DataFrame

    @property
    def nothing(self) -> bool:
        found = (self.table, self.drift, self.recomputed, self.profiles, self.traces, self.benchmarks)
        return all(table.empty for table in found)


LEFT_OUT = 10  # unreadable runs named on stderr
LAYERS = ("verdicts", "forward", "training_step", "law", "memory", "errors")
TABLES = (*LAYERS, "recomputation", "profiles", "traces", "targets", "benchmarks")


def write_report(paths: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> Path:
    """Write the report on the run folders at or below `paths` into the folder `out`; the path of its report.html.

    Raises FileNotFoundError for a missing path and ValueError where there is no run folder.
    """
    return _write(_find(paths), paths, Path(out))


def main() -> None:
    """The console script `blockshock-report`."""
    arguments = _parser().parse_args()
    out = arguments.out or arguments.folders[0] / "report"
    try:
        found = _find(arguments.folders)
        writable("--out", out)
        written = _write(found, arguments.folders, out)
    except (OSError, ValueError) as error:
        _refuse(str(error))
    ran = jobs(found.runs)
    _name_unreadable(ran[ran["status"] == UNREADABLE], written)
    if found.nothing:
        ended = ", ".join(f"{count} {status}" for status, count in counts(ran).items())
        runs = "run" if len(ran) == 1 else "runs"
        _refuse(f"{_listed(arguments.folders)}: no records in {ended} {runs}; why stands in {written}")
    _print(found, written)


def _name_unreadable(found: pd.DataFrame, written: Path) -> None:
    """On stderr a line for each, with its file; of many the first."""
    for folder, reason in found[["folder", "reason"]].head(LEFT_OUT).itertuples(index=False, name=None):
        print(f"blockshock-report: {_shown(folder)}/{reason}; this run is left out", file=sys.stderr)
    if len(found) > LEFT_OUT:
        print(f"blockshock-report: {len(found) - LEFT_OUT} more are left out, see {written}", file=sys.stderr)


def _find(paths: Sequence[str | PathLike[str]]) -> Found:
    runs = load_runs(paths)
    if runs.empty:
        raise ValueError(f"{_listed(paths)}: no run folder here (a run folder holds a status.json)")
    table = results(runs)
    parts = (recomputed(runs), profile_table(runs), trace_table(runs))
    measured = benchmarks(runs)
    return Found(runs, table, drift(runs), law(table), *parts, latest(measured), targets(measured))


def _write(found: Found, paths: Sequence[str | PathLike[str]], out: Path) -> Path:
    figures, tables = out / "figures", out / "tables"
    for folder in (figures, tables):
        folder.mkdir(parents=True, exist_ok=True)
    for name in TABLES:  # of an earlier report, which may have had more to show
        for ending in (".csv", ".md"):
            (tables / name).with_suffix(ending).unlink(missing_ok=True)
    for name in ("table.csv", "table.md"):
        (out / name).unlink(missing_ok=True)
    if not found.table.empty:
        _text_lists(found.table).to_csv(out / "table.csv", index=False)
        (out / "table.md").write_text(markdown(readable(found.table)), encoding="utf-8")
    ran = jobs(found.runs)
    broken = ran[ran["status"].isin(BROKEN)]
    judged = verdicts(found.table, found.drift)
    _write_table(tables / "verdicts", _verdict_rows(judged))
    content = Content(
        title=", ".join(sorted(set(ran["name"]) - {""})) or Path(paths[0]).resolve().name,
        when=when(ran),
        machines=machines(found.runs),
        environments=environments(found.runs),
        counts=counts(ran),
        verdicts=[(verdict, _evidence(verdict)) for verdict in judged],
        the_same=the_same(found.table),
        whole_table=not found.table.empty,
        listings=_listings(found, tables),
        pictures=[
            *draw(Measured(found.table, found.drift, found.law, found.recomputed, found.benchmarks), figures),
            *draw_batches(found.runs, out),
        ],
        broken=_broken(broken) if len(broken) else None,
        running=_listing(ran[ran["status"] == "running"]),
        unsupported=reasons(ran, "unsupported"),
        command=shlex.join(["blockshock-report", *map(_shown, paths), "--out", _shown(out)]),
    )
    target = out / "report.html"
    target.write_text(page(content), encoding="utf-8")
    return target


def _listings(found: Found, folder: Path) -> list[Listing]:
    """Every table of the page, written as CSV (numbers) and Markdown (text) as well."""
    listings = []
    for topic in topics(found.table, found.law):
        files = _write_table(folder / topic.name, topic.shown, _text_lists(topic.numbers))
        listings.append(Listing(topic.name, topic.title, topic.note, topic.shown, files))
    if not found.recomputed.empty:
        shown = recomputation_table(found.recomputed)
        files = _write_table(folder / "recomputation", shown, found.recomputed)
        note = "Of each setting, method and memory budget. Predicted: by the plan's cost model. LP: the linear "
        note += "program's lower bound on the time that any plan within the budget adds. Same numbers: the rewritten "
        note += "step's loss, gradients and states against the plain step's."
        listings.append(Listing("recomputation", "Recomputation", note, shown, files))
    if not found.profiles.empty:
        files = _write_table(folder / "profiles", found.profiles)
        note = "The simulated peak comes from the step's graph and its nodes' workspaces, the measured one from the "
        note += "allocator. The sum of the nodes' times belongs beside the step as a CUDA graph, which has no gaps "
        note += "between kernels; with the idle time it belongs beside the eager step."
        listings.append(Listing("profiles", "Profiled training steps", note, found.profiles, files))
    if not found.traces.empty:
        files = _write_table(folder / "traces", found.traces)
        note = (
            "Medians over the traced steps, of the rank with the longest. Forward to idle add up to the step. Slower "
        )
        note += "by: what tracing added to it. With an owner: the share of device time that belongs to a module, the "
        note += "loss, the optimizer or a collective."
        listings.append(Listing("traces", "Traced training steps", note, found.traces, files))
    if not found.targets.empty:
        shown = target_table(found.targets)
        files = _write_table(folder / "targets", shown, found.targets)
        note = "Ratios of medians of what took turns in one run. Shares of cells, and how many times as long as ours "
        note += "torch_semi_structured takes, shall reach the limit; all other ratios shall stay below it."
        listings.append(Listing("targets", "Benchmarks: targets", note, shown, files))
    if not found.benchmarks.empty:
        shown = benchmark_table(found.benchmarks)
        files = _write_table(folder / "benchmarks", shown, _text_lists(found.benchmarks))
        note = "Times are medians; as CUDA graphs, on GPUs, with the L2 cache cold, and eager with the host's part and "
        note += "a warm cache. Ratio: over the baseline's time in the same run; of single rounds: its smallest and "
        note += "largest value over the rounds in which both took turns. Of several runs of a contender in a cell the "
        note += "latest counts, with that run's baseline."
        if found.benchmarks["device"].eq("cpu").any():
            note += " The targets are for GPUs: times on a CPU only show that it works, and are not judged."
        listings.append(Listing("benchmarks", "Benchmarks", note, shown, files))
    return listings


def _write_table(base: Path, shown: pd.DataFrame, numbers: pd.DataFrame | None = None) -> tuple[str, ...]:
    """<base>.csv and <base>.md; their paths from the report."""
    if shown.empty:
        return ()
    (shown if numbers is None else numbers).to_csv(base.with_suffix(".csv"), index=False)
    base.with_suffix(".md").write_text(markdown(shown.astype(str)), encoding="utf-8")
    return tuple(f"{base.parent.name}/{base.name}{ending}" for ending in (".csv", ".md"))


def _text_lists(table: pd.DataFrame) -> pd.DataFrame:
    """Repeats as `0.5;0.6;0.4`, which a spreadsheet can split."""
    lists = [name for name in ("forward_ms", "local_ms", "step_ms", "rounds_us") if name in table]
    as_text = {name: table[name].map(lambda v: ";".join(map(repr, v)) if isinstance(v, list) else "") for name in lists}
    return table.assign(**as_text)


def _verdict_rows(judged: list[Verdict]) -> pd.DataFrame:
    return pd.DataFrame([[v.name, v.outcome, v.claim, v.because, v.hardware] for v in judged], columns=VERDICT)


VERDICT = ["hypothesis", "verdict", "claim", "because", "measured on"]


def _evidence(verdict: Verdict) -> Listing | None:
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


def _broken(found: pd.DataFrame) -> Listing:
    shown = found.assign(folder=found["folder"].map(_shown))[["status", "label", "reason", "folder"]]
    return Listing("jobs", "Jobs without a result", "", shown.rename(columns={"label": "job"}).astype(str))


def _listing(found: pd.DataFrame) -> list[dict[str, str]]:
    shown = found.assign(folder=found["folder"].map(_shown))
    return [{str(key): str(value) for key, value in row.items()} for row in shown.to_dict("records")]


def _print(found: Found, written: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    if not found.table.empty:
        rows, left_out = short(found.table)
        printed = Table(box=None, header_style="bold", padding=(0, 1))
        for name in rows.columns:
            text = name in ("method", "kernel", "mask", "timing")
            printed.add_column(name, no_wrap=not text, overflow="fold", justify="left" if text else "right")
        for row in rows.to_numpy().tolist():
            printed.add_row(*row, style="red" if any(cell.startswith("FAIL") for cell in row) else None)
        console.print(printed)
        if left_out:
            console.print(f"{left_out} more rows in {written.with_name('table.md')}", soft_wrap=True, highlight=False)
    for verdict in verdicts(found.table, found.drift):
        console.print(f"{verdict.name}: {verdict.outcome}: {verdict.because}", soft_wrap=True, highlight=False)
    for target in found.targets.to_dict("records"):
        met = "met" if target["met"] else "missed"
        said = f"{met}: {target['target']} on {ranks(target['world_size'])}: {target['measured']:.3f} "
        said += f"(limit {target['limit']:g}; worst cell {target['worst cell']})"
        console.print(said, soft_wrap=True, highlight=False)
    console.print(f"report: {written}", soft_wrap=True, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockshock-report",
        description="Write a report on run folders: report.html (one file), tables and figures.",
        epilog="Works while a sweep is still going on. Example: blockshock-report outputs/sweeps/first_picture. "
        "Exit status: 0, or 2 when a folder is missing or holds no records. "
        "A run that can't be read is named and left out.",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="a run folder, or any folder above some")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the report goes (default: <first DIR>/report)")
    return parser


def _listed(paths: Sequence[str | PathLike[str]]) -> str:
    return ", ".join(str(path) for path in paths)


def _shown(path: str | PathLike[str]) -> str:
    """Relative where that is shorter to type and to read: below the current folder."""
    absolute = Path(path).resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def _refuse(message: str) -> None:
    print(f"blockshock-report: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
