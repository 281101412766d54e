"""report.html: one file that needs no other, with every figure and its data inside it.

page(Content(...)) -> str
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from sweeps.report.page.dark_mode import with_dark_mode
from sweeps.report.page.long_tables import FIRST, LongTables
from sweeps.report.page.page_table import PageTable
from sweeps.report.page.short_svg import compact
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
        long=LongTables(),
        first=FIRST,
        style=_resource("report.css"),
        script=script,
        # What a run wrote can't run here even if it were markup, and nothing is fetched from anywhere.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_sha256(script)}'",
    )


LONG_CSV = 100_000  # bytes


def _resource(name: str) -> str:
    return files("sweeps.report.page").joinpath(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
