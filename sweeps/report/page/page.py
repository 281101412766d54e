"""report.html: one file that needs no other, with every figure and its data inside it.

page(Content(...)) -> str
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import pandas as pd
from markupsafe import Markup

from sweeps.report.page.dark_mode import compact, with_dark_mode
from sweeps.report.tables.verdicts import Verdict


@dataclass(frozen=True)
class DrawnFigure:
    """A figure as it lies in the report's folder."""

    name: str
    title: str
    reading: str
    svg: Path
    data: Path  # CSV
    message: str = ""  # what it shows, for those who can't see it

    @property
    def alt(self) -> str:
        return f"{self.title}. {self.message or self.reading}"

    @property
    def data_uri(self) -> str:
        svg = with_dark_mode(compact(self.svg.read_text(encoding="utf-8"))).encode()
        return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()

    @property
    def csv_uri(self) -> str:
        """In the page itself unless it is long; then the file beside the page."""
        if self.data.stat().st_size > LONG_CSV:
            return "/".join(self.data.parts[-2:]) if self.data.parent.name == "figures" else self.data.name
        return "data:text/csv;base64," + base64.b64encode(self.data.read_bytes()).decode()


class RunFigure(Protocol):
    """A picture that a run drew."""

    @property
    def title(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def data_uri(self) -> str: ...


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
        main = next((name for name in measured if name.endswith(UNITS)), next(iter(measured), None))
        return [Column(name, numbers[name], name in CHOICES or not numbers[name], name == main) for name in names]

    @property
    def body(self) -> Markup:
        """The rows. Not in the template, which takes ten times as long for a hundred thousand cells."""
        opened = ['<td class="number{}">' if column.number else '<td class="{}">' for column in self.columns]
        names = [column.name for column in self.columns]
        lines = []
        for place, row in enumerate(self.shown[names].to_numpy().tolist()):
            bold = [(place, name) in self.best for name in names]
            cells = list(map(_cell, opened, row, bold))
            cells[0] = cells[0].replace("_", "_<wbr>")  # a long name may break there
            if self.links and self.links[place]:
                start = cells[0].index(">") + 1
                link = f'<a href="{html.escape(self.links[place])}">{cells[0][start:-5]}</a></td>'
                cells[0] = cells[0][:start] + link
            lines.append(f"<tr>{''.join(cells)}</tr>")
        return Markup("\n".join(lines))


@dataclass(frozen=True)
class Content:
    """What the page says. Nothing here is markup: the template escapes it all."""

    title: str
    experiments: str
    when: str
    machines: dict[str, str]
    environments: list[dict[str, str]]
    counts: dict[str, int]
    findings: list[tuple[str, PageTable]]  # a sentence, and the numbers behind it
    verdicts: list[tuple[Verdict, PageTable | None]]
    the_same: dict[str, str]
    whole_table: bool  # is there a table.csv?
    tables: list[PageTable]
    figures: list[DrawnFigure]
    run_figures: Sequence[RunFigure]
    problems: list[str]  # what could not be shown, and why
    broken: PageTable | None
    running: list[dict[str, str]]
    unsupported: list[tuple[str, int]]
    command: str


def page(content: Content) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource("report.html"))
    script = _resource("report.js")
    return template.render(
        **{field: getattr(content, field) for field in content.__dataclass_fields__},
        style=_resource("report.css"),
        script=script,
        # What a run wrote can't run here even if it were markup, and nothing is fetched from anywhere.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_sha256(script)}'",
    )


LONG_CSV = 100_000  # bytes
CHOICES = {"N", "K", "B", "P", "budget", "threads per rank"}
UNITS = (", ms", "µs", "measured")
JUDGED = ("pass", "met", "missed")


def _numbers(column: pd.Series) -> bool:
    """Do most of the cells that say something begin with a number?"""
    told = column[column != ""].astype(str)
    return len(told) > 0 and bool(told.str.match(r"-?\d[\d.]*(e[-+]\d+)?(\s|×|%|$)").mean() > 0.9)


def _cell(opened: str, text: str, bold: bool) -> str:
    kind = " pass" if text in ("pass", "met") else " fail" if text == "missed" or text.startswith("FAIL") else ""
    return f"{opened.format(kind + ' best' * bold)}{html.escape(text)}</td>"


def _resource(name: str) -> str:
    return files("sweeps.report.page").joinpath(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
