"""Saves by the clock: an interval in time counts whatever passes since the last save began."""

from __future__ import annotations

from dataclasses import replace

from simulator.engine.campaign import simulate_campaign
from simulator.physics.campaign.plan import (
    CampaignPlan,
    Duration,
    Evaluation,
    Hazard,
    JobFailure,
    Pause,
    Phase,
    SlowSource,
    Tier,
)
from simulator.scenario.units import Seconds


def _plan(steps: int, step: Seconds, seconds: Seconds, blocking: Seconds = 0.0) -> CampaignPlan:
    every = -int(-(seconds - blocking) // step)
    tier = Tier("storage", every, seconds, blocking, 0.0, 0.0)
    return CampaignPlan(phases=(Phase("a", steps, step, 1.0, (tier,)),), machines=1)


def test_saves_are_rounded_up_to_a_step() -> None:
    """Every 45 s of 10 s steps: after 5 steps; with 10 s of saving in it, after 4."""
    assert simulate_campaign(_plan(100_000, 10.0, 45.0), 0).saves == {"storage": 20_000}
    assert simulate_campaign(_plan(100_000, 10.0, 45.0, 10.0), 0).saves == {"storage": 25_000}


def test_evaluations_count() -> None:
    """Steps of 1 s, an evaluation of 100 s every 100 steps: 1,800 s are 9 rounds of 200 s, 900 steps.

    A save behind a step comes before the evaluation behind it. So the first one, 1,800 s after the start, comes behind
    step 901 (900 s and 9 evaluations are 1,800 s, and only then a step ends), when 1,801 s have passed; so do all:
    901, 1,801 (900 steps with 9 evaluations in them), 2,701, ..., and the last behind step 100,000.
    """
    plan = replace(_plan(100_000, 1.0, 1800.0), evaluation=Evaluation(100, 100.0))
    assert simulate_campaign(plan, 0).saves == {"storage": 111 + 1}


def test_stalls_count() -> None:
    """10 s steps, saves every 40 s. A stall of 25 s at 12: it is due behind step 2, which ends at 45."""
    stall = Pause("stall", "data_stall", Hazard("times", times=(12.0,)), Duration(25.0))
    lost = JobFailure("crash", Hazard("times", times=(46.0,)), machine_share=0.0)
    plan = replace(_plan(10, 10.0, 40.0), pauses=(stall,), failures=(lost,))
    assert simulate_campaign(plan, 0).time_s["lost_work"] == 1.0


def test_slower_steps_count() -> None:
    """Saves every 40 s of 10 s steps, 20 s from 11 on: behind step 3 (10 + 10 + 20 s), not behind step 4."""
    slow = SlowSource("slow", "slow_node", (1,), 0.0, Hazard("times", times=(11.0,)), (9, 9), None, None, swap=False)
    lost = JobFailure("crash", Hazard("times", times=(41.0,)), machine_share=0.0)
    plan = replace(_plan(10, 10.0, 40.0), slow=(slow,), failures=(lost,))
    assert simulate_campaign(plan, 0, step_times=lambda phase, state: 20.0).time_s["lost_work"] == 1.0
