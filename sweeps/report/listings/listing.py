"""What a table of the report is: a selection, the text that people read, and a note on its columns.

FORWARD = Listing("forward", "Forward pass", "Medians, ...", select, show)

`write` turns one into a table on the page and two files: numbers as CSV, text as Markdown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sweeps.report.page.page import PageTable
from sweeps.report.spreadsheet import write_csv
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

    def write(self, data: ReportData, folder: Path) -> PageTable | None:
        """Its table, with <name>.csv and <name>.md in `folder`; None, and no such files, where it is empty."""
        numbers = self.select(data)
        if numbers.empty:
            for ending in (".csv", ".md"):  # of an earlier report
                (folder / self.name).with_suffix(ending).unlink(missing_ok=True)
            return None
        shown = self.show(numbers)
        files = write_table(folder / self.name, shown, text_lists(numbers))
        return PageTable(self.name, self.title, self.note + self.remark(numbers), shown, files)


def write_table(base: Path, shown: pd.DataFrame, numbers: pd.DataFrame) -> tuple[str, ...]:
    """<base>.csv and <base>.md; their paths from the report."""
    write_csv(numbers, base.with_suffix(".csv"))
    base.with_suffix(".md").write_text(markdown(shown.astype(str)), encoding="utf-8")
    return tuple(f"{base.parent.name}/{base.name}{ending}" for ending in (".csv", ".md"))


def text_lists(table: pd.DataFrame) -> pd.DataFrame:
    """Repeats as `0.5;0.6;0.4`, which a spreadsheet can split."""
    lists = [name for name in ("forward_ms", "local_ms", "step_ms", "rounds_us") if name in table]
    as_text = {name: table[name].map(lambda v: ";".join(map(repr, v)) if isinstance(v, list) else "") for name in lists}
    return table.assign(**as_text)


def without_empty_columns(shown: pd.DataFrame) -> pd.DataFrame:
    """As text, without the columns that say nothing in any row."""
    text = shown.astype(str)
    return text[[name for name in text if (text[name] != "").any()]]
