"""What a table of the report is: a selection, the text that people read, and a note on its columns.

FORWARD = Listing("forward", "Forward pass", "Medians, ...", select, show)

`write` turns one into a table on the page and two files: numbers as CSV, text as Markdown.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from sweeps.report.page.page_table import PageTable
from sweeps.report.spreadsheet import write_csv
from sweeps.report.tables.benchmarks import ROUNDS
from sweeps.report.tables.report_data import ReportData
from sweeps.text import markdown


def no_remark(_: pd.DataFrame) -> str:
    return ""


@dataclass(frozen=True)
class Listing:
    name: str  # of its files, tables/<name>.csv and .md
    title: str
    note: str  # what the columns mean
    select: Callable[[ReportData], pd.DataFrame]  # numbers; empty: there is nothing to list
    show: Callable[[pd.DataFrame], pd.DataFrame]  # the selection as text
    remark: Callable[[pd.DataFrame], str] = no_remark  # goes on after the note, where these numbers need it
    best: tuple[tuple[str, str], ...] = ()  # numbers, and the text's column of them, of which the smallest is bold
    among: tuple[str, ...] = ()  # the numbers' columns that rows share to be compared

    def write(self, data: ReportData, folder: Path) -> PageTable | None:
        """Its table, with <name>.csv and <name>.md in `folder`; None, and no such files, where it is empty."""
        numbers = self.select(data)
        if numbers.empty:
            for ending in (".csv", ".md"):  # of an earlier report
                (folder / self.name).with_suffix(ending).unlink(missing_ok=True)
            return None
        shown = self.show(numbers)
        files = write_table(folder / self.name, shown, text_lists(numbers))
        note, links = self.note + self.remark(numbers), folder_links(numbers, folder.parent)
        return PageTable(self.name, self.title, note, shown, files, links, self._best(numbers, shown))

    def _best(self, numbers: pd.DataFrame, shown: pd.DataFrame) -> frozenset[tuple[int, str]]:
        """What reads as the smallest of its group, where the group has two rows or more."""
        found: set[tuple[int, str]] = set()
        keys = [key for key in self.among if key in numbers]
        for column, name in self.best:
            if name not in shown:
                continue
            rows = numbers[[*keys, column]].assign(_text=shown[name].to_numpy()).reset_index(drop=True)
            rows = rows[rows[column].notna()]
            groups = rows.groupby(keys, dropna=False)
            rows = rows[groups[column].transform("size") > 1]
            best = rows.loc[rows.groupby(keys, dropna=False)[column].transform("idxmin"), "_text"].to_numpy()
            found |= {(int(place), name) for place in rows.index[rows["_text"].to_numpy() == best]}
        return frozenset(found)


def folder_links(numbers: pd.DataFrame, report: Path) -> tuple[str, ...]:
    """Of each row the address of its run folder as seen from the report; empty for a packed run."""
    if "folder" not in numbers:
        return ()
    here = os.path.realpath(report)
    there = {name: os.path.isdir(name) for name in set(numbers["folder"].dropna()) if name}
    return tuple(
        quote(Path(os.path.relpath(os.path.realpath(name), here)).as_posix()) if there.get(name) else ""
        for name in numbers["folder"]
    )


def write_table(base: Path, shown: pd.DataFrame, numbers: pd.DataFrame) -> tuple[str, ...]:
    """<base>.csv and <base>.md; their paths from the report."""
    write_csv(numbers, base.with_suffix(".csv"))
    base.with_suffix(".md").write_text(markdown(shown.astype(str)), encoding="utf-8")
    return tuple(f"{base.parent.name}/{base.name}{ending}" for ending in (".csv", ".md"))


def text_lists(table: pd.DataFrame) -> pd.DataFrame:
    """Repeats as `0.5;0.6;0.4`, which a spreadsheet can split; without the run folders, which are this machine's."""
    table = table.drop(columns=[name for name in ("folder", "forward_folder", "step_folder") if name in table])
    lists = [name for name in table if name in ("forward_ms", "local_ms", "step_ms", *ROUNDS)]
    as_text = {name: table[name].map(lambda v: ";".join(map(repr, v)) if isinstance(v, list) else "") for name in lists}
    return table.assign(**as_text)


def without_empty_columns(shown: pd.DataFrame) -> pd.DataFrame:
    """As text, without the columns that say nothing in any row."""
    text = shown.astype(str)
    return text[[name for name in text if (text[name] != "").any()]]
