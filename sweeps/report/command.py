"""From run folders to a report: report.html, tables/, table.csv, table.md and figures/, also while a sweep goes on.

write_report(["outputs/sweeps/first_picture"], "outputs/sweeps/first_picture/report")
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import pandas as pd

from blockshock.cli.pipes import closed_pipe_ends_quietly
from blockshock.cli.startup import check_packages, end_at_once, versions
from blockshock.errors import writable
from blockshock.run_folder.files import printable
from blockshock.run_folder.folder import UNREADABLE
from sweeps.report.actions import draw_some, pack_each, unpack_each
from sweeps.report.compare import compare
from sweeps.report.exports import EXPORTS, export
from sweeps.report.figures import FIGURES
from sweeps.report.figures.batches import draw_batches
from sweeps.report.figures.draw import draw
from sweeps.report.figures.of_runs import run_figures
from sweeps.report.findings import findings
from sweeps.report.findings.title import title
from sweeps.report.listings import write_listings
from sweeps.report.listings.listing import folder_links, text_lists, write_table
from sweeps.report.listings.overview import readable, short, the_same
from sweeps.report.listings.verdicts import evidence
from sweeps.report.page.page import Content, page
from sweeps.report.page.page_table import PageTable
from sweeps.report.problems import attempt
from sweeps.report.records.runs import BROKEN, counts, environments, jobs, machines, reasons, when
from sweeps.report.spreadsheet import write_csv
from sweeps.report.tables.report_data import ReportData, listed, read_report_data
from sweeps.report.tables.verdicts import Verdict, verdicts
from sweeps.text import any_terminal, markdown, ranks, shown

LEFT_OUT = 10  # unreadable runs named on stderr


def write_report(paths: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> Path:
    """Write the report on the run folders at or below `paths` into the folder `out`; the path of its report.html.

    Raises FileNotFoundError for a missing path and ValueError where there is no run folder.
    """
    return _write(read_report_data(paths), paths, Path(out))[0]


def report_in_short(paths: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> list[str]:
    """Write the report as `write_report` does; lines for a terminal: the machine, the findings, the report's path."""
    data = read_report_data(paths)
    return [*in_short(data), f"report: {_write(data, paths, Path(out))[0]}"]


@closed_pipe_ends_quietly()
def main() -> None:
    """The console script `blockshock-report`."""
    any_terminal()
    arguments = _parser().parse_args()
    check_packages("blockshock-report")
    end_at_once()
    if arguments.keep and not arguments.pack:
        _refuse(f"--keep={arguments.keep[0]}: only --pack keeps files; give it too")
    if arguments.fail_over and not arguments.compare:
        _refuse(f"--fail-over={arguments.fail_over}: is a limit of --compare; give it too")
    try:
        if arguments.compare:
            sys.exit(compare(arguments.folders, arguments.out, arguments.fail_over))
        if arguments.pack:
            return pack_each(arguments.folders, arguments.out, arguments.keep)
        if arguments.unpack:
            return unpack_each(arguments.folders, arguments.out)
        if arguments.export:
            return export(arguments.folders, arguments.export, arguments.out)
        if arguments.figures:
            return draw_some(arguments.folders, arguments.figures.split(","), arguments.out or Path("."))
    except (OSError, ValueError) as error:
        _refuse(str(error))
    return _report(arguments)


def _report(arguments: argparse.Namespace) -> None:
    first: Path = arguments.folders[0]
    out: Path = arguments.out or (first.parent if first.is_file() else first) / "report"
    try:
        data = read_report_data(arguments.folders)
        writable("--out", out)
        written, problems = _write(data, arguments.folders, out)
    except (OSError, ValueError) as error:
        _refuse(str(error))
    for problem in problems:
        print(f"blockshock-report: {printable(problem)}", file=sys.stderr)
    ran = jobs(data.runs)
    _name_unreadable(ran[ran["status"] == UNREADABLE], written)
    if data.is_empty:
        ended = ", ".join(f"{count} {status}" for status, count in counts(ran).items())
        runs = "run" if len(ran) == 1 else "runs"
        _refuse(f"{listed(arguments.folders)}: no records in {ended} {runs}; the reasons are in {written}")
    _print(data, written)


def _name_unreadable(ran: pd.DataFrame, written: Path) -> None:
    """On stderr a line for each, with its file; of many the first."""
    for folder, reason in ran[["folder", "reason"]].head(LEFT_OUT).itertuples(index=False, name=None):
        print(f"blockshock-report: {printable(f'{shown(folder)}/{reason}')}; this run is left out", file=sys.stderr)
    if len(ran) > LEFT_OUT:
        print(f"blockshock-report: {len(ran) - LEFT_OUT} more are left out, see {written}", file=sys.stderr)


def _write(data: ReportData, paths: Sequence[str | PathLike[str]], out: Path) -> tuple[Path, list[str]]:
    """The report's path, and what could not be shown of `data`."""
    figures, tables = out / "figures", out / "tables"
    for folder in (figures, tables):
        folder.mkdir(parents=True, exist_ok=True)
    # Of an earlier report, which may have had more to show.
    for path in (out / "table.csv", out / "table.md", tables / "verdicts.csv", tables / "verdicts.md"):
        path.unlink(missing_ok=True)
    problems = list(data.problems)
    if not data.table.empty:
        write_csv(text_lists(data.table), out / "table.csv")
        (out / "table.md").write_text(markdown(readable(data.table)), encoding="utf-8")
    ran = jobs(data.runs)
    broken = ran[ran["status"].isin(BROKEN)]
    judged: list[Verdict] = attempt(problems, "the verdicts", [], verdicts, data.table, data.drift)
    if judged:
        rows = _verdict_rows(judged)
        write_table(tables / "verdicts", rows, rows)
    content = Content(
        title=title(data),
        experiments=", ".join(name for name in sorted(set(ran["name"]) - {""}) if not _RUN_ID.fullmatch(name)),
        findings=[(f.sentence, PageTable(f.name, f.sentence, "", f.numbers)) for f in findings(data, problems)],
        when=when(ran),
        machines=machines(data.runs),
        environments=environments(data.runs),
        counts=counts(ran),
        verdicts=[(verdict, evidence(verdict)) for verdict in judged],
        the_same=the_same(data.table),
        whole_table=not data.table.empty,
        tables=write_listings(data, tables, problems),
        figures=[*draw(data, figures, problems, FIGURES), *draw_batches(data.runs, out, problems)],
        run_figures=run_figures(data.runs, out),
        problems=problems,
        broken=_broken(broken, out) if len(broken) else None,
        running=_rows(ran[ran["status"] == "running"]),
        unsupported=reasons(ran, "unsupported"),
        command=shlex.join(["blockshock-report", *map(shown, paths), "--out", shown(out)]),
    )
    target = out / "report.html"
    target.write_text(page(content), encoding="utf-8")
    return target, problems


def _verdict_rows(judged: list[Verdict]) -> pd.DataFrame:
    return pd.DataFrame([[v.name, v.outcome, v.claim, v.because, v.hardware] for v in judged], columns=VERDICT)


_RUN_ID = re.compile(r"\d{8}-\d{6}-\w{4}")  # the name of an experiment that nobody named
VERDICT = ["hypothesis", "verdict", "claim", "because", "measured on"]


def _broken(ran: pd.DataFrame, out: Path) -> PageTable:
    text = ran.assign(folder=ran["folder"].map(shown))[["status", "label", "reason", "folder"]]
    text = text.rename(columns={"label": "job"}).astype(str)
    return PageTable("jobs", "Jobs without a result", "", text, links=folder_links(ran, out))


def _rows(ran: pd.DataFrame) -> list[dict[str, str]]:
    text = ran.assign(folder=ran["folder"].map(shown))
    return [{str(key): str(value) for key, value in row.items()} for row in text.to_dict("records")]


def _print(data: ReportData, written: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    if not data.table.empty:
        rows, left_out = short(data.table)
        printed = Table(box=None, header_style="bold", padding=(0, 1))
        for name in rows.columns:
            text = name in ("method", "kernel", "mask", "timing")
            printed.add_column(name, no_wrap=not text, overflow="fold", justify="left" if text else "right")
        for row in rows.to_numpy().tolist():
            printed.add_row(
                *(escape(printable(cell)) for cell in row),
                style="red" if any(cell.startswith("FAIL") for cell in row) else None,
            )
        if len(rows):
            console.print(printed)
        if left_out:
            console.print(f"{left_out} more rows in {written.with_name('table.md')}", soft_wrap=True, highlight=False)
    judged = verdicts(data.table, data.drift)
    said = [f"{verdict.title}: {verdict.outcome}: {verdict.because}" for verdict in judged if verdict.is_measured]
    for line in [*said, *in_short(data)]:
        console.print(escape(printable(line)), soft_wrap=True, highlight=False)
    for target in data.targets.to_dict("records"):
        met = "met" if target["met"] else "missed"
        line = f"{met}: {target['target']} on {ranks(target['world_size'])}: {target['measured']:.3f} "
        line += f"(limit {target['limit']:g}; worst cell {target['worst cell']})"
        console.print(escape(printable(line)), soft_wrap=True, highlight=False)
    console.print(f"report: {written}", soft_wrap=True, highlight=False)


def in_short(data: ReportData) -> list[str]:
    """For a terminal: on which machine, and each finding."""
    found = machines(data.runs)
    names = [found[key] for key in ("GPU", "CPU") if key in found][:1]
    names += [f"{key} {found[key]}" for key in ("PyTorch", "driver") if key in found]
    return [f"machine: {', '.join(names)}"] * bool(names) + [f"finding: {f.sentence}" for f in findings(data, [])]


DESCRIPTION = """Writes a report on run folders or packed experiments: report.html in one file, tables and figures.

    blockshock-report outputs/sweeps/first_picture                       # also while the sweep runs
    blockshock-report --compare main/sweep change/sweep --fail-over 5%   # two sweeps side by side
    blockshock-report --pack outputs/sweeps/first_picture                # into one file, to share
    blockshock-report outputs/sweeps/first_picture --export parquet      # for other programs

A run that can't be read is named and left out.
Exit status: 0, 1 if --fail-over found a slower cell, or 2 for wrong options, a missing folder or no records."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockshock-report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=versions())
    parser.add_argument(
        "folders", metavar="DIR", nargs="+", type=Path, help="a run folder, a folder above some, or a runs.jsonl.gz"
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=Path,
        help="where the report (default: <first DIR>/report), the packed file "
        "(<DIR>/runs.jsonl.gz), the unpacked folders (next to the file), the export "
        "(<first DIR>/export_<FORMAT>) or the figures (here) go",
    )
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--pack", action="store_true", help="write the run folders of DIR into one runs.jsonl.gz")
    actions.add_argument("--unpack", action="store_true", help="write the run folders that a runs.jsonl.gz holds")
    actions.add_argument(
        "--compare",
        action="store_true",
        help="two DIRs, A and B: how much longer each cell takes in B; --out: a folder",
    )
    actions.add_argument(
        "--export",
        metavar="FORMAT",
        help=f"write records and tables for other programs into a new folder: {', '.join(EXPORTS)}",
    )
    actions.add_argument("--figures", metavar="NAME,NAME", help="draw these figures only, as <PATH>/NAME.png")
    parser.add_argument(
        "--fail-over", metavar="SHARE", help="with --compare: exit status 1 if a cell is slower by more, such as 5%%"
    )
    parser.add_argument(
        "--keep",
        metavar="PATTERN",
        action="append",
        default=[],
        help="with --pack: further text files of each run folder, such as '*.csv'; may be given again",
    )
    return parser


def _refuse(message: str) -> None:
    print(f"blockshock-report: {printable(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
