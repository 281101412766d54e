"""report.html: one file that needs no other, with every figure and its data inside it.

page(Content(...)) -> str
"""

from __future__ import annotations

import base64
import hashlib
import html
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from sweeps.report.page.dark_mode import with_dark_mode
from sweeps.report.tables.verdicts import Verdict


@dataclass(frozen=True)
class DrawnFigure:
    """A figure as it lies in the report's folder."""

    name: str
    title: str
    reading: str
    svg: Path
    data: Path  # CSV

    @property
    def data_uri(self) -> str:
        svg = with_dark_mode(self.svg.read_text(encoding="utf-8")).encode()
        return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()

    @property
    def csv_uri(self) -> str:
        return "data:text/csv;base64," + base64.b64encode(self.data.read_bytes()).decode()


@dataclass(frozen=True)
class PageTable:
    """A table on the page; sorted and filtered by report.js."""

    name: str
    title: str
    note: str
    shown: pd.DataFrame  # text
    files: tuple[str, ...] = ()  # beside the page

    @cached_property
    def columns(self) -> list[tuple[str, bool, bool]]:
        """Each column's name, is it of numbers, and may one choose among its values?"""
        numbers = {name: _numbers(self.shown[name]) for name in self.shown}
        return [(str(name), numbers[name], name in CHOICES or not numbers[name]) for name in self.shown]

    @property
    def body(self) -> Markup:
        """The rows. Not in the template, which takes ten times as long for a hundred thousand cells."""
        opened = ['<td class="number{}">' if number else '<td class="{}">' for _, number, _ in self.columns]
        rows = self.shown.to_numpy().tolist()
        return Markup("\n".join(f"<tr>{''.join(map(_cell, opened, row))}</tr>" for row in rows))


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


CHOICES = {"N", "K", "B", "P", "budget", "threads per rank"}


def _numbers(column: pd.Series) -> bool:
    """Do most of the cells that say something begin with a number?"""
    told = column[column != ""].astype(str)
    return len(told) > 0 and bool(told.str.match(r"-?\d[\d.]*(e[-+]\d+)?(\s|×|%|$)").mean() > 0.9)


def _cell(opened: str, text: str) -> str:
    kind = " pass" if text in ("pass", "met") else " fail" if text == "missed" or text.startswith("FAIL") else ""
    return f"{opened.format(kind)}{html.escape(text)}</td>"


def _resource(name: str) -> str:
    return files("sweeps.report.page").joinpath(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
