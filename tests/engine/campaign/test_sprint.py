"""Plain campaigns in one loop: the same record as the job's, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.campaign import job, simulate_campaign
from simulator.engine.campaign.sprint import is_plain
from simulator.physics.campaign.plan import (
    ALL_MACHINES,
    CampaignPlan,
    Duration,
    Hazard,
    JobFailure,
    Lemons,
    Pause,
    Phase,
    Pool,
    Shop,
    Tier,
)


@st.composite
def plain_plans(draw: st.DrawFn) -> CampaignPlan:
    """Everything that the loop knows: some hundred failures, machines that run out now and then."""
    step, every, steps = draw(st.floats(0.1, 20.0)), draw(st.integers(1, 40)), draw(st.integers(1, 20_000))
    blocking, cycle = draw(st.sampled_from([0.0, 3.3, 30.0])), step * every
    persist = draw(st.sampled_from([0.0, 0.3, 1.0])) * cycle
    restart = draw(st.floats(0.0, 300.0))
    mtbf = draw(st.floats(2.0, 30.0)) * (cycle + blocking + restart + 60.0)
    during = draw(st.booleans())
    sigma = draw(st.sampled_from([0.0, 1.0]))
    share = 0.0 if during else draw(st.sampled_from([0.0, 0.5]))
    failures = tuple(
        JobFailure(
            name, Hazard(kind, rate=part / mtbf, shape=0.8), effect=effect,  # type: ignore[arg-type]
            detection=Duration(draw(st.floats(0.0, 60.0)), sigma), diagnosis=Duration(draw(st.floats(0.0, 60.0))),
            machine_share=machine, machines=draw(st.sampled_from([((1, 1.0),), ((1, 0.9), (3, 0.1))])),
            repair=draw(st.none() | st.floats(0.0, 1e4).map(Duration)), lemon_share=share if name == "node" else 0.0,
        )
        for name, part, machine, effect, kind in (
            ("node", 0.5, 1.0, "crash", "poisson"), ("switch", 0.2, 0.5, "hang", "renewal"),
            ("crash", 0.3, 0.0, "crash", "poisson"),
        )
    )  # fmt: skip
    pauses: tuple[Pause, ...] = ()
    if not share and draw(st.booleans()):
        failures += (
            JobFailure("sdc", Hazard("poisson", rate=0.1 / mtbf), effect="silent", detection=Duration(mtbf, 1.0)),
            JobFailure("flap", Hazard("poisson", rate=0.2 / mtbf), effect="pause", detection=Duration(20.0)),
            JobFailure("again", Hazard("poisson", rate=0.1 / mtbf), detection=Duration(20.0), wrong_diagnosis=0.5),
        )
        pauses = (Pause("maintenance", "planned", Hazard("poisson", rate=0.1 / mtbf), Duration(600.0)),)
    return CampaignPlan(
        phases=(Phase("a", steps, step, 1.0, (Tier("storage", every, None, blocking, persist, 7.0, ALL_MACHINES),)),),
        machines=32,
        failures=failures,
        pauses=pauses,
        restart=Duration(restart, sigma),
        restart_in_place=draw(st.sampled_from([None, Duration(0.0), Duration(5.0)])),
        start=Duration(3.0),
        failures_during_restart=during,
        hot=Pool(draw(st.integers(0, 6)), Duration(draw(st.sampled_from([0.0, 10.0])))),
        warm=Pool(draw(st.integers(0, 4)), Duration(20.0)),
        preempted=Pool(draw(st.integers(0, 2)), Duration(60.0)),
        shop=Shop(Duration(mtbf, 1.0), 0.5, Duration(3 * mtbf, 0.5), 0.4, 0.2),
        lemons=draw(st.sampled_from([Lemons(0.0, 1.0), Lemons(0.3, 5.0)])),
        step_factor=draw(st.sampled_from([1.0, 1.02])),
        garbage_collection=draw(st.sampled_from([0.0, 0.01])),
    )


@given(plain_plans(), st.integers(0, 2**31))
def test_the_loop_is_the_job(plan: CampaignPlan, seed: int) -> None:
    """Every field of the result, with the loop and without it: bit for bit, but for sums of machine-seconds."""
    assert is_plain(plan)
    looped = simulate_campaign(plan, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "is_plain", lambda plan: False)
        stepped = simulate_campaign(plan, seed)
    # Differences of sums of up to 45 machines' seconds: exact to the rounding of the sums, not of what is left.
    assert looped.machine_s == pytest.approx(stepped.machine_s, abs=1e-9 * 45 * stepped.wall_clock)
    assert repr(replace(looped, machine_s={})) == repr(replace(stepped, machine_s={}))


def test_the_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does nearly all of a plain campaign: 200 failures leave the job less than 20 stretches."""
    failure = JobFailure("node", Hazard("poisson", rate=1 / 5000), repair=Duration(3000.0))
    plan = CampaignPlan(
        phases=(Phase("a", 100_000, 10.0, 1.0, (Tier("storage", 10, None, 1.0, 0.0, 7.0),)),),
        machines=32, failures=(failure,), restart=Duration(30.0), hot=Pool(9, Duration(0.0)),
    )  # fmt: skip
    stretches = []
    inner = job.train

    def counted(self: Any) -> Any:
        stretches.append(self.now)
        return inner(self)

    monkeypatch.setattr(job, "train", counted)
    result = simulate_campaign(plan, 0)
    assert result.failures["node"] > 150
    assert len(stretches) < 20
