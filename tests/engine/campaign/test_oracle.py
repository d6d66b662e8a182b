"""The engine's jumps against a walk through every step: the same record on random plans with injected failures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine.campaign import simulate_campaign
from simulator.physics.campaign.plan import (
    ALL_MACHINES,
    ZERO,
    CampaignPlan,
    Duration,
    Elastic,
    Evaluation,
    Hazard,
    JobFailure,
    Pause,
    Phase,
    Pool,
    Shop,
    SlowSource,
    State,
    Tier,
)
from tests.engine.campaign.walk import Walk

EFFECTS = ("crash", "hang", "silent", "pause", "rewind")


def step_times(phase: int, state: State) -> float:
    """Whole seconds more for each slow component and each missing replica."""
    return (3.0, 5.0, 2.0)[phase] + sum(severity for _, _, severity in state)


@st.composite
def injected_plans(draw: st.DrawFn) -> CampaignPlan:
    """Whole seconds everywhere, and arrivals at a fraction of their own: exact in floats, and no two at once."""
    seconds: Callable[[int], st.SearchStrategy[Duration]] = lambda most: st.integers(0, most).map(  # noqa: E731
        lambda whole: Duration(float(whole))
    )
    phases = draw(st.integers(1, 3))
    inner = draw(st.integers(1, 4))
    nested = [inner, inner * draw(st.integers(1, 3))][: draw(st.integers(1, 2))]
    timed = draw(st.integers(0, 40)) if len(nested) == 1 and draw(st.booleans()) else None
    survives = [*[draw(st.integers(0, 2)) for _ in nested[:-1]], ALL_MACHINES]
    tiers = tuple(
        Tier(f"tier {number}", every, None, float(draw(st.integers(0, 5))), float(draw(st.integers(0, 2 * every))),
             float(draw(st.integers(0, 5))), survives[number])
        for number, every in enumerate(nested)
    )  # fmt: skip
    if timed is not None:  # an interval in time
        cycle = max(1.0, tiers[0].persist + timed)
        tiers = (tiers[0]._replace(seconds=tiers[0].blocking + cycle, every=math.ceil(cycle / step_times(0, ()))),)
    kinds = draw(
        st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9)), max_size=draw(st.sampled_from([4, 12, 40])))
    )
    times: list[list[float]] = [[] for _ in range(10)]
    for place, (second, kind) in enumerate(kinds):
        times[kind].append(second + (place + 1) / 64)

    def hazard(kind: int) -> Hazard:
        return Hazard("times", times=tuple(sorted(times[kind])))

    failures = tuple(
        JobFailure(
            f"{effect} {kind}", hazard(kind), effect=effect, detection=draw(seconds(30)), diagnosis=draw(seconds(5)),  # type: ignore[arg-type]
            machine_share=float(draw(st.booleans())) if effect != "pause" else 0.0,
            machines=((draw(st.integers(1, 3)), 1.0),), repair=draw(seconds(200)),
            rewind=draw(st.integers(0, 6)) if effect == "rewind" else 0,
        )
        for kind, effect in enumerate((*EFFECTS, "crash"))
    )  # fmt: skip
    pauses = (
        Pause("stall", "data_stall", hazard(6), draw(seconds(20))),
        Pause("maintenance", "planned", hazard(7), draw(seconds(20))),
    )
    slow = tuple(
        SlowSource(
            name, name, (draw(st.sampled_from([1, 10**12])),), 0.0, hazard(kind), (severity, severity),
            draw(st.none() | seconds(60)), draw(st.none() | seconds(60)), draw(st.booleans()),
        )
        for kind, name, severity in ((8, "slow_node", 2), (9, "degraded_link", 1))
    )  # fmt: skip
    policy = draw(st.sampled_from(["restart", "wait", "elastic"]))
    if policy == "elastic" or any(failure.machine_share for failure in failures):
        slow = slow[1:]  # which machines are lost is drawn: leave slow machines out
    elastic = Elastic(
        draw(st.integers(1, 3)), 8, draw(st.integers(1, 7)), draw(seconds(9)), draw(seconds(9)), draw(st.booleans())
    )
    return CampaignPlan(
        phases=tuple(
            Phase(f"phase {number}", draw(st.integers(1, 25)), step_times(number, ()), 1.0, tiers)
            for number in range(phases)
        ),
        machines=8 * elastic.nodes_per_replica,
        failures=failures,
        slow=slow,
        pauses=pauses,
        evaluation=draw(st.none() | st.builds(Evaluation, st.integers(1, 9), st.integers(1, 9).map(float))),
        restart=draw(seconds(20)),
        restart_in_place=draw(st.none() | seconds(9)),
        start=draw(seconds(9)),
        failures_during_restart=draw(st.booleans()),
        hot=Pool(draw(st.integers(0, 3)), draw(seconds(5)) if draw(st.booleans()) else ZERO),
        shop=Shop(draw(seconds(200)), 0.0, ZERO),
        policy=policy,  # type: ignore[arg-type]
        elastic=elastic,
        garbage_collection=float(draw(st.integers(0, 1))),
    )


@settings(max_examples=150)
@given(injected_plans())
def test_jumping_equals_walking(plan: CampaignPlan) -> None:
    """The same wall-clock, seconds by fate and cause, failures, recoveries and saves."""
    walk = Walk(plan, step_times)
    walk.run()
    result = simulate_campaign(plan, 0, step_times=step_times, keep_records=True)
    assert result.wall_clock == walk.now
    assert result.time_s == pytest.approx(walk.time_s(), abs=1e-9)
    causes: dict[str, dict[str, Any]] = {}
    for (key, cause), seconds in walk.fates.items():
        if key != "productive" and seconds > 0:
            causes.setdefault(cause, {})[key] = pytest.approx(seconds)
    assert result.by_cause == causes
    assert result.failures == walk.struck
    assert result.recoveries == walk.recoveries
    assert list(result.saves.values()) == walk.durable(walk.now)
