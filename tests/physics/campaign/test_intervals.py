"""Steps between saves: rules weigh the failures that go back to the storage."""

from __future__ import annotations

import math

import pytest

from simulator.errors import ScenarioError
from simulator.physics.campaign.intervals import hazard_rate, lost_rate, saving_interval
from simulator.physics.campaign.plan import Duration, Hazard, JobFailure, Window
from simulator.physics.checkpoints import renewal
from simulator.scenario.reliability.checkpoint import Interval

DAY = 86400.0
DAILY = Hazard("poisson", 1 / DAY)


def _failure(**fields: object) -> JobFailure:
    return JobFailure("it", DAILY)._replace(**fields)  # type: ignore[arg-type]


def test_only_failures_that_reach_the_storage_count() -> None:
    """Without nearer tiers every stop; with host memory those of machines; with 2 peers those of 3 machines."""
    node, software = _failure(), _failure(machine_share=0.0)
    leaf = _failure(machine_share=0.5, machines=((2, 0.25), (20, 0.75)))
    assert [lost_rate(each, -1) * DAY for each in (node, software, leaf)] == [1.0, 1.0, 1.0]
    assert [lost_rate(each, 0) * DAY for each in (node, software, leaf)] == pytest.approx([1.0, 0.0, 0.5])
    assert [lost_rate(each, 2) * DAY for each in (node, software, leaf)] == pytest.approx([0.0, 0.0, 0.375])
    assert lost_rate(_failure(burst=(0.04, 2)), 2) * DAY == pytest.approx(0.04)


def test_what_replicas_keep_needs_no_save() -> None:
    """Lost machines cost no save where the others hold their state; what hits the job, or corrupts it, does."""
    node, half = _failure(), _failure(machine_share=0.25)
    rates = [lost_rate(each, -1, keeps_state=True) * DAY for each in (node, half, _failure(effect="silent"))]
    assert rates == pytest.approx([0.0, 0.75, 1.0])
    assert lost_rate(half, 0, keeps_state=True) == 0.0, "host memory has the rest"
    best, rarer = Interval(rule="optimal"), _failure(hazard=Hazard("poisson", 0.75 / DAY))
    seldom = _steps(best, failures=(half,), keeps_state=True)
    assert _steps(best, failures=(half,)) < seldom == _steps(best, failures=(rarer,))


def test_rates_are_those_of_the_run() -> None:
    """Parts of shape 2 and scale 1,000 days: (150² - 100²)/1000² failures each from day 100 to day 150."""
    batch = _failure(hazard=Hazard("batch", shape=2.0, units=100, scale=1000 * DAY, age=100 * DAY))
    assert lost_rate(batch, -1, 50 * DAY) * DAY == pytest.approx(100 * 0.0125 / 50)
    weeks = _failure(hazard=DAILY._replace(windows=(Window(0.0, 7 * DAY, 3.0),)))
    assert lost_rate(weeks, -1, 14 * DAY) * DAY == pytest.approx(2.0)


def test_pauses_and_rewinds_need_no_storage_but_corruption_does() -> None:
    """A link flap loses nothing, a loss spike goes back on purpose; silent corruption is in all nearer copies."""
    effects = ("pause", "rewind", "silent", "hang")
    assert [lost_rate(_failure(effect=effect), 0) * DAY for effect in effects] == pytest.approx([0.0, 0.0, 1.0, 1.0])


def test_a_batch_counts_with_its_mean_life() -> None:
    """100 parts of a mean life of 1,000 days fail once in ten days; injected failures have no rate."""
    scale = 1000 * DAY / math.gamma(1 + 1 / 2.6)
    assert hazard_rate(Hazard("batch", shape=2.6, units=100, scale=scale)) * DAY == pytest.approx(0.1)
    assert hazard_rate(Hazard("times", times=(1.0,))) == 0.0
    assert hazard_rate(Hazard("renewal", 0.5, shape=0.7)) == 0.5


def _steps(interval: Interval, **changes: object) -> int:
    fields: dict[str, object] = {
        "step_time": 10.0, "steps": 10**6, "full": (60.0, 0.0), "mean": (60.0, 0.0), "failures": (_failure(),),
    }  # fmt: skip
    return saving_interval(interval, **{**fields, **changes})  # type: ignore[arg-type]


def test_rules_and_multiples() -> None:
    """Save 60 s once a day fails: Young sqrt(2 x 60 x 86,400) = 3,220 s; the exact optimum 3,180 s, 318 steps of 10 s.

    `simulated` starts there. In multiples of 100 steps, the next one up.
    """
    assert _steps(Interval(rule="young")) == 322
    assert renewal(60.0, DAY) == pytest.approx(3180, abs=1)
    assert [_steps(Interval(rule=rule)) for rule in ("optimal", "renewal", "daly", "simulated")] == [318] * 4
    assert _steps(Interval(rule="optimal"), multiple=100) == 400
    assert _steps(Interval(steps=250), multiple=100) == 300
    assert _steps(Interval(rule="optimal"), failures=()) == 10**6


def test_deltas_are_weighed_by_their_mean_but_have_to_fit() -> None:
    """A delta of a fifth: the rule weighs 16.8 s; a stated interval has to hold the full minute."""
    assert _steps(Interval(rule="optimal"), mean=(16.8, 0.0)) == round(renewal(16.8, DAY) / 10)
    with pytest.raises(ScenarioError, match="50 s is shorter than a save, 60 s"):
        _steps(Interval(seconds=50.0), mean=(16.8, 0.0))


def test_a_save_is_durable_before_the_next() -> None:
    """1 s of stall and 5,000 s in the background: not sooner than 500 steps."""
    assert _steps(Interval(rule="optimal"), full=(1.0, 5000.0), mean=(1.0, 5000.0)) == 500
    assert Duration(2.0, 1.0).mean == pytest.approx(2 * math.exp(0.5))
