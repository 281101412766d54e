"""The rows of long tables, which report.js shows: 100,000 cells as HTML are megabytes.

long = LongTables()
place = long.add(table)      # of its rows among those of the page; None: short, and whole as HTML
long.packed                  # base64 of zlib of JSON: {"folders": [address], "tables": [{columns, links, best}]}

A column is {"values": [text]}, or with few different texts {"values", "places"}: of each row where its text is. A link
is a place among the folders, which the tables of a page share; -1: none.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pandas as pd

from sweeps.report.page.page_table import PageTable

LONG = 1000  # rows; a table up to here needs no script to be complete
FIRST = 200  # rows of a longer one that are there without the script


class LongTables:
    """Collects the rows of one page."""

    def __init__(self) -> None:
        self.tables: list[dict[str, Any]] = []
        self.folders: dict[str, int] = {}

    def add(self, table: PageTable) -> int | None:
        if len(table.shown) <= LONG:
            return None
        names = [column.name for column in table.columns]
        best = {name: sorted(place for place, bold in table.best if bold == name) for name in names}
        packed = {
            "columns": [_column(table.shown[name]) for name in names],
            "links": [self.folders.setdefault(link, len(self.folders)) if link else -1 for link in table.links],
            "best": [best[name] for name in names],
        }
        self.tables.append(packed)
        return len(self.tables) - 1

    @property
    def packed(self) -> str:
        """Empty where no table is long."""
        if not self.tables:
            return ""
        content = {"folders": list(self.folders), "tables": self.tables}
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _column(text: pd.Series) -> dict[str, list[Any]]:
    places, values = pd.factorize(text)
    if len(values) > len(text) / 2:
        return {"values": text.tolist()}
    return {"values": list(values), "places": places.tolist()}
