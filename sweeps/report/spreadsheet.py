"""CSV files that people open in a spreadsheet: what a run calls itself must not become a formula there."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """CSV whose text a spreadsheet takes for text: what begins like a formula gets an apostrophe in front."""
    texts = [str(name) for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    table.assign(**{name: table[name].map(_no_formula) for name in texts}).to_csv(path, index=False)


def _no_formula(value: object) -> object:
    if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@", "\t", "\r") or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


# Written as text: 1.5, -3%, and repeats such as -0.5;0.25
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?(;[-+]?\d+(\.\d+)?(e[-+]?\d+)?)*\s?[%×]?")
