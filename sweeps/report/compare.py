"""`blockshock-report --compare A B`: two sweeps, machines, commits or versions side by side, for people and for CI."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from blockshock.errors import writable
from blockshock.run_folder.files import printable
from sweeps.report.records.load import load_runs
from sweeps.report.records.runs import jobs
from sweeps.report.spreadsheet import write_csv
from sweeps.report.tables.intervals import EQUAL
from sweeps.report.tables.two_sides import in_short, over, two_sides
from sweeps.text import counted, markdown, number, shown

PRINTED = 30  # cells at most in a terminal: those that are not the same, the slower ones first
SLOWER_STATUS = 1  # of the process, where a cell is slower by more than --fail-over allows


def compare(paths: Sequence[Path], out: Path | None, fail_over: str | None) -> int:
    """Print the comparison, and write it into the folder `out` if there is one; the exit status.

    Raises FileNotFoundError for a missing path and ValueError for what cannot be compared.
    """
    limit = None if fail_over is None else _share(fail_over)
    if len(paths) != 2:
        raise ValueError(f"--compare takes two folders, A and B; {counted(len(paths), 'folder')} given")
    if paths[0].resolve() == paths[1].resolve():
        raise ValueError(f"{shown(paths[0])}: A and B are the same; give the other one")
    a, b = (_ended(path) for path in paths)
    cells = two_sides(a, b)
    _print(paths, cells)
    if out is not None:
        writable("--out", out)
        out.mkdir(parents=True, exist_ok=True)
        write_csv(cells, out / "comparison.csv")
        (out / "comparison.md").write_text(markdown(_readable(cells)), encoding="utf-8")
        print(f"comparison: {shown(out / 'comparison.csv')}")
    if limit is None:
        return 0
    slower = over(cells, limit)
    if len(slower):
        print(f"{counted(len(slower), 'cell')} of B slower by more than {limit:.1%}", file=sys.stderr)
    return SLOWER_STATUS if len(slower) else 0


def _ended(path: Path) -> pd.DataFrame:
    runs = load_runs([path])
    if runs.empty:
        raise ValueError(f"{shown(path)}: no run folder here (a run folder holds a status.json)")
    running = int((jobs(runs)["status"] == "running").sum())
    if running:
        raise ValueError(f"{shown(path)}: {counted(running, 'job')} still running; compare when they have ended")
    return runs[runs["status"] == "ok"]


def _share(text: str) -> float:
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(%?)", text.strip())
    if found is None:
        raise ValueError(f"--fail-over={text}: give a share such as 5% or 0.05")
    return float(found[1]) / (100 if found[2] else 1)


def _readable(cells: pd.DataFrame) -> pd.DataFrame:
    """For people: numbers rounded, the interval in one column, and no column that says the same in every row."""
    machines = ["a_machine", "b_machine"]
    same = all(cells[name].nunique() == 1 for name in machines)
    text = cells.iloc[:, : list(cells).index("a_machine")].copy()
    if not same:
        text[["A on", "B on"]] = cells[machines]
    text["A, ms"], text["B, ms"] = cells["a_ms"].map(number), cells["b_ms"].map(number)
    text["B/A"] = cells["ratio"].map("{:.3f}".format)
    edges = zip(cells["ratio_lo"], cells["ratio_hi"], strict=True)
    text["95% interval"] = [f"{low:.3f} to {high:.3f}" if low == low else "" for low, high in edges]
    if cells["memory_ratio"].notna().any():
        text["memory, B/A"] = cells["memory_ratio"].map(lambda value: f"{value:.3f}" if value == value else "")
    text["B is"] = cells["verdict"]
    return text.astype(str)


def _print(paths: Sequence[Path], cells: pd.DataFrame) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for name, path, column in zip("AB", paths, ("a_machine", "b_machine"), strict=True):
        on = "; ".join(dict.fromkeys(cells[column]))
        console.print(escape(printable(f"{name}: {shown(path)} ({on})")), soft_wrap=True)
    changed = cells[cells["verdict"] != EQUAL].sort_values("ratio", ascending=False, kind="stable")
    text = _readable(changed.head(PRINTED))
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for name in text.columns:
        table.add_column(name, justify="right" if text[name].str.match(r"[\d.]+$").all() else "left", overflow="fold")
    for row in text.to_numpy().tolist():
        table.add_row(*(escape(printable(cell)) for cell in row))
    if len(text):
        console.print(table)
    if len(changed) > PRINTED:
        console.print(f"{len(changed) - PRINTED} more cells changed less; --out FOLDER writes them all", soft_wrap=True)
    console.print(in_short(cells), soft_wrap=True)
