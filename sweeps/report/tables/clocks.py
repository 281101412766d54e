"""What GPUs ran at while something was timed, as columns of tables, and which times were taken at a clock held down.

table = table.join(clock_columns(records))      # COLUMNS
shown = shown.join(as_text(table))              # SM clock, power, temperature; "clock held down by"

A power cap is usual in large matmuls. A slowdown, by heat or by the hardware, is a fault of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sweeps.text import counted

NUMBERS = ("sm_mhz", "memory_mhz", "power_w", "temperature_c")
SHARES = ("power_cap", "slowdown")  # of the samples
THROTTLED = "throttled"  # what held the clock down, in words; "": nothing; None: not known
COLUMNS = (*NUMBERS, *SHARES, THROTTLED)
MARKED = (*SHARES, THROTTLED)  # what figures select
POWER_CAP = "power cap"
CAPPED_MARK, SLOWED_MARK = "†", "‡"
MARKS = {CAPPED_MARK: "timed at the power cap", SLOWED_MARK: "timed during a thermal or hardware slowdown"}


def clock_columns(records: pd.DataFrame, field: str = "clocks") -> pd.DataFrame:
    """COLUMNS of `records`, as `load_runs` gives them; empty where a record doesn't say."""
    found = pd.DataFrame(index=records.index)
    for name in (*NUMBERS, *SHARES):
        column = f"{field}.{name}"
        given = records[column] if column in records else pd.Series(float("nan"), index=records.index)
        found[name] = pd.to_numeric(given).astype(float)
    words = f"{field}.{THROTTLED}"
    given = records[words] if words in records else pd.Series(None, index=records.index, dtype=object)
    found[THROTTLED] = given.astype(object).where(given.notna(), None)
    return found


def over_repeats(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Of each group the median numbers, the largest shares and all that held a clock down; the keys are its index."""
    groups = rows.groupby(list(keys), dropna=False, sort=False)
    found = groups[list(NUMBERS)].median().join(groups[list(SHARES)].max())
    return found.assign(**{THROTTLED: groups[THROTTLED].agg(together)})


def together(words: pd.Series) -> str | None:
    said = [text for text in words if isinstance(text, str)]
    return ", ".join(dict.fromkeys(part for text in said for part in text.split(", ") if part)) if said else None


def mark(power_cap: Any, slowdown: Any) -> str:
    """One of MARKS, or nothing."""
    return SLOWED_MARK if slowdown > 0 else CAPPED_MARK if power_cap > 0 else ""


def marks_of(table: pd.DataFrame) -> list[str]:
    """`† timed at the power cap`, of the marks that the rows have."""
    seen = {mark(*pair) for pair in table[list(SHARES)].to_numpy()}
    return [f"{sign} {text}" for sign, text in MARKS.items() if sign in seen]


def as_text(table: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    """The columns for people."""
    units = {"sm_mhz": "SM, MHz", "memory_mhz": "memory, MHz", "power_w": "W", "temperature_c": "°C"}
    shown = {
        title: table[prefix + name].map(lambda value: "" if pd.isna(value) else f"{value:.0f}")
        for name, title in units.items()
    }
    each = zip(*(table[prefix + name] for name in (THROTTLED, *SHARES)), strict=True)
    return pd.DataFrame({**shown, "clock held down by": [_held_down(*row) for row in each]}, index=table.index)


def _held_down(words: str | None, power_cap: float, slowdown: float) -> str:
    """`power cap (60% of samples), thermal slowdown (20%)`"""
    if not isinstance(words, str):
        return ""
    others = ", ".join(part for part in words.split(", ") if part and part != POWER_CAP)
    parts = [f"{POWER_CAP} ({100 * power_cap:.0f}%)"] if POWER_CAP in words.split(", ") else []
    return ", ".join([*parts, *([f"{others} ({100 * slowdown:.0f}%)"] if others else [])]) or "nothing"


def remark(table: pd.DataFrame, prefix: str = "") -> str:
    """` While timing the power cap held the clock down in 3 of 40 rows, ...`; "" where nothing did or is known."""
    known = table[[isinstance(words, str) for words in table[prefix + THROTTLED]]]
    slowed = int(known[f"{prefix}slowdown"].gt(0).sum())
    capped = int((known[f"{prefix}power_cap"].gt(0) & known[f"{prefix}slowdown"].le(0)).sum())
    said = [f"the power cap in {capped}"] * bool(capped)
    said += [f"a thermal or hardware slowdown in {slowed}"] * bool(slowed)
    if not said:
        return ""
    return f" While timing, the clock was held down by {' and by '.join(said)} of {counted(len(table), 'row')}."


def remark_of_any(selected: pd.DataFrame) -> str:
    """`remark`, by whichever of the columns a figure's selection has."""
    prefixes = [name.removesuffix(THROTTLED) for name in map(str, selected) if name.endswith(THROTTLED)]
    return next((said for prefix in prefixes if (said := remark(selected, prefix))), "")
