"""Arithmetic of half-open intervals [start, end) in whole nanoseconds.

    compute, communication = union(compute_kernels), union(nccl_kernels)
    exposed = length(subtract(communication, compute))

A set of intervals is an int64 array (n, 2). `union` makes it canonical: sorted, disjoint, not touching, none empty;
every other function takes and returns canonical sets.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

EMPTY = np.empty((0, 2), dtype=np.int64)


def union(intervals: Iterable[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """The canonical set of what any of `intervals` covers. Intervals that end where they start cover nothing.

    Raises ValueError for an interval that ends before it starts.
    """
    table = np.asarray(intervals if isinstance(intervals, np.ndarray) else list(intervals), dtype=np.int64)
    table = table.reshape(-1, 2)
    if (table[:, 1] < table[:, 0]).any():
        start, end = table[table[:, 1] < table[:, 0]][0]
        raise ValueError(f"interval [{start}, {end}) ends before it starts")
    table = table[table[:, 1] > table[:, 0]]
    if not len(table):
        return EMPTY
    table = table[np.argsort(table[:, 0], kind="stable")]
    reached = np.maximum.accumulate(table[:, 1])
    first = np.concatenate([[True], table[1:, 0] > reached[:-1]])  # of each group of intervals that touch
    last = np.concatenate([first[1:], [True]])
    return np.stack([table[first, 0], reached[last]], axis=1)


def length(intervals: np.ndarray) -> int:
    """Nanoseconds that a canonical set covers."""
    return int((intervals[:, 1] - intervals[:, 0]).sum())


def intersect(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What both cover."""
    if not len(a) or not len(b):
        return EMPTY
    # Of each interval of a, the intervals of b from `low` to `high` overlap it.
    low = np.searchsorted(b[:, 1], a[:, 0], side="right")
    high = np.searchsorted(b[:, 0], a[:, 1], side="left")
    counts = high - low
    of_a = np.repeat(np.arange(len(a)), counts)
    of_b = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
    return np.stack([np.maximum(a[of_a, 0], b[of_b, 0]), np.minimum(a[of_a, 1], b[of_b, 1])], axis=1)


def subtract(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What `a` covers and `b` does not: of communication and compute, the exposed communication."""
    if not len(a) or not len(b):
        return a
    borders = np.concatenate([[a[0, 0]], b.ravel(), [a[-1, 1]]])
    gaps = borders.reshape(-1, 2)
    return intersect(a, gaps[gaps[:, 1] > gaps[:, 0]])


def clip(intervals: np.ndarray, start: int, end: int) -> np.ndarray:
    """The part of a set within [start, end)."""
    return intersect(intervals, np.array([[start, end]], dtype=np.int64)) if end > start else EMPTY


def concurrency(intervals: Iterable[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Of (start, end, weight): the times at which the weight in flight changes, and the weight from each on.

    The last weight is 0. An interval that ends where it starts is in flight for no time.
    """
    table = np.asarray(list(intervals), dtype=np.int64).reshape(-1, 3)
    times = np.concatenate([table[:, 0], table[:, 1]])
    changes = np.concatenate([table[:, 2], -table[:, 2]])
    moments, place = np.unique(times, return_inverse=True)
    weights = np.zeros(len(moments), dtype=np.int64)
    np.add.at(weights, place, changes)
    return moments, np.cumsum(weights)
