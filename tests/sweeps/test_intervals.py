from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from sweeps.report.tables.intervals import MIN_REPEATS, interval, intervals, ratio_intervals


def test_the_interval_is_the_bootstrap_distributions_by_enumeration():
    """All 5⁵ resamples of five values, each as likely."""
    values = (3.0, 1.0, 4.0, 1.5, 9.0)
    medians = np.median(np.array(list(itertools.product(values, repeat=5))), axis=1)
    exact = np.quantile(medians, (0.025, 0.975))
    assert interval(values) == pytest.approx(tuple(exact))


def test_an_interval_of_seven_is_narrower_than_their_range():
    values = [float(v) for v in range(1, 8)]
    medians = np.median(np.array(list(itertools.product(values, repeat=7))), axis=1)
    assert interval(values) == pytest.approx(tuple(np.quantile(medians, (0.025, 0.975))))
    assert interval(values) == (2.0, 6.0)


@pytest.mark.parametrize("n", [5, 6, 9])
def test_ninety_five_percent_intervals_cover_a_true_ratio_about_that_often(n):
    random = np.random.default_rng(0)
    above, below = np.exp(random.normal(math.log(1.3), 0.05, (2000, n))), np.exp(random.normal(0, 0.1, (2000, n)))
    found = ratio_intervals(above.tolist(), below.tolist())
    covered = ((found[:, 0] <= 1.3) & (found[:, 1] >= 1.3)).mean()
    assert 0.90 <= covered <= 0.995


def test_there_is_no_interval_of_too_few():
    few, enough = [1.0] * (MIN_REPEATS - 1), [1.0] * MIN_REPEATS
    assert np.isnan(intervals([few, enough])).tolist() == [[True, True], [False, False]]
    assert np.isnan(ratio_intervals([few, enough, enough], [enough, few, enough])[:, 0]).tolist() == [True, True, False]


def test_one_wild_repeat_among_nine_does_not_set_the_interval():
    low, high = interval([1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 50.0])
    assert low >= 1.0
    assert high < 1.1


def test_intervals_that_must_hold_together_are_wider_and_never_than_the_range():
    above, below = [[1.0, 1.1, 1.2, 1.3, 1.4]], [[2.0, 2.1, 2.2, 2.3, 2.4]]
    alone, together = ratio_intervals(above, below)[0], ratio_intervals(above, below, together=20)[0]
    assert together[0] < alone[0] < alone[1] < together[1]
    assert together[0] >= 1.0 / 2.4
    assert together[1] <= 1.4 / 2.0


@pytest.mark.parametrize("n", [5, 9, 20])
def test_intervals_are_those_of_scipys_percentile_bootstrap(n):
    random = np.random.default_rng(n)
    above, below = np.exp(random.normal(0.2, 0.1, n)), np.exp(random.normal(0, 0.1, n))
    same = {
        "method": "percentile",
        "n_resamples": 20_000,
        "rng": 0,
    }  # ten times ours: the reference's own noise is small
    one = bootstrap((above,), np.median, **same).confidence_interval
    assert interval(above.tolist()) == pytest.approx(one, rel=0.005)

    def ratio(top, bottom, axis):
        return np.median(top, axis=axis) / np.median(bottom, axis=axis)

    both = bootstrap((above, below), ratio, **same).confidence_interval
    assert ratio_intervals([above.tolist()], [below.tolist()])[0] == pytest.approx(both, rel=0.01)
