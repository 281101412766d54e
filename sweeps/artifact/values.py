"""A number of a table, and how it is written: pandas' own query and eval pick it, so that claims.yaml says all of it.

numbers(table, value="`block_shock/1100` / dense_tp_row", where="world_size == 2", take="max")
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from sweeps.text import number

Number = float | str | list[Any]


class NoNumber(ValueError):
    """No row is left, or pandas can't make sense of the expression."""


def _only(values: pd.Series) -> Any:
    found = values.unique()
    if len(found) != 1:
        raise NoNumber(f"{len(found)} different values where one is expected")
    return found[0]


TAKES: dict[str, Callable[[pd.Series], Any]] = {
    "only": _only,
    "all": lambda values: values.tolist(),
    "min": lambda values: float(values.min()),
    "max": lambda values: float(values.max()),
    "median": lambda values: float(values.median()),
    "sum": lambda values: float(values.sum()),
    "count": lambda values: len(values),
    "distinct": lambda values: int(values.nunique()),
    "how many": lambda values: int(values.astype(bool).sum()),  # are true
    "share": lambda values: float(values.astype(bool).mean()),  # of them are true
    "geometric mean": lambda values: float(np.exp(np.log(values.astype(float)).mean())),
    "geometric mean - 1": lambda values: float(np.expm1(np.log(values.astype(float)).mean())),
}


def _up(value: float, digits: int) -> float:
    return math.ceil(round(value * 10**digits, 9)) / 10**digits


WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Formats that Python has no letter for.
FORMATS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "d": lambda value: f"{value:.0f}",  # a count; YAML's 2 may be 2.0 here
    "3 digits": number,
    "%": lambda value: f"{round(100 * value)}",  # the sign stands elsewhere: `9 to 12%`
    ".1%": lambda value: f"{100 * value:.1f}",
    ".1% up": lambda value: f"{_up(100 * value, 1):.1f}",  # bounds are rounded up: `at most 1.7%`
    ".2f up": lambda value: f"{_up(value, 2):.2f}",
    ".4f up": lambda value: f"{_up(value, 4):.4f}",
    "word": lambda value: WORDS[int(value)] if 0 <= value < len(WORDS) else f"{value:.0f}",
}


# Whether a number that was measured again is as expected, with a tolerance as a share of the expected one.
COMPARISONS: dict[str, Callable[[float, float, float], bool]] = {
    "about": lambda found, expected, within: abs(found - expected) <= within * abs(expected),
    "at most": lambda found, expected, within: found <= expected * (1 + within),
    "at least": lambda found, expected, within: found >= expected * (1 - within),
}


def rows(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Raises NoNumber where none is left."""
    try:
        chosen = table.query(where) if where and len(table) else table
    except (NameError, KeyError, SyntaxError, TypeError, ValueError, AttributeError) as error:
        raise NoNumber(f"where: {where!r}: {_first_line(error)}") from error
    if chosen.empty:
        raise NoNumber(f"no row where {where}" if where else "no row")
    return chosen


def column(table: pd.DataFrame, expression: str) -> pd.Series:
    """Raises NoNumber for an expression that these columns can't answer."""
    try:
        found = table[expression] if expression in table else table.eval(expression)
    except (NameError, KeyError, SyntaxError, TypeError, ValueError, AttributeError) as error:
        raise NoNumber(f"value: {expression!r}: {_first_line(error)}") from error
    return found if isinstance(found, pd.Series) else pd.Series(found, index=table.index)


def numbers(table: pd.DataFrame, value: str, where: str, take: str) -> Number:
    """What `take` makes of `value` in the rows `where`; rows without a value do not count. Raises NoNumber."""
    found = column(rows(table, where), value).dropna()
    if found.empty:
        raise NoNumber(f"{value}: no row has a value")
    try:
        result = TAKES[take](found)
    except (TypeError, ValueError) as error:
        raise NoNumber(str(error) if isinstance(error, NoNumber) else f"{take} of {value!r}: {error}") from error
    return result.item() if isinstance(result, np.generic) else result


def written(value: Number, show: str) -> str:
    """As pages print it; a row of numbers as the cells of a table. Raises NoNumber for a format that does not fit."""
    if isinstance(value, list):
        return " | ".join(written(one, show) for one in value)
    if isinstance(value, str):
        return value
    try:
        return FORMATS[show](value) if show in FORMATS else format(value, show)
    except (TypeError, ValueError) as error:
        raise NoNumber(f"show={show} does not fit {value!r}: {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
