"""report.html: one file that needs no other, with every figure inside it.

page(Content(...)) -> str
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Picture:
    """A figure as it lies in the report's folder."""

    name: str
    title: str
    reading: str
    svg: Path

    @property
    def data_uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.read_bytes()).decode()


@dataclass(frozen=True)
class Content:
    """What the page says. Nothing here is markup: the template escapes it all."""

    title: str
    when: str
    machines: dict[str, str]
    counts: dict[str, int]
    shown: pd.DataFrame  # from readable()
    profiles: pd.DataFrame  # from profile_table()
    traces: pd.DataFrame  # from trace_table()
    sizes: list[tuple[int, ...]]  # of each row, so that a rule separates them
    fastest: list[bool]  # of each row: the fastest of its size
    the_same: dict[str, str]
    above_one: bool  # a fraction of the roofline above 1
    resident: bool  # memory peaks are resident sets of CPU ranks
    pictures: list[Picture]
    broken: list[dict[str, str]]  # label, status, reason, folder
    running: list[dict[str, str]]
    unsupported: list[tuple[str, int]]
    command: str


def page(content: Content) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("sweeps").joinpath("report.html").read_text(encoding="utf-8"))
    rows = list(zip(content.shown.to_numpy().tolist(), content.sizes, content.fastest, strict=True))
    return template.render(
        **{field: getattr(content, field) for field in content.__dataclass_fields__},
        columns=[(name, name not in LEFT) for name in content.shown.columns],
        profile_columns=list(content.profiles.columns),
        profile_rows=content.profiles.to_numpy().tolist(),
        trace_columns=list(content.traces.columns),
        trace_rows=content.traces.to_numpy().tolist(),
        rows=[(cells, fast, i > 0 and size != rows[i - 1][1]) for i, (cells, size, fast) in enumerate(rows)],
    )


LEFT = {
    "method",
    "kernel",
    "mask",
    "options",
    "workload",
    "dtype",
    "device",
    "backend",
    "timing",
    "optimizer",
    "loss",
    "check",
}
