"""What a finding is, and the words that findings share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Finding:
    name: str  # of its table on the page
    sentence: str
    numbers: pd.DataFrame  # text, a few rows


def mean_ratio(ratios: pd.Series) -> float:
    """The geometric mean."""
    return float(np.exp(np.log(ratios.astype(float)).mean()))


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def sentence(text: str) -> str:
    """Begins with a capital, unless its first word is the name of a method."""
    if "_" in text.split(maxsplit=1)[0]:
        return f"{text}."
    return f"{text[:1].upper()}{text[1:]}."


def share_span(shares: pd.Series) -> str:
    """`9 to 12%`, or `9%`."""
    low, high = f"{100 * shares.min():.0f}", f"{100 * shares.max():.0f}"
    return f"{low}%" if low == high else f"{low} to {high}%"
