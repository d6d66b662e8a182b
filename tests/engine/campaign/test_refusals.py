"""Runs that never end, and plans that cannot be, are refused with the reason."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from simulator.engine.campaign import hopeless, simulate_campaign
from simulator.errors import ScenarioError
from simulator.physics.campaign.plan import (
    CampaignPlan,
    Duration,
    Evaluation,
    Hazard,
    JobFailure,
    Phase,
    Pool,
    Shop,
    SlowSource,
    Tier,
    Window,
)

STORAGE = Tier("storage", 100, None, 10.0, 0.0, 20.0)
PHASE = Phase("training", 20_000, 5.0, 1.0, (STORAGE,))


def _crash(hazard: Hazard) -> JobFailure:
    return JobFailure("crash", hazard, machine_share=0.0)


BUSY = CampaignPlan(phases=(PHASE,), machines=64, restart=Duration(280.0))


def _failing(every: float, **changes: Any) -> CampaignPlan:
    return replace(BUSY, failures=(_crash(Hazard("poisson", rate=1 / every)),), **changes)


def test_a_run_that_never_ends_is_refused() -> None:
    """A failure every 10 s leaves no interval of 510 s unbroken: said at once, with the numbers."""
    with pytest.raises(ScenarioError, match=r"hardly ever end: .* every 10 s .* needs 8.5 min without a failure"):
        simulate_campaign(_failing(10.0), 0)


def test_a_restart_that_never_ends_is_refused() -> None:
    """Failures every 60 s never let a restart of two hours through, though saves would be quick enough."""
    quick = PHASE._replace(tiers=(STORAGE._replace(every=1, blocking=0.0),))
    plan = _failing(60.0, restart=Duration(7200.0), phases=(quick,))
    with pytest.raises(ScenarioError, match=r"2\.01 h after detection to restart"):
        simulate_campaign(plan, 0)
    assert simulate_campaign(replace(plan, failures_during_restart=False, phases=(quick._replace(steps=50),)), 0)


def test_endless_failures_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected failures have no expectation: a count stops them."""
    monkeypatch.setattr(hopeless, "MAX_FAILURES", 50)
    times = tuple(float(second) for second in range(1, 9900))
    with pytest.raises(ScenarioError, match="does not end: after 50 failures in 51 s, 0 of 20000 steps are kept"):
        simulate_campaign(replace(BUSY, failures=(_crash(Hazard("times", times=times)),)), 0)


def test_a_run_that_gets_no_further_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss spike every 15 s that goes back 100 steps: counted, as no form foresees it."""
    monkeypatch.setattr(hopeless, "MAX_STUCK", 30)
    hazard = Hazard("times", times=tuple(15.0 * number for number in range(1, 999)))
    spike = JobFailure("spike", hazard, effect="rewind", machine_share=0.0, rewind=100)
    with pytest.raises(ScenarioError, match=r"does not end: after .* failures"):
        simulate_campaign(replace(BUSY, failures=(spike,)), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"phases": ()},
        {"phases": (PHASE._replace(step_time=0.0),)},
        {"phases": (PHASE._replace(step_time=math.nan),)},
        {"phases": (PHASE._replace(steps=0),)},
        {"phases": (PHASE._replace(tiers=()),)},
        {"phases": (PHASE, PHASE._replace(tiers=(STORAGE._replace(name="host"),)))},
        {"phases": (PHASE._replace(tiers=(STORAGE._replace(every=0),)),)},
        {"phases": (PHASE._replace(tiers=(STORAGE._replace(blocking=-1.0),)),)},
        {"failures": (_crash(Hazard("poisson", rate=1e-9)), _crash(Hazard("poisson")))},
        {"failures": (_crash(Hazard("poisson", rate=math.nan)),)},
        {"failures": (_crash(Hazard("poisson", rate=-1.0)),)},
        {"failures": (_crash(Hazard("renewal", rate=1e-9, shape=0.0)),)},
        {"failures": (_crash(Hazard("times", times=(5.0, 4.0))),)},
        {"failures": (_crash(Hazard("times", times=(-1.0,))),)},
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, Any]) -> None:
    """Zero, negative, infinite and disordered values are the user's error, not ours."""
    with pytest.raises(ScenarioError, match="campaign: "):
        hopeless.check(replace(BUSY, **changes))


def test_saves_faster_than_they_become_durable_are_refused() -> None:
    """501 s in the background do not fit between saves 500 s apart; 101 steps of 5 s would do."""
    phase = PHASE._replace(tiers=(STORAGE._replace(persist=501.0),))
    with pytest.raises(ScenarioError, match="save at most every 101 steps"):
        simulate_campaign(replace(BUSY, phases=(phase,)), 0)


def test_loss_spikes_that_go_back_further_than_they_are_apart_are_refused() -> None:
    """Every 50 s, back 200 steps of 5 s: the run would have to meet no spike for a day."""
    spike = JobFailure("spike", Hazard("poisson", rate=1 / 50), effect="rewind", machine_share=0.0, rewind=200)
    with pytest.raises(ScenarioError, match=r"'spike' goes back 200 steps .* every 50 s"):
        simulate_campaign(replace(BUSY, failures=(spike,)), 0)


def test_a_bad_week_is_no_reason_to_refuse() -> None:
    """A failure every second for an hour ends with the hour; for ever it is refused, and evaluations of years too."""
    hour = Hazard("poisson", rate=1e-6, windows=(Window(0.0, 3600.0, 1e6),))
    assert simulate_campaign(replace(BUSY, failures=(_crash(hour),)), 0).wall_clock > 3600.0
    ever = hour._replace(windows=(Window(0.0, 1e15, 1e6),))
    with pytest.raises(ScenarioError, match="hardly ever end"):
        simulate_campaign(replace(BUSY, failures=(_crash(ever),)), 0)
    with pytest.raises(ScenarioError, match="hardly ever end"):
        simulate_campaign(_failing(5000.0, evaluation=Evaluation(1, 1e9)), 0)


def test_a_near_tier_that_no_failure_leaves_does_not_save_the_run() -> None:
    """Host memory every 10 steps, but every failure takes the machine: only the storage counts."""
    near = Tier("host", 10, None, 0.1, 0.0, 1.0, survives=0)
    phase = PHASE._replace(tiers=(near, STORAGE._replace(every=1000)))
    node = JobFailure("node", Hazard("poisson", rate=1 / 100))
    with pytest.raises(ScenarioError, match="loses all but 'storage'"):
        simulate_campaign(replace(BUSY, phases=(phase,), restart=Duration(1.0), failures=(node,)), 0)


def test_a_repair_that_takes_ages_is_named() -> None:
    """What most of the time went to is in the message; nothing is simulated in between."""
    node = JobFailure("node", Hazard("poisson", rate=1e-4), repair=Duration(1e12))
    with pytest.raises(ScenarioError, match=r"100% of that was waiting \(node\): add spares or repair faster"):
        simulate_campaign(replace(BUSY, failures=(node,), policy="wait"), 0)


def test_pauses_are_no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what stops the job counts against the limit; pauses are forgotten as they go, and progress is told."""
    monkeypatch.setattr(hopeless, "MAX_FAILURES", 50)
    flap = JobFailure(
        "flap", Hazard("poisson", rate=1 / 50), effect="pause", machine_share=0.0, detection=Duration(0.5)
    )
    seen: list[float] = []
    result = simulate_campaign(replace(BUSY, failures=(flap,)), 0, progress=seen.append)
    assert result.failures["flap"] > 1500
    assert len(seen) > 10
    assert seen == sorted(seen)


def test_slow_machines_wait_for_spares_while_the_job_waits_for_one() -> None:
    """A slow machine looks for a spare when the recovery is over, not at each instant until then."""
    nodes = JobFailure("node", Hazard("times", times=(1000.0, 1400.0)), repair=Duration(5000.0))
    slow = SlowSource(
        "s", "slow_node", (4,), 0.0, Hazard("times", times=(10.0, 20.0)), (50, 50), None, Duration(30.0), True
    )
    plan = CampaignPlan(
        phases=(Phase("a", 2000, 1.0, 1.0, (Tier("storage", 100, None, 0.0, 0.0, 0.0),)),),
        machines=4,
        failures=(nodes,),
        slow=(slow,),
        hot=Pool(1, Duration(0.0)),
        shop=Shop(Duration(3000.0), 0.0, Duration(0.0)),
    )
    result = simulate_campaign(plan, 0, step_times=lambda _, state: 1.0 + 0.5 * len(state))
    assert result.steps == 2000
    assert result.time_s["waiting"] > 0
