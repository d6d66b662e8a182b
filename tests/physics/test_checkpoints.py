"""The best interval between saves, and the run time that failures leave."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScenarioError
from simulator.physics.checkpoints import (
    daly,
    daly_run_time,
    linear_ettr,
    mean_downtime,
    renewal,
    renewal_ettr,
    steps_by_rule,
    steps_per_save,
    young,
)
from simulator.scenario.reliability import Interval

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def test_daly_figure_3() -> None:
    """M 24 h, 500 h of work, R 10 min, save 5 min.

    sqrt(2 x 5 x 1440) = 120; sqrt(5/2880) = 0.04167: 120 (1 + 0.01389 + 0.00019) - 5 = 116.7 min, printed as 117;
    1440 e^(10/1440) (e^(121.7/1440) - 1)/116.7 = 1.0958 per hour of work: 547.9 h.
    """
    assert young(5 * MINUTE, DAY) == pytest.approx(120 * MINUTE)
    interval = daly(5 * MINUTE, DAY)
    assert interval / MINUTE == pytest.approx(117, abs=0.5)
    run = daly_run_time(500 * HOUR, interval, 5 * MINUTE, 10 * MINUTE, DAY)
    assert run / HOUR == pytest.approx(547.9, abs=0.05)


def test_daly_figure_5() -> None:
    """M 15 min instead: the optimum is 9.1 min, where Young alone says 12.2; 500 h take 2,504 h."""
    interval = daly(5 * MINUTE, 15 * MINUTE)
    assert interval / MINUTE == pytest.approx(9.1, abs=0.05)
    assert young(5 * MINUTE, 15 * MINUTE) / MINUTE == pytest.approx(12.2, abs=0.05)
    run = daly_run_time(500 * HOUR, interval, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE)
    assert run / HOUR == pytest.approx(2504, abs=0.5)


def test_saves_longer_than_failures_allow_leave_the_mtbf() -> None:
    """From save = 2 M on Daly's interval is M; without failures there is no need to save at all."""
    assert daly(20.0, 10.0) == daly(500.0, 10.0) == 10.0
    assert daly(0.0, math.inf) == young(0.0, math.inf) == math.inf


@given(st.floats(1e-4, 1.0))
def test_daly_is_close_to_the_best_interval(save: float) -> None:
    """No interval beats Daly's by more than 0.02 % while the save is at most the mean time between failures."""
    found = daly_run_time(1.0, daly(save, 1.0), save, 0.1, 1.0)
    best = min(daly_run_time(1.0, daly(save, 1.0) * 1.02**k, save, 0.1, 1.0) for k in range(-40, 41))
    assert best <= found <= best * 1.0002


def test_meta_projections_of_ettr() -> None:
    """arXiv 2410.21680: 2,000 nodes at 6.5 per 1000 node-days, saved hourly, 5 min to restart.

    M = 86,400/13 = 6,646 s: linear 1 - (300 + 1,800)/6,646 = 0.684, which Meta prints as 0.7; the exact form is
    [3,600/(e^0.5417 - 1)]/(6,646 + 300) = 0.721. 1,000 nodes, half-hourly, 6 min: 0.905, printed as 0.9.
    """
    assert linear_ettr(HOUR, 0.0, 5 * MINUTE, DAY / 13) == pytest.approx(0.684, abs=5e-4)
    assert renewal_ettr(HOUR, 0.0, 5 * MINUTE, DAY / 13) == pytest.approx(0.721, abs=5e-4)
    assert linear_ettr(HOUR / 2, 0.0, 6 * MINUTE, DAY / 6.5) == pytest.approx(0.905, abs=5e-4)


@given(st.floats(1e-4, 1e-2), st.floats(0.0, 1e-3), st.floats(0.0, 1e-2))
def test_all_forms_agree_when_little_is_lost(interval: float, save: float, downtime: float) -> None:
    """To first order in losses the linear, the renewal and Daly's forms are one: they differ by its square."""
    linear = linear_ettr(interval, save, downtime, 1.0)
    square = (interval + save + downtime) ** 2 + save
    assert renewal_ettr(interval, save, downtime, 1.0) == pytest.approx(linear, abs=2 * square)
    assert interval / daly_run_time(interval, interval, save, downtime, 1.0) == pytest.approx(linear, abs=2 * square)


@pytest.mark.parametrize("during", [False, True])
@pytest.mark.parametrize("persist", [0.0, 200.0])
def test_the_renewal_form_agrees_with_drawn_failures(during: bool, persist: float) -> None:
    """Oracle: 40,000 runs between failures, drawn one by one; 4 standard errors, each under 1 % of the ratio."""
    interval, save, downtime, mtbf = 300.0, 20.0, 400.0, 1000.0
    draw = random.Random(0)
    kept, lasted = [], []
    for _ in range(40_000):
        alive = draw.expovariate(1 / mtbf)
        recovery = downtime
        while during and (attempt := draw.expovariate(1 / mtbf)) < downtime:
            recovery += attempt
        kept.append(max(0, (alive - persist) // (interval + save)) * interval)
        lasted.append(alive + recovery)
    ratio = sum(kept) / sum(lasted)
    # Standard error of a ratio of means (delta method).
    residual = statistics.stdev(k - ratio * length for k, length in zip(kept, lasted, strict=True))
    error = residual / math.sqrt(len(kept)) / statistics.mean(lasted)
    assert error < 0.01 * ratio
    exact = renewal_ettr(interval, save, downtime, mtbf, persist=persist, failures_during_restart=during)
    assert abs(ratio - exact) < 4 * error


def test_recoveries_of_several_classes_have_one_equivalent() -> None:
    """Recoveries of 100 s and 900 s, one to three, each cut short by the next failure (M 1,000 s).

    Mean recovery D = sum p_c D_c with D_c = (1 - e_c)(M + D), e_c = e^(-R_c/M): D = M (1/e - 1), e = 0.25 x 0.9048
    + 0.75 x 0.4066 = 0.5311: D = 882.7 s, the same as from one recovery of -M log e = 632.7 s.
    """
    rates = [0.25e-3, 0.75e-3]
    one = mean_downtime([100.0, 900.0], rates, failures_during_restart=True)
    assert one == pytest.approx(632.7, abs=0.1)
    assert 1000 * math.expm1(one / 1000) == pytest.approx(882.7, abs=0.2)
    assert mean_downtime([100.0, 900.0], rates, failures_during_restart=False) == pytest.approx(700.0)


def test_extreme_recoveries_do_not_leave_the_floats() -> None:
    """Recoveries of thousands of mean times between failures still have an equivalent, and no progress."""
    assert mean_downtime([5e3, 9e3], [1.0, 1.0], failures_during_restart=True) == pytest.approx(5e3 + math.log(2) / 2)
    assert renewal_ettr(10.0, 1.0, 5e3, 1.0, failures_during_restart=True) == 0.0
    assert daly_run_time(1.0, 1e4, 1.0, 1.0, 1.0) == math.inf


def test_without_failures_only_saves_cost() -> None:
    """90 s of work and 10 s of saving keep 0.9 of the time."""
    assert renewal_ettr(90.0, 10.0, 1e9, math.inf) == pytest.approx(0.9)


@pytest.mark.parametrize("values", [(0.0, 1.0, 1.0, 1.0), (1.0, -1.0, 1.0, 1.0), (1.0, 1.0, -1.0, 1.0), (1.0, 1, 1, 0)])
def test_impossible_times_are_refused(values: tuple[float, float, float, float]) -> None:
    """No interval, a negative time or no time between failures is no question that has an answer."""
    with pytest.raises(ScenarioError):
        renewal_ettr(*values)


def _steps(
    interval: Interval, *, save: float = 10.0, persist: float = 0.0, mtbf: float = DAY, steps: int = 10**6
) -> int:
    return steps_per_save(interval, step_time=7.0, steps=steps, save_time=save, persist_time=persist, mtbf=mtbf)


def test_a_time_between_saves_becomes_steps() -> None:
    """30 min from one save's begin: 10 s of saving leave 1,790 s, 255.7 steps of 7 s, so 256."""
    assert _steps(Interval(seconds=1800.0)) == 256
    assert _steps(Interval(seconds=10.0 + 7 * 100)) == 100
    assert _steps(Interval(steps=100)) == 100
    assert _steps(Interval(steps=100), steps=30) == 30


def test_exact_multiples_are_not_rounded_up() -> None:
    """62 s less 20 s of saving are 60 steps of 0.7 s, though the floats say a little more."""
    assert (62.0 - 20.0) / 0.7 > 60
    every = Interval(seconds=62.0)
    assert steps_per_save(every, step_time=0.7, steps=999, save_time=20.0, persist_time=0.0, mtbf=DAY) == 60


def test_the_best_whole_number_of_steps() -> None:
    """Save 10 s, M a day: Young sqrt(2 x 10 x 86,400) = 1,314.5 s, 187.8 steps of 7 s; Daly 1,307.9 s, 186.8.

    The exact optimum is within 10^-8 of Daly's there; between 186 and 187 steps the better is 187.
    """
    assert young(10.0, DAY) / 7 == pytest.approx(187.8, abs=0.05)
    assert renewal(10.0, DAY) / 7 == pytest.approx(daly(10.0, DAY) / 7, rel=1e-6) == pytest.approx(186.8, abs=0.1)
    assert [_by_rule(rule) for rule in ("young", "daly", "renewal", "optimal")] == [188, 187, 187, 187]
    assert _steps(Interval()) == 187
    assert _steps(Interval(), mtbf=math.inf) == 10**6
    assert _steps(Interval(), save=0.0) == 1
    assert _steps(Interval(), save=0.0, persist=100.0) == 15


def _by_rule(rule: str) -> int:
    return steps_by_rule(rule, step_time=7.0, steps=10**6, save_time=10.0, persist_time=0.0, mtbf=DAY)


@given(st.floats(0.1, 1e5), st.floats(0.1, 100.0), st.floats(0.0, 20.0), st.sampled_from([1e3, 1e4, 1e5]))
def test_no_whole_number_of_steps_is_better(save: float, step_time: float, persist: float, mtbf: float) -> None:
    """Oracle: all counts near, and a coarse search far away, by the exact form with persisting and struck restarts."""

    def kept(count: int) -> float:
        return renewal_ettr(count * step_time, save, 60.0, mtbf, persist=persist, failures_during_restart=True)

    fixed = {"step_time": step_time, "steps": 10**9, "save_time": save, "persist_time": persist, "mtbf": mtbf}
    found = steps_by_rule("renewal", **fixed)
    least = math.ceil(persist / step_time - 1e-9)
    others = {found - 1, found + 1, found - 2, found + 2, *(round(1.3**k) for k in range(60))}
    assert kept(found) >= max(kept(count) for count in others if count >= max(1, least)) * (1 - 1e-12)


@given(st.floats(1e-6, 1.0))
def test_the_exact_optimum_is_between_young_and_daly_where_saves_are_short(save: float) -> None:
    """Daly's formula is its expansion: they agree to a thousandth for saves under a tenth of M, Young is longer."""
    exact = renewal(save, 1.0)
    assert exact < young(save, 1.0)
    assert exact == pytest.approx(daly(save, 1.0), rel=1e-3 if save < 0.1 else 0.1)
    assert math.exp(exact + save) * (1 - exact) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("interval", [Interval(seconds=50.0), Interval(steps=5)])
def test_an_interval_shorter_than_the_save_is_refused(interval: Interval) -> None:
    """2 s of stall and 60 s in the background do not fit into 50 s or into 2 s + 5 steps of 7 s."""
    with pytest.raises(ScenarioError, match=r"shorter than a save, 62 s: write an interval of at least '62 s'"):
        _steps(interval, save=2.0, persist=60.0)
