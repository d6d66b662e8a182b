"""Intervals against tables and against repeated sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.statistics import mean, quantile, quantile_interval, student_quantile


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (29, 2.045), (199, 1.972), (10**6, 1.960)],
)
def test_student_as_in_the_table(freedom: int, t: float) -> None:
    """The two-sided 95 % points of every textbook's table."""
    assert student_quantile(freedom) == pytest.approx(t, rel=1.1e-3)


def test_a_mean_by_hand() -> None:
    """1, 2, 3, 4: mean 2.5, variance 5/3, half-width 3.182 sqrt(5/12)."""
    found = mean([1.0, 2.0, 3.0, 4.0])
    assert found.value == 2.5
    assert found.deviation == pytest.approx(math.sqrt(5 / 3))
    assert found.half_width == pytest.approx(3.182 * math.sqrt(5 / 12), rel=1.1e-3)
    assert mean([7.0]) == (7.0, 0.0, None)
    assert mean([7.0]).interval is None


def test_order_statistics_as_in_the_table() -> None:
    """The median of ten lies between x(2) and x(9), of 100 between x(40) and x(61); five values are too few."""
    ten, hundred = [float(n) for n in range(1, 11)], [float(n) for n in range(1, 101)]
    assert quantile_interval(ten, 0.5) == (2.0, 9.0)
    assert quantile_interval(hundred, 0.5) == (40.0, 61.0)
    assert quantile_interval(ten[:5], 0.5) == (None, None)
    assert quantile_interval(ten, 0.1)[0] is None
    with pytest.raises(ValueError, match="quantile of 1"):
        quantile_interval(ten, 1)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.sampled_from((0.1, 0.5, 0.9)))
def test_quantiles_are_those_of_numpy_and_inside_their_interval(values: list[float], share: float) -> None:
    """Type 7 is numpy's default; the interval is of values of the sample, around the quantile."""
    ordered = sorted(values)
    found = quantile(ordered, share)
    assert found == pytest.approx(float(np.quantile(ordered, share)), rel=1e-9, abs=1e-6)
    lower, upper = quantile_interval(ordered, share)
    assert lower is None or (lower in ordered and lower <= found + 1e-9)
    assert upper is None or (upper in ordered and upper >= found - 1e-9)


def test_intervals_hold_what_they_promise() -> None:
    """Of 1,000 samples of 50 exponentials, 95 % of the intervals hold the mean and at least 95 % the quantiles.

    Standard error of a share of 0.95 over 1,000 samples: 0.7 points. Student's interval is a little short for a skewed
    distribution, that of order statistics rather long.
    """
    generator = np.random.default_rng(5)
    samples = generator.standard_exponential((1000, 50))
    held = {"mean": 0, 0.1: 0, 0.5: 0, 0.9: 0}
    for sample in samples.tolist():
        low, high = mean(sample).interval or (0.0, 0.0)
        held["mean"] += low <= 1.0 <= high
        for share in (0.1, 0.5, 0.9):
            lower, upper = quantile_interval(sorted(sample), share)
            truth = -math.log1p(-share)
            held[share] += (lower is None or lower <= truth) and (upper is None or truth <= upper)
    assert 0.90 < held["mean"] / 1000 < 0.97
    for share in (0.1, 0.5, 0.9):
        assert 0.945 < held[share] / 1000 < 0.995, share
