"""Elastic training: whose machines are missing, when a replica is back, and what that costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from simulator.engine.campaign import simulate_campaign
from simulator.engine.campaign.replicas import regroup, replica_of
from simulator.physics.campaign.plan import (
    ZERO,
    CampaignPlan,
    Duration,
    Elastic,
    Hazard,
    JobFailure,
    Phase,
    Pool,
    Shop,
    SlowSource,
    State,
    Tier,
)

ELASTIC = Elastic(2, 4, 1, Duration(4.0), Duration(1.0), keeps_state=True)


def _job(elastic: Elastic = ELASTIC, **gone: int) -> Any:
    lacks = {int(name[1:]): count for name, count in gone.items()}
    missing = sum(lacks.values())
    return SimpleNamespace(
        plan=SimpleNamespace(elastic=elastic), gone=lacks, arriving=0, fleet=SimpleNamespace(missing=missing)
    )


def test_victims_are_drawn_evenly_from_the_machines_left() -> None:
    """Of 4 replicas of 2, one lacks one and one both: 1, 0, 2 and 2 machines are left, each hit as often."""
    gone = {0: 1, 1: 2}
    assert [replica_of(gone, 2, 4, (place + 0.5) / 5) for place in range(5)] == [0, 2, 2, 3, 3]
    assert [replica_of({}, 3, 2, (place + 0.5) / 6) for place in range(6)] == [0, 0, 0, 1, 1, 1]


def test_scattered_failures_cost_a_replica_each() -> None:
    """The 1st, the 7th and the 4th machine of 8 fail one by one, each in another replica."""
    job = _job()
    for victim, out in ((0.05, 1), (0.8, 2), (0.4, 3)):
        job.fleet.missing += 1
        regroup(job, victim)
        assert len(job.gone) == out
    assert job.gone == {0: 1, 3: 1, 1: 1}


def test_a_failure_takes_neighbours() -> None:
    """Five at once from the fourth replica on: it, the first and one of the second; never more than there are."""
    job = _job()
    job.fleet.missing = 5
    regroup(job, 0.99)
    assert job.gone == {3: 2, 0: 2, 1: 1}
    job.fleet.missing = 12
    regroup(job, 0.3)
    assert job.gone == {0: 2, 1: 2, 2: 2, 3: 2}


def test_a_machine_goes_where_fewest_are_missing() -> None:
    """One lacks two, one lacks one: the first that comes completes the latter, then it takes two."""
    job = _job(r0=2, r2=1)
    seen = []
    for _ in range(3):
        job.fleet.missing -= 1
        regroup(job)
        seen.append(dict(job.gone))
    assert seen == [{0: 2}, {0: 1}, {}]


def test_machines_on_their_way_are_missed() -> None:
    """Taken from a pool, not yet there: nothing changes until it arrives."""
    job = _job(r1=1)
    job.fleet.missing, job.arriving = 0, 1
    regroup(job)
    assert job.gone == {1: 1}
    job.arriving = 0
    regroup(job)
    assert job.gone == {}


def _slower(phase: int, state: State) -> float:
    return 10.0 + 2.0 * sum(each[2] for each in state)


def test_a_spare_joins_in_the_background() -> None:
    """A node lost at 22 with a spare: 25 known, 29 on with one replica fewer, step by step of 12 s from 2 on.

    The spare is swapped in 5 s after 25 and starts in 7: there at 37. Step 3 lasts until 41, then the job pays 1 s to
    take it in: 42, seven steps more until 112. Only step 3 was 2 s longer; 22 - 20 = 2 s of it were lost before.
    """
    node = JobFailure("node", Hazard("times", times=(22.0,)), detection=Duration(3.0), repair=Duration(1e6))
    plan = CampaignPlan(
        phases=(Phase("a", 10, 10.0, 1.0, (Tier("storage", 10, None, 0.0, 0.0, 0.0),)),), machines=8, failures=(node,),
        restart=Duration(7.0), hot=Pool(1, Duration(5.0)), policy="elastic", elastic=ELASTIC,
    )  # fmt: skip
    result = simulate_campaign(plan, 0, step_times=_slower)
    times = {key: seconds for key, seconds in result.time_s.items() if seconds}
    assert times == {"productive": 100.0, "lost_work": 2.0, "detection": 3.0, "restart": 5.0, "degraded": 2.0}
    assert result.by_cause["elastic"] == {"restart": 1.0, "degraded": 2.0}
    assert result.wall_clock == 112.0


def test_spares_at_once_are_not_free() -> None:
    """A swap and a start in no time: the job still pays `reconfigure` and `rejoin` for each failure."""
    node = JobFailure("node", Hazard("times", times=(5.0, 105.0)), repair=Duration(1e6))
    plan = CampaignPlan(
        phases=(Phase("a", 200, 10.0, 1.0, (Tier("storage", 200, None, 0.0, 0.0, 0.0),)),), machines=8,
        failures=(node,), hot=Pool(2, ZERO), policy="elastic", elastic=ELASTIC,
    )  # fmt: skip
    result = simulate_campaign(plan, 0, step_times=_slower)
    assert result.time_s["restart"] == 2 * (4.0 + 1.0)
    assert result.time_s["degraded"] == 0.0


def test_a_slow_machine_is_swapped_in_the_background() -> None:
    """Slow from 12 on, found at 22: step 3 takes 20 to 32, and 4 s later the job goes on without the replica.

    The spare of the test before is there at 32 + 5 + 7 = 44: step 4 takes 36 to 48, then 1 s to take it in and six
    steps until 109. Nothing is loaded, because the others hold the state.
    """
    slow = SlowSource(
        "slow", "slow_node", (8,), 0.0, Hazard("times", times=(12.0,)), (1, 1), None, Duration(10.0), swap=True
    )
    plan = CampaignPlan(
        phases=(Phase("a", 10, 10.0, 1.0, (Tier("storage", 10, None, 0.0, 0.0, 9.0),)),), machines=8, slow=(slow,),
        restart=Duration(7.0), hot=Pool(1, Duration(5.0)), policy="elastic", elastic=ELASTIC,
        shop=Shop(Duration(1e6), 0.0, ZERO),
    )  # fmt: skip
    result = simulate_campaign(plan, 0, step_times=_slower)
    times = {key: seconds for key, seconds in result.time_s.items() if seconds}
    assert times == {"productive": 100.0, "straggling": 6.0, "restart": 1.0, "degraded": 2.0}
