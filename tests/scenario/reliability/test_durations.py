"""Durations: constants and lognormal times, what they mean, and that they are read back as written."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.scenario.reliability.durations import MAX_SIGMA, NONE, LogNormal, add, read_duration, write_duration

TIMES = st.builds(LogNormal, st.floats(0, 1e9), st.floats(0, MAX_SIGMA))


def test_the_olmo_recovery_has_a_heavy_tail() -> None:
    """Median 3.7 min, mean 38.9 min: sigma = sqrt(2 ln(38.9/3.7)) = sqrt(2 · 2.3527) = 2.169."""
    time = read_duration({"median": "3.7 min", "mean": "38.9 min"})
    assert time.median == pytest.approx(222.0)
    assert time.sigma == pytest.approx(2.169, abs=5e-4)
    assert time.mean == pytest.approx(2334.0)


def test_two_of_three_say_it_all() -> None:
    """Any two of median, mean and sigma give the same time; a constant has no sigma."""
    by_median = read_duration({"median": "2 h", "sigma": 1})
    assert by_median == LogNormal(7200.0, 1.0)
    assert read_duration({"mean": f"{7200 * math.exp(0.5)} s", "sigma": 1}).median == pytest.approx(7200.0)
    assert read_duration("10 min") == LogNormal(600.0)
    assert read_duration({"median": "1 h", "mean": "1 h"}) == LogNormal(3600.0)


def test_mean_and_variance_are_those_of_draws() -> None:
    """Oracle: a million draws with numpy."""
    time = LogNormal(100.0, 0.6)
    drawn = np.random.default_rng(1).lognormal(math.log(time.median), time.sigma, 1_000_000)
    assert time.mean == pytest.approx(drawn.mean(), rel=0.003)
    assert time.variance == pytest.approx(drawn.var(), rel=0.02)


def test_a_sum_has_the_mean_and_variance_of_its_parts() -> None:
    """Constants add up; with one lognormal part the rest shifts its mean but not its variance."""
    assert add(LogNormal(60.0), LogNormal(30.0), NONE) == LogNormal(90.0)
    assert add(LogNormal(60.0, 2.0), NONE) == LogNormal(60.0, 2.0)
    assert add() == NONE
    total = add(LogNormal(60.0, 1.0), LogNormal(100.0))
    assert total.mean == pytest.approx(60 * math.exp(0.5) + 100)
    assert total.variance == pytest.approx(LogNormal(60.0, 1.0).variance)


@given(st.lists(st.builds(LogNormal, st.floats(1e-3, 1e6), st.floats(0, 2)), max_size=4))
def test_a_sum_keeps_moments_whatever_its_parts(parts: list[LogNormal]) -> None:
    """Law: means and variances of independent times add up."""
    total = add(*parts)
    assert total.mean == pytest.approx(math.fsum(part.mean for part in parts))
    assert total.variance == pytest.approx(math.fsum(part.variance for part in parts), rel=1e-6)


@given(TIMES)
def test_any_time_survives_printing(time: LogNormal) -> None:
    """What is written is read back as the same floats."""
    assert read_duration(write_duration(time)) == time


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (30, "30 has no unit"),
        ("-3 min", "not negative"),
        (None, "None has no unit"),
        ({"median": "3 min"}, "two of median, mean and sigma, and here is median"),
        ({}, "here is nothing"),
        ({"median": "3 min", "mean": "5 min", "sigma": 1}, "here is mean and median and sigma"),
        ({"median": "3 min", "mode": "2 min"}, "unknown key 'mode'"),
        ({"median": "3 min", "mean": "2 min"}, "swap them"),
        ({"median": "0 s", "mean": "2 min"}, "neither is zero"),
        ({"median": "3 min", "sigma": -1}, "sigma -1 must be a number from 0"),
        ({"median": "3 min", "sigma": "1"}, "sigma '1' must be a number"),
        ({"median": "3 min", "sigma": True}, "sigma True must be a number"),
        ({"median": "3 min", "sigma": 7}, "to 6"),
        ({"median": "3 min", "sigma": float("nan")}, "sigma nan"),
        ({"median": 3, "sigma": 1}, "3 has no unit"),
    ],
)
def test_other_durations_are_refused(value: object, message: str) -> None:
    """Each names the value and the forms that there are."""
    with pytest.raises(ValueError, match=message):
        read_duration(value)
