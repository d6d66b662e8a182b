"""Closed forms of a plan: published optima and projections, hand-worked sums, simulated campaigns."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.campaign import simulate_campaign
from simulator.physics.campaign.expected import expected_run_time, healthy_run_time, mean_rate
from simulator.physics.campaign.plan import (
    ALL_MACHINES,
    BurnIn,
    CampaignPlan,
    Duration,
    Elastic,
    Evaluation,
    Hazard,
    JobFailure,
    Pause,
    Phase,
    Pool,
    Tier,
    Window,
)
from simulator.physics.checkpoints import daly, daly_run_time, linear_ettr, renewal, renewal_ettr

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def _plan(
    steps: int = 1000,
    step_time: float = 10.0,
    *,
    every: int = 100,
    save: float = 0.0,
    persist: float = 0.0,
    load: float = 0.0,
    mtbf: float = math.inf,
    detection: float = 0.0,
    **fields: Any,
) -> CampaignPlan:
    tier = Tier("storage", every, None, save, persist, load)
    crash = JobFailure("crash", Hazard("poisson", 1 / mtbf), detection=Duration(detection), machine_share=0.0)
    fields = {"failures": () if math.isinf(mtbf) else (crash,), **fields}
    return CampaignPlan(phases=(Phase("all", steps, step_time, 1.0, (tier,)),), machines=4, **fields)


# --- published --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtbf", "optimum", "hours"), [(24 * HOUR, 117 * MINUTE, 547.9), (15 * MINUTE, 9.1 * MINUTE, 2504.0)]
)
def test_daly(mtbf: float, optimum: float, hours: float) -> None:
    """Daly (FGCS 2006), figures 3 and 5: 500 h of work, saves of 5 min, 10 min to restart, which may be struck too.

    The exact optimum is his to a minute, and the expected run to a tenth of a per cent.
    """
    assert daly(5 * MINUTE, mtbf) == pytest.approx(optimum, rel=0.01)
    assert renewal(5 * MINUTE, mtbf) == pytest.approx(optimum, rel=0.012)
    every = round(renewal(5 * MINUTE, mtbf))
    plan = _plan(
        500 * 3600, 1.0, every=every, save=5 * MINUTE, mtbf=mtbf, restart=Duration(10 * MINUTE),
    )  # fmt: skip
    assert expected_run_time(plan) / HOUR == pytest.approx(hours, rel=1e-3)
    assert expected_run_time(plan) == pytest.approx(
        daly_run_time(500 * HOUR, every, 5 * MINUTE, 10 * MINUTE, mtbf), rel=1e-9
    )


@pytest.mark.parametrize(
    ("nodes", "rate", "interval", "down", "linear", "exact"),
    [
        (2000, 6.5e-3, HOUR, 5 * MINUTE, 0.684, 0.7215),  # RSC-1, 16,000 GPUs: "0.7"
        (1000, 6.5e-3, HOUR / 2, 6 * MINUTE, 0.905, 0.909),  # 8,000 GPUs, 5 min and a minute of queueing: "0.9"
        (12500, 2.34e-3, 2 * MINUTE, 2 * MINUTE, 0.939, 0.9415),  # 100,000 GPUs at RSC-2's rate: "0.9"
    ],
)
def test_meta(nodes: int, rate: float, interval: float, down: float, linear: float, exact: float) -> None:
    """arXiv 2410.21680: failures per node-day, saves that cost nothing, nothing strikes a restart."""
    mtbf = DAY / (nodes * rate)
    steps = round(1000 * interval)
    plan = _plan(
        steps, 1.0, every=round(interval), mtbf=mtbf, restart=Duration(down), failures_during_restart=False,
    )  # fmt: skip
    assert linear_ettr(interval, 0.0, down, mtbf) == pytest.approx(linear, abs=1e-3)
    assert steps / expected_run_time(plan) == pytest.approx(exact, abs=1e-3)


def test_rsc_projects_its_mean_times() -> None:
    """6.50 per 1000 node-days: 2,048 nodes fail every 1.8 h, 16,384 every 0.23 h."""
    for nodes, hours in ((2048, 1.803), (16384, 0.2254)):
        assert 1 / mean_rate(Hazard("poisson", nodes * 6.5e-3 / DAY), DAY) / HOUR == pytest.approx(hours, rel=1e-3)


# --- sums -------------------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_a_sum() -> None:
    """1,050 steps of 10 s x 1.02 + 0.5 s, a start of 60 s, 10 evaluations of 30 s, 10 saves of 5 s and one at the end.

    The last save begins 50 x 10.7 = 535 s after the one before, which needs 600: 65 s of waiting, 5 and 600 s.
    """
    plan = _plan(
        1050, every=100, save=5.0, persist=600.0, step_factor=1.02, garbage_collection=0.5, start=Duration(60.0),
        evaluation=Evaluation(100, 30.0),
    )  # fmt: skip
    assert healthy_run_time(plan) == pytest.approx(1050 * 10.7 + 60 + 10 * 30 + 10 * 5 + 65 + 5 + 600)
    assert expected_run_time(plan) == healthy_run_time(plan)


def test_several_tiers_and_phases() -> None:
    """25 + 30 steps: to the host every 10th (1 s), to the storage every 20th (5 s), counted across the phases.

    Host 2 + 3 saves, storage 1 + 1, and one to the storage at the end with 15 steps since: 5 x 1 + 3 x 5 s.
    """
    host = Tier("host", 10, None, 1.0, 0.0, 0.0, 0)
    tiers = (host, Tier("storage", 20, None, 5.0, 0.0, 0.0))
    plan = CampaignPlan(phases=(Phase("a", 25, 10.0, 1.0, tiers), Phase("b", 30, 20.0, 1.0, tiers)), machines=1)
    assert healthy_run_time(plan) == 25 * 10 + 30 * 20 + 5 * 1 + 3 * 5


@given(
    st.integers(1, 300),
    st.integers(1, 50),
    st.integers(1, 4),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from([0.0, 1.0]),
    st.integers(1, 60),
)
def test_the_campaign_takes_as_long(steps: int, near: int, far: int, save: float, persist: float, other: int) -> None:
    """Oracle: the simulated campaign of two phases and two tiers in which nothing happens."""
    tiers = (Tier("host", near, None, 1.0, 0.0, 0.0, 0), Tier("storage", near * far, None, save, persist, 0.0))
    phases = (Phase("a", steps, 2.0, 1.0, tiers), Phase("b", other, 3.0, 1.0, tiers))
    plan = CampaignPlan(phases=phases, machines=1, start=Duration(7.0), evaluation=Evaluation(13, 4.0))
    assert simulate_campaign(plan, 0).wall_clock == pytest.approx(healthy_run_time(plan), rel=1e-9)


def test_rates_change_over_a_run() -> None:
    """A day at three times the rate in ten: 1.2; a burn-in of 3 more over a day, in ten days 3 (1 - e^-10)/10 more.

    A batch that is new: 100 (t/s)^2 after t = s/10 is one part.
    """
    daily = Hazard("poisson", 1 / DAY)
    window = daily._replace(windows=(Window(2 * DAY, 3 * DAY, 3.0),))
    assert mean_rate(window, 10 * DAY) * DAY == pytest.approx(1.2)
    young = daily._replace(burn_in=BurnIn(3.0, DAY))
    assert mean_rate(young, 10 * DAY) * DAY == pytest.approx(1 + 0.3 * (1 - math.exp(-10)))
    batch = Hazard("batch", shape=2.0, units=100, scale=100 * DAY)
    assert mean_rate(batch, 10 * DAY) * 10 * DAY == pytest.approx(1.0)
    assert mean_rate(Hazard("times", times=(1.0,)), DAY) == 0.0


def test_a_run_that_never_ends() -> None:
    """A mean time of a minute and ten to restart."""
    plan = _plan(mtbf=MINUTE, restart=Duration(1000 * MINUTE), every=1000)
    assert expected_run_time(plan) == math.inf


# --- against simulated campaigns --------------------------------------------------------------------------------------


def _node(**fields: Any) -> JobFailure:
    return JobFailure("node", Hazard("poisson", 1 / DAY), detection=Duration(30.0))._replace(**fields)


_STORAGE = Tier("storage", 200, None, 20.0, 100.0, 60.0)
_NEAR = (Tier("host", 5, None, 0.1, 0.0, 5.0, 0), Tier("peer", 10, None, 0.2, 1.0, 10.0, 1))
_MIXED = (_node(), _node(name="software", machine_share=0.0), _node(name="leaf", machines=((4, 1.0),)))
SIMULATED: dict[str, tuple[tuple[Tier, ...], dict[str, Any]]] = {
    "storage only": ((_STORAGE,), {"failures": _MIXED}),
    "restarts are safe": ((_STORAGE,), {"failures": _MIXED, "failures_during_restart": False}),
    "near tiers": ((*_NEAR, _STORAGE), {"failures": _MIXED}),
    "silent": ((_STORAGE,), {"failures": (_node(effect="silent", detection=Duration(900.0)), _node(name="n"))}),
    "rewind": ((_STORAGE,), {"failures": (_node(effect="rewind", rewind=100, machine_share=0.0), _node(name="n"))}),
    "flaps": ((_STORAGE,), {"failures": (_node(effect="pause", machine_share=0.0), _node(name="n"))}),
    "bursts": ((*_NEAR, _STORAGE), {"failures": (_node(burst=(0.5, 3)),)}),
    "in place": ((_STORAGE,), {"failures": _MIXED, "restart_in_place": Duration(20.0)}),
    "wait": ((_STORAGE,), {"failures": (_node(repair=Duration(600.0)),), "policy": "wait"}),
    "stalls": (
        (_STORAGE,),
        {"failures": _MIXED, "pauses": (Pause("d", "data_stall", Hazard("poisson", 1 / HOUR), Duration(200.0)),)},
    ),
    "lognormal": ((_STORAGE,), {"failures": _MIXED, "restart": Duration(150.0, 1.0)}),
}


@pytest.mark.parametrize("case", SIMULATED)
def test_the_mean_of_simulated_runs(case: str) -> None:
    """Oracle: 30 campaigns of 100,000 steps of 10 s; the expectation is within 4 standard errors."""
    tiers, fields = SIMULATED[case]
    fields = {"restart": Duration(300.0), "hot": Pool(1000, Duration(10.0)), **fields}
    plan = CampaignPlan(phases=(Phase("all", 100_000, 10.0, 1.0, tiers),), machines=16, **fields)
    assert all(tier.survives <= ALL_MACHINES for tier in tiers)
    walls = [simulate_campaign(plan, 0, run).wall_clock for run in range(30)]
    error = statistics.stdev(walls) / math.sqrt(len(walls))
    mean = statistics.mean(walls)
    assert abs(expected_run_time(plan) - mean) < 4 * error < 0.03 * mean


def test_one_tier_is_the_renewal_form() -> None:
    """Exact: the same numbers as `renewal_ettr`, persisting in the background and with struck restarts."""
    plan = _plan(10_000, every=50, save=7.0, persist=90.0, load=11.0, mtbf=HOUR, detection=5.0, restart=Duration(80.0))
    ettr = renewal_ettr(500.0, 7.0, 96.0, HOUR, persist=90.0, failures_during_restart=True)
    assert expected_run_time(plan) == pytest.approx(100_000 / ettr)


def test_elastic_runs_lose_a_step() -> None:
    """Replicas that keep the state: half a step and the pause of each failure, no load."""
    elastic = Elastic(1, 4, 1, Duration(30.0), Duration(0.0), keeps_state=True)
    plan = replace(_plan(10_000, mtbf=HOUR), failures=(_node(detection=Duration(0.0)),), policy="elastic")
    expected = expected_run_time(replace(plan, elastic=elastic))
    assert expected == pytest.approx(100_000 * (DAY + DAY * math.expm1(30 / DAY)) / (DAY - 5), rel=1e-9)
