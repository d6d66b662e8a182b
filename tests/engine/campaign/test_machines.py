"""Pools, repairs, lemons: counts over time."""

from __future__ import annotations

from typing import Literal

import pytest

from simulator.engine.campaign import simulate_campaign
from simulator.engine.campaign.hazards import generator
from simulator.engine.campaign.machines import Fleet
from simulator.engine.campaign.marks import Draws, Mark
from simulator.errors import ScenarioError
from simulator.physics.campaign.plan import (
    ZERO,
    CampaignPlan,
    Duration,
    Hazard,
    JobFailure,
    Lemons,
    Phase,
    Pool,
    Shop,
    Tier,
)

DAY = 86400.0
PLAN = CampaignPlan(
    phases=(Phase("a", 200_000, 60.0, 1.0, (Tier("storage", 10, None, 0.0, 0.0, 0.0),)),),
    machines=100,
    hot=Pool(2, ZERO),
    warm=Pool(3, Duration(10.0)),
    preempted=Pool(4, Duration(100.0)),
)
NODE = JobFailure("node", Hazard("times"))


def _lose(fleet: Fleet, now: float, seconds: float) -> None:
    fleet.lose(NODE, Mark((0.0, 0.0, 0.0, 0.0, 1, False, 0.5, seconds, False, False)), 1, now, False)


def test_pools_are_tried_in_order() -> None:
    """Two hot, then a selection that refills hot from warm, then one that is borrowed; it goes back first."""
    fleet = Fleet(PLAN, Draws(generator(0, 0, "machines")))
    waits = []
    for number in range(6):
        _lose(fleet, float(number), 1000.0)
        waits.append([name for name, _ in fleet.fill(float(number))])
    assert waits == [["hot"], ["hot"], ["warm"], ["hot"], ["hot"], ["preempted"]]
    assert (fleet.hot.size, fleet.warm.size, fleet.preempted.size, fleet.borrowed) == (0, 0, 3, 1)
    assert fleet.counts["selections"] == 1
    fleet.bring(1003.0)  # those of 0, 1, 2 and 3: one goes back where it was borrowed, two are hot, one is warm
    assert (fleet.hot.size, fleet.warm.size, fleet.preempted.size, fleet.borrowed) == (2, 1, 4, 0)
    seconds = fleet.machine_seconds(2000.0)
    assert seconds["repair"] == 6000.0
    assert seconds["borrowed"] == 1000.0 - 5.0
    # Five until 0, 4 until 1, ..., none from 4; the machines of 1, 2, 3, 4 and 5 from their return until 2000.
    assert seconds["idle"] == 0 + 1 + 2 + 3 + 4 + sum(2000.0 - 1000.0 - number for number in range(1, 6))


def test_waiting_takes_the_first_machines_that_come_back() -> None:
    """Three machines away: the wait for all ends with the last of them."""
    fleet = Fleet(PLAN, Draws(generator(0, 0, "machines")))
    fleet.hot.size = fleet.warm.size = fleet.preempted.size = 0
    for seconds in (300.0, 100.0, 200.0):
        _lose(fleet, 0.0, seconds)
    assert fleet.fill(0.0) == ()
    assert fleet.wait(0.0, missing=1) == 200.0
    assert fleet.wait(200.0) == 300.0
    assert fleet.missing == 0


def _lemons(shop: Shop, retire_after: int = 0, policy: Literal["restart", "wait"] = "restart") -> CampaignPlan:
    rate, extra = 100 * 0.01 / DAY, 20 * 0.09 / DAY
    failure = JobFailure("node", Hazard("poisson", rate=rate + extra), lemon_share=extra / (rate + extra))
    return CampaignPlan(
        phases=PLAN.phases, machines=100, failures=(failure,), hot=Pool(100, ZERO), shop=shop,
        lemons=Lemons(0.2, 10.0, retire_after), policy=policy,
    )  # fmt: skip


def _mean(plan: CampaignPlan, key: str = "") -> float:
    results = [simulate_campaign(plan, seed) for seed in range(12)]
    return sum(result.draws[key] if key else sum(result.failures.values()) for result in results) / len(results)


def test_repairs_purge_lemons() -> None:
    """20 of 100 machines fail 10 times as often for 139 days; the job waits for each to be repaired.

    Repairs that never help: 139 (100 x 0.01 + 20 x 0.09) = 389 failures in the mean. That always do: every lemon has
    failed after 10 days and is good from then on, 139 + 20 x 0.9 = 157 failures. That help every other time: twice as
    many visits of lemons, 175.
    """
    for silent, expected in ((1.0, 389), (0.5, 175), (0.0, 157)):
        shop = Shop(Duration(3600.0), 0.0, ZERO, silent_automatic=silent)
        assert _mean(_lemons(shop, policy="wait")) == pytest.approx(expected, rel=0.09)


def test_machines_are_retired_after_so_many_repairs() -> None:
    """A machine that has been in the shop twice does not come back: lemons go first, and failures with them."""
    shop = Shop(Duration(3600.0), 0.0, ZERO, silent_automatic=1.0)
    assert _mean(_lemons(shop, 2), "retired") > 15
    assert _mean(_lemons(shop, 2)) < 0.97 * _mean(_lemons(shop))


def test_the_last_machine_is_missed() -> None:
    """With every failed machine retired at once and no spare, the run cannot go on, and says so."""
    plan = _lemons(Shop(Duration(3600.0), 0.0, ZERO), retire_after=1)
    with pytest.raises(ScenarioError, match=r"lacks 1 of 100 machines, no spare is left .*101 were retired"):
        simulate_campaign(plan, 0)
