"""Bootstrap intervals against the binomial distribution."""

import math

import numpy as np
import pytest

from ssjax.metrics.bootstrap import interval


def share(count):
    return lambda sums: 100 * sums[0] / count


def test_interval_of_a_share():
    """120 of 400: the mean of 400 draws has a standard error of sqrt(0.3 * 0.7 / 400)."""
    statistics = np.repeat([1.0, 0.0], [120, 280])[:, None]
    low, high = interval(statistics, share(400))
    error = 100 * 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert (low, high) == pytest.approx((30 - error, 30 + error), abs=0.5)
    assert interval(statistics, share(400)) == (low, high)  # the same every time


def test_records_that_agree_leave_no_doubt():
    assert interval(np.ones((7, 1)), share(7)) == pytest.approx((100, 100))


def test_two_tables_are_drawn_alike():
    """The interval of a figure and of its negative mirror each other only over equal draws."""
    values = np.random.default_rng(1).normal(size=(50, 1))
    low, high = interval(values, lambda sums: sums[0])
    assert interval(-values, lambda sums: sums[0]) == pytest.approx((-high, -low))


def test_one_record_is_its_own_interval():
    assert interval(np.array([[3.0]]), share(4)) == (75, 75)
