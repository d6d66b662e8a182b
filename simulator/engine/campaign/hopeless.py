"""Refusing runs that would never end, with the reason: beforehand by renewal theory, afterwards by a count.

Pinned by tests/engine/campaign/test_refusals.py.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from simulator.errors import ScenarioError
from simulator.physics.campaign.expected import healthy_run_time
from simulator.physics.campaign.plan import ALL_MACHINES, CampaignPlan, Hazard, JobFailure, Phase
from simulator.physics.checkpoints import mean_downtime, renewal_ettr
from simulator.scenario.units import Seconds, readable_time

if TYPE_CHECKING:
    from simulator.engine.campaign.job import Job

# Beyond these a run is not worth simulating: it never ends in practice. Assumption: no one waits 1,000 times the
# healthy time, 2 million stops (minutes to simulate) are more than any run survives, and a run that comes no further
# in 5,000 failures never will: one in 1,000 keeps something where it takes 1,000 times as long. Short runs may wait
# for a repair of weeks: what ends within a year is simulated.
MAX_SLOWDOWN = 1000.0
MAX_FAILURES = 2_000_000
MAX_STUCK = 5_000
YEAR: Seconds = 365 * 86400.0


def refuse_hopeless(plan: CampaignPlan) -> None:
    """Raise for an impossible plan and for a run that would hardly ever end.

    A bound from below: of each tier, only the failures that no nearer one survives; the least rate of each class over
    time; no waiting. Loss spikes are a random walk, back `rewind` steps for each of them: that it ever gets to the end
    has at most the probability e^(-θ (H - r)), with 1 - θ M = e^(-θ r) (Lundberg's inequality; M mean time between
    spikes, r the time of the steps they go back, H that of all steps).

    Raises
    ------
    ScenarioError
        With the reason.
    """
    check(plan)
    healthy = sum(phase.steps * phase.step_time for phase in plan.phases)
    _refuse_spikes(plan, healthy)
    if plan.policy == "elastic":
        return
    phase = max(plan.phases, key=lambda each: each.step_time)
    stops = [each for each in plan.failures if each.effect in ("crash", "hang")]
    rates = [_least_rate(each.hazard, MAX_SLOWDOWN * healthy) * (1 - each.lemon_share) for each in stops]
    for place in range(len(phase.tiers)):
        random = [(each, rate * _beyond(each, phase, place)) for each, rate in zip(stops, rates, strict=True)]
        random = [each for each in random if each[1] > 0]
        if random:
            _refuse_tier(plan, phase, place, random, healthy)


def _refuse_tier(
    plan: CampaignPlan, phase: Phase, place: int, random: list[tuple[JobFailure, float]], healthy: Seconds
) -> None:
    tier, rates = phase.tiers[place], [rate for _, rate in random]
    restart = min(
        (plan.restart_in_place or plan.restart).median, plan.restart.median
    )  # medians: lognormal times are shorter than that half of the time
    loads = min(each.load for each in phase.tiers[place:])
    downs = [
        each.detection.median + each.diagnosis.median + (each.restart.median if each.restart else restart) + loads
        for each, _ in random
    ]
    downtime = mean_downtime(downs, rates, failures_during_restart=plan.failures_during_restart)
    mtbf = 1 / sum(rates)
    steps = min(tier.every, phase.steps)
    work, evaluated, unit = steps * phase.step_time, 0.0, steps
    if plan.evaluation is not None and plan.evaluation.every < plan.steps:
        evaluated = max(1, steps // plan.evaluation.every) * plan.evaluation.duration
        unit = max(steps, plan.evaluation.every)

    def part(seconds: Seconds) -> float:
        return renewal_ettr(
            seconds, tier.blocking, downtime, mtbf,
            persist=min(tier.persist, seconds), failures_during_restart=plan.failures_during_restart,
        )  # fmt: skip

    ettr = part(work)
    if evaluated and ettr * MAX_SLOWDOWN >= 1:  # one save in so many steps has to get through an evaluation as well
        work += evaluated
        ettr = min(ettr, part(work) / work * unit * phase.step_time)
    if ettr * MAX_SLOWDOWN >= 1:
        return
    times = f"{1 / ettr:.3g} times" if ettr > 0 else "more than 1e300 times"
    lost = f" and loses all but {tier.name!r}" if place else ""
    raise ScenarioError(
        f"this run would hardly ever end: the job fails every {readable_time(mtbf)} in the mean{lost}, but needs "
        f"{readable_time(work + tier.blocking + tier.persist)} without a failure to keep a save and "
        f"{readable_time(restart + loads)} after detection to restart; it would take {times} as long as "
        f"without failures (healthy: {readable_time(healthy)}; at most {MAX_SLOWDOWN:g} times are simulated): "
        "save more often, restart faster or lower the failure rates"
    )


def _beyond(failure: JobFailure, phase: Phase, place: int) -> float:
    """Part of a class' failures that no tier nearer than this one survives."""
    survived = max((tier.survives for tier in phase.tiers[:place]), default=-1)
    odds, more = failure.burst
    lost = sum(
        share * ((1 - odds) * (count > survived) + odds * (count + more > survived))
        for count, share in failure.machines
    )
    return failure.machine_share * lost + (1 - failure.machine_share) * (survived < 0)


def _least_rate(hazard: Hazard, span: Seconds) -> float:
    """The lowest rate that a class has in the first `span` seconds; 0 for injected failures and parts that age."""
    if hazard.kind not in ("poisson", "renewal"):
        return 0.0
    edges = [0.0, *(edge for window in hazard.windows for edge in (window.start, window.end) if 0 < edge < span)]
    return min(
        hazard.rate * math.prod(window.factor for window in hazard.windows if window.start <= edge < window.end)
        for edge in edges
    )


def _refuse_spikes(plan: CampaignPlan, healthy: Seconds) -> None:
    step = min(phase.step_time for phase in plan.phases)
    for spike in plan.failures:
        rate = _least_rate(spike.hazard, MAX_SLOWDOWN * healthy) if spike.effect == "rewind" else 0.0
        back = spike.rewind * step
        if rate * back <= 1:
            continue
        low, high = 0.0, rate  # θ: the positive root of 1 - θ/rate = e^(-θ back)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if 1 - middle / rate > math.exp(-middle * back) else (low, middle)
        if low * (healthy - back) > math.log(MAX_SLOWDOWN * healthy * rate):
            raise ScenarioError(
                f"this run would hardly ever end: {spike.name!r} goes back {spike.rewind} steps "
                f"({readable_time(back)} of work at least) every {readable_time(1 / rate)} in the mean: "
                "make it rarer, or go back less far"
            )


_ADVICE = {
    "waiting": "add spares or repair faster",
    "degraded": "make link flaps and other pauses rarer or shorter",
    "data_stall": "make data stalls rarer or shorter",
    "planned": "plan fewer or shorter stops",
    "straggling": "swap fewer slow machines, or make them rarer",
    "evaluation": "evaluate less often or for a shorter time",
    "rewind": "make loss spikes rarer, or go back less far",
}


def time_limit(plan: CampaignPlan) -> Seconds:
    """When a run that has not ended is given up."""
    return max(MAX_SLOWDOWN * healthy_run_time(plan), YEAR)


def count(job: Job) -> None:
    """The job is stopped once more.

    Raises
    ------
    ScenarioError
        If that is once too often, or too late.
    """
    if job.strikes >= MAX_FAILURES:
        raise endless(job)
    check_time(job)
    job.strikes += 1


def check_time(job: Job) -> None:
    """Raise if the run takes too long."""
    if job.now > job.limit:
        raise endless(job)


def endless(job: Job) -> ScenarioError:
    """The error for a run that was given up, with what most of its time went to."""
    counted = "failure" if job.strikes == 1 else "failures"
    newest = job.history.newest(job.now, ALL_MACHINES, job.step)
    kept = max(job.farthest, newest.step if newest is not None else 0)
    spent = job.ledger.seconds
    (key, cause), seconds = max(spent.items(), key=lambda each: each[1], default=(("", ""), 0.0))
    why = f"; {seconds / job.now:.0%} of that was {key} ({cause})" if seconds > 0 else ""
    return ScenarioError(
        f"this run does not end: after {job.strikes} {counted} in {job.now:.4g} s, {kept} of {job.plan.steps} steps "
        f"are kept{why}: {_ADVICE.get(key, 'save more often, restart faster or lower the failure rates')}"
    )


def check(plan: CampaignPlan) -> None:
    """Raise for what no campaign can be.

    Raises
    ------
    ScenarioError
        Naming what is wrong and what is allowed.
    """
    if not plan.phases:
        raise ScenarioError("campaign: no phase; there must be at least one")
    names = [tuple(tier.name for tier in phase.tiers) for phase in plan.phases]
    if len(set(names)) > 1 or not names[0]:
        raise ScenarioError(f"campaign: the phases save to {names}; all must save to the same tiers, at least one")
    for phase in plan.phases:
        if phase.steps < 1 or not 0 < phase.step_time < math.inf:
            raise ScenarioError(
                f"campaign: phase {phase.name!r} has {phase.steps} steps of {phase.step_time!r} s: neither may be zero"
            )
        for tier in phase.tiers:
            numbers = (tier.blocking, tier.persist, tier.load)
            if tier.every < 1 or any(not 0 <= number < math.inf for number in numbers):
                raise ScenarioError(
                    f"campaign: tier {tier.name!r} of phase {phase.name!r}: saved every {tier.every} steps, "
                    f"{numbers} s; a number of steps and finite times are needed"
                )
            work = tier.every * phase.step_time if tier.seconds is None else tier.seconds - tier.blocking
            if tier.every < phase.steps and tier.persist > work * (1 + 1e-9):
                raise ScenarioError(
                    f"campaign: a save to {tier.name!r} takes {readable_time(tier.persist)} in the background but "
                    f"the next one begins {readable_time(work)} later; save at most every"
                    f" {math.ceil(tier.persist / phase.step_time)} steps"
                )
    named = [(each.name, each.hazard) for each in plan.failures]
    named += [(each.name, each.hazard) for each in plan.slow]
    named += [(each.name, each.hazard) for each in plan.pauses]
    for name, hazard in named:
        if not 0 <= hazard.rate < math.inf:
            raise ScenarioError(f"campaign: the rate {hazard.rate!r} of {name!r} must be finite and not negative")
        if hazard.shape is not None and not hazard.shape > 0:
            raise ScenarioError(f"campaign: the Weibull shape {hazard.shape!r} of {name!r} must be more than 0")
        if any(not 0 <= time < math.inf for time in hazard.times) or any(b < a for a, b in pairwise(hazard.times)):
            raise ScenarioError(f"campaign: the times of {name!r} must be in order, finite and not negative")
    for kind in (plan.failures, plan.slow, plan.pauses):
        called = [each.name for each in kind]
        if len(set(called)) < len(called):
            raise ScenarioError(f"campaign: two of {called} share a name; each needs its own")
