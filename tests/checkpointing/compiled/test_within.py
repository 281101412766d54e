"""What is left of a budget for code that adds the more, the less its plan may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing.compiled.decisions.within import margin_of

MIB = 2**20


@pytest.mark.parametrize("excesses", [[], [484 * MIB], [0, 137 * MIB]])
def test_nothing_is_left_before_two_corrections(excesses: list[int]) -> None:
    assert margin_of(excesses) == 0


@given(st.integers(1, 2**34), st.floats(0.0, 0.4))
def test_code_that_adds_a_part_of_each_correction_fits_after_the_second(first: int, part: float) -> None:
    """Each byte that a plan takes less, its code adds `part` more."""
    second = int(first * part)
    less = first + second + margin_of([first, second])  # than the first plan
    assert first + part * less <= less + 2  # of rounding


def test_the_margin_is_bounded_where_corrections_do_not_get_smaller() -> None:
    assert margin_of([MIB, MIB]) == margin_of([MIB, 2 * MIB]) / 2 == 4 * MIB
