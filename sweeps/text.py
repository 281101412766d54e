"""Numbers, sizes, times and counts as people write them. Shared by the report, the launchers and the status."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def clock(seconds: float) -> str:
    """90 -> 1:30, 7200 -> 2:00:00"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shown(path: str | PathLike[str]) -> str:
    """Relative where that is shorter to type: below the current folder."""
    absolute = Path(path).resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def any_terminal() -> None:
    """Print `?` where the terminal's encoding lacks a character: a report is not lost to a `×`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def ranks(world_size: int) -> str:
    return "1 rank" if world_size == 1 else f"{world_size} ranks"


def markdown(shown: pd.DataFrame) -> str:
    """A GitHub-flavoured table."""
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def number(value: float) -> str:
    """Three significant digits, never an exponent: 0.0123, 1.23, 123, 1234."""
    if _missing(value):
        return ""
    if value == 0:
        return "0"
    digits = 2
    size = abs(value)
    while size < 1 and digits < 6:
        size, digits = size * 10, digits + 1
    while size >= 10 and digits > 0:
        size, digits = size / 10, digits - 1
    return f"{value:.{digits}f}"


def byte_size(size: int) -> str:
    """131072 -> `128 KiB`, 1600000 -> `1.53 MiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size // unit if size % unit == 0 else number(size / unit)} {name}"
    return f"{size} B"


def mebibytes(size: float) -> str:
    return number(size / 2**20)


def times(value: float) -> str:
    return "" if _missing(value) else f"{value:.2f}×"


def signed(fraction: float) -> str:
    """`+1.25%`; nothing of a missing number."""
    return "" if _missing(fraction) else f"{fraction:+.2%}"


def span(low: float, high: float) -> str:
    """`0 to 11% slower`, `4 to 34% faster`, `3% faster to 5% slower`: what a range of ratios of times means."""
    first, last = round(100 * (low - 1)), round(100 * (high - 1))
    if first >= 0:
        return f"{first} to {last}% slower" if first != last else f"{first}% slower"
    if last <= 0:
        return f"{-last} to {-first}% faster" if first != last else f"{-first}% faster"
    return f"{-first}% faster to {last}% slower"


def bounds(table: pd.DataFrame, low: str, high: str) -> list[str]:
    """`1.02 – 1.31`, empty where there is no interval."""
    return ["" if _missing(a) else f"{number(a)} – {number(b)}" for a, b in zip(table[low], table[high], strict=True)]


def percent(fractions: pd.Series, of: pd.Series | None = None) -> list[str]:
    names = of if of is not None else [""] * len(fractions)
    return [_fraction(f, name).rstrip() for f, name in zip(fractions, names, strict=True)]


def errors(found: pd.Series, limits: pd.Series | None = None) -> list[str]:
    """`1.66e-03 (1.99e-03)`, or without the limit."""
    if limits is None:
        return ["" if _missing(e) else f"{e:.2e}" for e in found]
    return [_error(e, limit) for e, limit in zip(found, limits, strict=True)]


def _missing(value: Any) -> bool:
    import pandas as pd  # half a second, which what launches jobs does not pay

    return bool(pd.isna(value))


def _fraction(fraction: float, bound: object) -> str:
    percent = 100 * fraction
    return "" if _missing(fraction) else f"{percent:.{0 if percent >= 9.95 else 1}f} % {bound}"


def _error(error: float, limit: float) -> str:
    return "" if _missing(error) else f"{error:.2e} ({limit:.2e})"


def check(passed: float, failed: object) -> str:
    return "" if _missing(passed) else "pass" if passed else f"FAIL {failed}"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
