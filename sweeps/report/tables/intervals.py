"""Bootstrap 95% intervals of a median over repeats, and of a ratio of two such medians.

low, high = interval([1.0, 1.1, 1.05, 1.2, 1.02])
low, high = ratio_intervals([[1.0, 1.1, ...]], [[2.0, 2.1, ...]])     # one row a pair

A repeat is a job, or a block of a job's iterations; iterations of one block follow one another and are none. The
percentile bootstrap (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) of the median of
five repeats is their range, which covers the true median in 1 - 2/2⁵ = 94% of cases; of fewer it would cover less
and be called 95% all the same, so there is none. The ratio's two sides are resampled independently.

scipy.stats.bootstrap gives the same intervals (a test compares them) and takes 25 times as long. Here all rows with the
same number of repeats share their resamples, of which a median needs the two middle order statistics only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

MIN_REPEATS = 5
RESAMPLES = 2000
SAME = 0.02  # of a ratio of times, either way: what one median of the same thing differs from the next
SLOWER, FASTER, EQUAL, OPEN = "slower", "faster", "the same", "undecided"
Values = NDArray[np.float64]
NONE = (float("nan"), float("nan"))


def interval(repeats: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the median; NaN, NaN for fewer than MIN_REPEATS."""
    found = intervals([repeats])
    return float(found[0, 0]), float(found[0, 1])


def intervals(rows: Sequence[Sequence[float]]) -> Values:
    """(rows, 2): the 95% interval of each row's median."""
    return _percentiles(rows, [None] * len(rows), 0.05)


def ratio_intervals(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]], together: int = 1) -> Values:
    """(rows, 2): the 95% interval of median(above) / median(below) of each pair; NaN where either has too few.

    `together`: how many of them must all hold at 95% (Bonferroni: each is then one of 1 - 0.05 / together).
    """
    return _percentiles(above, below, 0.05 / together)


def judged(low: float, high: float) -> str:
    """What the interval of a ratio of times decides: SLOWER, FASTER, EQUAL or OPEN.

    EQUAL comes first: it lies within SAME of 1. That are two one-sided tests (D. Schuirmann, J. Pharmacokinetics and
    Biopharmaceutics 15, 1987), which no overlap of intervals is.
    """
    if low >= 1 - SAME and high <= 1 + SAME:
        return EQUAL
    return SLOWER if low > 1 else FASTER if high < 1 else OPEN  # NaN: OPEN


def _percentiles(above: Sequence[Sequence[float]], below: Sequence[Sequence[float] | None], outside: float) -> Values:
    """Rows with as many repeats on each side are resampled at once; `outside` is the share left out, half a side."""
    found = np.full((len(above), 2), np.nan)
    alike: dict[tuple[int, int], list[int]] = {}
    for row, (top, bottom) in enumerate(zip(above, below, strict=True)):
        sizes = (len(top), MIN_REPEATS if bottom is None else len(bottom))
        if min(sizes) >= MIN_REPEATS:
            alike.setdefault((sizes[0], 0 if bottom is None else sizes[1]), []).append(row)
    for (n, m), rows in alike.items():
        for start in range(0, len(rows), 500):  # 500 rows: 8 MB
            part = rows[start : start + 500]
            medians = _resampled([above[row] for row in part], n, seed=1)
            if m:
                medians = medians / _resampled([below[row] or () for row in part], m, seed=2)
            found[part] = np.quantile(medians, (outside / 2, 1 - outside / 2), axis=1).T
    return found


def _resampled(rows: Sequence[Sequence[float]], n: int, seed: int) -> Values:
    """(rows, RESAMPLES): medians of resampled rows."""
    low, high = _middle(n, seed)
    ordered = np.sort(np.asarray(rows, dtype=np.float64), axis=1)
    return 0.5 * (ordered[:, low] + ordered[:, high])


@cache
def _middle(n: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which order statistics of n values are in the middle of each resample: that is all a median depends on."""
    drawn = np.sort(np.random.default_rng([seed, n]).integers(0, n, size=(RESAMPLES, n)), axis=1)
    return drawn[:, (n - 1) // 2], drawn[:, n // 2]
