"""A table on the page: which of its columns are numbers, which one may choose among, and its rows as HTML.

PageTable("forward", "Forward pass", "Medians, ...", shown).body(most=200)
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from markupsafe import Markup


@dataclass(frozen=True)
class Column:
    """A column of a table on the page."""

    name: str
    number: bool
    choose: bool  # may one choose among its values?
    main: bool = False  # the number that a phone shows first


@dataclass(frozen=True)
class PageTable:
    """A table on the page; report.js sorts and filters it, and shows as many of its columns as fit."""

    name: str
    title: str
    note: str
    shown: pd.DataFrame  # text; of a wide table the first columns are what fits
    files: tuple[str, ...] = ()  # beside the page
    links: tuple[str, ...] = ()  # of each row the address of its run folder, empty where there is none
    best: frozenset[tuple[int, str]] = frozenset()  # row and column of what is bold

    @cached_property
    def same(self) -> dict[str, str]:
        """The settings that every row shares: a line above the table instead of columns. The first column stays."""
        if len(self.shown) < 2:
            return {}
        settings = [name for name in list(self.shown)[1:] if name in CHOICES or not _numbers(self.shown[name])]
        alike = {str(name): str(self.shown[name].iloc[0]) for name in settings if self.shown[name].nunique() == 1}
        return {name: value for name, value in alike.items() if value not in JUDGED and not value.startswith("FAIL")}

    @cached_property
    def columns(self) -> list[Column]:
        names = [str(name) for name in self.shown if name not in self.same]
        numbers = {name: _numbers(self.shown[name]) for name in names}
        measured = [name for name in names if numbers[name] and name not in CHOICES]
        rates = [name for name in measured if name.endswith(RATE)]
        main = next((name for name in (*rates, *measured) if name.endswith((RATE, *UNITS))), next(iter(measured), None))
        return [Column(name, numbers[name], name in CHOICES or not numbers[name], name == main) for name in names]

    def body(self, most: int, named: bool = False) -> Markup:
        """The rows, or the first `most`, with the columns' names at each cell where they are `named`. Not in the
        template, which takes ten times as long for 100,000 cells."""
        opened = ['<td class="number{}">' if column.number else '<td class="{}">' for column in self.columns]
        names = [column.name for column in self.columns]
        if named:
            opened = [f'{cell[:-1]} data-name="{html.escape(name)}">' for cell, name in zip(opened, names, strict=True)]
        lines = []
        for place, row in enumerate(self.shown[names].head(most).to_numpy().tolist()):
            bold = [(place, name) in self.best for name in names]
            cells = list(map(_cell, opened, row, bold))
            cells[0] = cells[0].replace("_", "_<wbr>")  # a long name may break there
            if self.links and self.links[place]:
                start = cells[0].index(">") + 1
                link = f'<a href="{html.escape(self.links[place])}">{cells[0][start:-5]}</a></td>'
                cells[0] = cells[0][:start] + link
            lines.append(f"<tr>{''.join(cells)}</tr>")
        return Markup("\n".join(lines))


CHOICES = {"N", "K", "B", "P", "budget", "threads per rank"}
UNITS = (", ms", "µs", "measured")
RATE = " per s"  # what says more than the time of a step whose batch is the result
JUDGED = ("pass", "met", "missed")


def _numbers(column: pd.Series) -> bool:
    """Do most of the cells that say something begin with a number?"""
    told = column[column != ""].astype(str)
    return len(told) > 0 and bool(told.str.match(r"-?\d[\d.]*(e[-+]\d+)?(\s|×|%|$)").mean() > 0.9)


def _cell(opened: str, text: str, bold: bool) -> str:
    kind = " pass" if text in ("pass", "met") else " fail" if text == "missed" or text.startswith("FAIL") else ""
    return f"{opened.format(kind + ' best' * bold)}{html.escape(text)}</td>"
