"""Interval arithmetic against brute force: one cell of an array for every nanosecond."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.traces.intervals import clip, concurrency, intersect, length, subtract, union

END = 60
intervals = st.lists(
    st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda pair: (min(pair), max(pair))), max_size=12
)


def cells(found: list[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """Which nanoseconds of [0, END) are covered."""
    covered = np.zeros(END, dtype=bool)
    for start, end in found:
        covered[start:end] = True
    return covered


def is_canonical(found: np.ndarray) -> bool:
    return bool((found[:, 0] < found[:, 1]).all() and (found[1:, 0] > found[:-1, 1]).all())


@given(intervals)
def test_union_covers_what_any_interval_covers(a: list[tuple[int, int]]) -> None:
    found = union(a)
    assert is_canonical(found)
    assert (cells(found) == cells(a)).all()
    assert length(found) == cells(a).sum()  # busy time


@given(intervals, intervals)
def test_overlap_and_exposed_time(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    both, only_a = intersect(union(a), union(b)), subtract(union(a), union(b))
    assert (cells(both) == (cells(a) & cells(b))).all()
    assert (cells(only_a) == (cells(a) & ~cells(b))).all()
    assert is_canonical(only_a)
    assert length(both) + length(only_a) == length(union(a))


@given(intervals, st.integers(0, END), st.integers(0, END))
def test_clip_keeps_what_lies_in_the_window(a: list[tuple[int, int]], start: int, end: int) -> None:
    expected = cells(a)
    expected[:start] = False
    expected[end:] = False
    assert (cells(clip(union(a), start, end)) == expected).all()


@given(st.lists(st.tuples(st.integers(0, END), st.integers(1, 9), st.integers(0, 99)), min_size=1, max_size=10))
def test_weight_in_flight_is_the_sum_over_the_intervals_that_run(given: list[tuple[int, int, int]]) -> None:
    moments, weights = concurrency([(start, start + long, weight) for start, long, weight in given])
    for moment in range(END + 10):
        running = sum(weight for start, long, weight in given if start <= moment < start + long)
        place = np.searchsorted(moments, moment, side="right") - 1
        assert (weights[place] if place >= 0 else 0) == running
    assert weights[-1] == 0


def test_an_interval_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[7, 3\) ends before it starts"):
        union([(1, 2), (7, 3)])
