"""The simulated optimum of the checkpoint interval, beside the closed forms that it is compared with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from simulator.errors import ScenarioError
from simulator.physics.campaign.plan import CampaignPlan, Duration, Hazard, JobFailure, Phase, Pool, Tier
from simulator.studies.optimal_interval import (
    at_interval,
    bounds,
    closed_forms,
    fit_optimum,
    interval_seconds,
    job_mtbf,
    optimal_interval,
    steps_for,
)


def a_plan(*, rate: float = 1 / 10_800, save: float = 10.0, persist: float = 0.0, steps: int = 100_000) -> CampaignPlan:
    """Steps of 5 s that fail every 3 hours, and restart in 10 min."""
    tier = Tier("storage", 100, None, save, persist, 30.0)
    return CampaignPlan(
        phases=(Phase("training", steps, 5.0, 1e15, (tier,)),),
        machines=100,
        failures=(JobFailure("software", Hazard("poisson", rate), machine_share=0.0),) if rate else (),
        restart=Duration(600.0),
        hot=Pool(4, Duration(0.0)),
    )


def test_the_fit_finds_the_vertex_of_its_own_form() -> None:
    """A·x + B/x + C with A = 1e-5, B = 1: the least is at x = sqrt(1e5) = 316.2 s of work, after a save of 10 s."""
    work = np.array([150.0, 200.0, 300.0, 420.0, 600.0])
    noise = np.linspace(-0.01, 0.01, 7)  # each replication has its own level, which moves no minimum
    overheads = (1e-5 * work + 1 / work)[:, None] + noise[None, :]
    seconds, error = fit_optimum((work + 10.0).tolist(), overheads, 10.0)
    assert seconds == pytest.approx(10 + math.sqrt(1e5), rel=1e-9)
    assert error == pytest.approx(0.0, abs=1e-9)


def test_a_curve_without_a_minimum_has_no_precision() -> None:
    """A falling curve ends at its last candidate."""
    work = [100.0, 150.0, 200.0]
    assert fit_optimum(work, np.array([[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]])) == (200.0, math.inf)


def test_the_simulated_optimum_is_that_of_renewal_theory() -> None:
    """With exponential failures and one tier the exact renewal form holds: within three standard errors of it."""
    plan = a_plan()
    found = optimal_interval(plan, None, 1, 24)
    exact = closed_forms(plan)["exact renewal"]
    assert not found.at_bound
    assert found.precision < 0.06
    assert abs(found.seconds / exact - 1) < 3 * found.precision
    assert found.seconds == interval_seconds(plan, found.steps)
    best = min(point.overhead for point in found.curve)
    chosen = [point.overhead for point in found.curve if abs(point.seconds / found.seconds - 1) < 0.2]
    assert min(chosen) < best * 1.03


def test_the_answer_does_not_depend_on_the_interval_of_the_plan() -> None:
    """The search starts from the closed forms, and the same seed gives the same answer."""
    plan = a_plan(steps=20_000)
    assert optimal_interval(plan, None, 1, 4) == optimal_interval(at_interval(plan, 7), None, 1, 4)


def test_without_failures_the_longest_interval_is_best() -> None:
    """Every save costs and none is needed but the last."""
    found = optimal_interval(a_plan(rate=0.0, steps=500), None, 0, 2)
    assert (found.steps, found.at_bound, found.precision) == (500, True, 0.0)


def test_a_free_save_is_made_at_every_step() -> None:
    """Nothing is lost by saving."""
    found = optimal_interval(a_plan(save=0.0, steps=5_000), None, 0, 4)
    assert (found.steps, found.at_bound) == (1, True)


def test_a_save_in_the_background_bounds_the_interval() -> None:
    """One write at a time: 600 s in the background are 120 steps of 5 s, although saves that block 0.1 s are cheap."""
    plan = a_plan(save=0.1, persist=600.0, steps=20_000)
    assert bounds(plan) == (120, 20_000)
    found = optimal_interval(plan, None, 0, 4)
    assert (found.steps, found.at_bound) == (120, True)


def test_the_outermost_tier_saves_in_multiples_of_the_one_before() -> None:
    """10 steps to the host: 104 becomes 100, and only the storage changes."""
    host = Tier("host", 10, None, 0.1, 0.0, 1.0, 0)
    plan = a_plan()
    (phase,) = plan.phases
    tiered = replace(plan, phases=(phase._replace(tiers=(host, *phase.tiers)),))
    assert [tier.every for tier in at_interval(tiered, 104).phases[0].tiers] == [10, 100]
    # Failures that lose no machine go back to the host: none is left for the storage to be weighed against.
    assert closed_forms(tiered) == {}
    assert job_mtbf(tiered) == 10_800.0


def test_phases_save_after_the_same_time() -> None:
    """100 steps of 5 s are 50 steps of 10 s in a shorter phase."""
    plan = a_plan()
    (phase,) = plan.phases
    both = replace(plan, phases=(phase, phase._replace(name="long", steps=1_000, step_time=10.0)))
    assert [each.tiers[-1].every for each in at_interval(both, 100).phases] == [100, 50]


def test_steps_and_seconds_are_inverse() -> None:
    """From save to save: the work and the save that blocks it."""
    plan = a_plan()
    assert interval_seconds(plan, 60) == 60 * 5.0 + 10.0
    assert steps_for(plan, interval_seconds(plan, 60)) == 60
    assert steps_for(plan, 1.0) == 1
    assert steps_for(plan, 1e12) == 100_000


def test_one_run_has_no_precision() -> None:
    """It takes two to tell noise from difference."""
    with pytest.raises(ScenarioError, match="at least two"):
        optimal_interval(a_plan(), None, 0, 1)


def test_a_run_that_never_ends_says_so() -> None:
    """Failures every second leave no interval with which anything is kept."""
    with pytest.raises(ScenarioError, match="end"):
        optimal_interval(a_plan(rate=1.0), None, 0, 2)
