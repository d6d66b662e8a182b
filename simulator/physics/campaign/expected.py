"""What a campaign comes to on average: closed forms of a plan.

Without failures the run is a sum. With them it is renewal theory: between failures, a mean time M apart, training keeps
what the durable saves hold; each failure costs a recovery, and what was done since the save that survives it. A failure
that an inner tier survives is a renewal of that tier, one that only the storage survives is one of the storage. With
one tier and exponential failures this is exact but for the last cycle (`checkpoints.renewal_ettr`).

Limits: every distribution counts with its mean; nobody waits for a machine but under `policy: wait`; a fraction of a
tier's failures changes nothing about the others. Injected `times` are not counted.

Pinned by tests/physics/campaign/test_expected.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from simulator.physics.campaign.plan import CampaignPlan, Duration, Hazard, JobFailure, Phase, Tier
from simulator.physics.checkpoints import mean_downtime
from simulator.scenario.units import Seconds


def healthy_run_time(plan: CampaignPlan) -> Seconds:
    """Wall-clock of the run if nothing happens: start, steps, evaluations, saves, the last save until it is durable.

    After the last step there is no evaluation, and only the outermost tier is saved to.
    """
    total = plan.start.mean + _evaluations(plan)
    since: dict[str, int] = {}
    for phase in plan.phases:
        total += phase.steps * _pace(plan, phase)
        for tier in phase.tiers:
            first = max(1, tier.every - since.get(tier.name, 0))
            saves = 0 if phase.steps < first else 1 + (phase.steps - first) // tier.every
            since[tier.name] = since.get(tier.name, 0) + phase.steps
            if saves:
                since[tier.name] = phase.steps - first - (saves - 1) * tier.every
            total += saves * tier.blocking
    return total + _last_save(plan, since)


def _last_save(plan: CampaignPlan, since: dict[str, int]) -> Seconds:
    """A save after the last step, unless one was due there anyway; it waits for the write before it."""
    phase = plan.phases[-1]
    if not phase.tiers:
        return 0.0
    *near, tier = phase.tiers
    spared = -sum(each.blocking for each in near if not since[each.name])
    steps = since[tier.name]
    if not steps:
        return spared + tier.persist
    before = plan.steps > steps  # there was a save before
    wait = max(0.0, tier.persist - steps * _pace(plan, phase)) if before else 0.0
    return spared + wait + tier.blocking + tier.persist


def _pace(plan: CampaignPlan, phase: Phase) -> Seconds:
    """Seconds of a step in a whole cluster, on average over a day."""
    return phase.step_time * plan.step_factor * (1 + plan.diurnal[0] / 2) + plan.garbage_collection


def _evaluations(plan: CampaignPlan) -> Seconds:
    if plan.evaluation is None:
        return 0.0
    return (plan.steps - 1) // plan.evaluation.every * plan.evaluation.duration


def expected_run_time(plan: CampaignPlan) -> Seconds:
    """Mean wall-clock of the run; infinite where it never ends or exceeds a float."""
    healthy = healthy_run_time(plan)
    rates = [mean_rate(failure.hazard, healthy) for failure in plan.failures]
    slower = 1 + sum(mean_rate(pause.hazard, healthy) * pause.duration.mean for pause in plan.pauses)
    if not any(rates):
        return plan.start.mean + (healthy - plan.start.mean) * slower
    total = plan.start.mean + _evaluations(plan)
    for phase in plan.phases:
        share = kept_share(plan, phase, rates)
        if share <= 0:
            return math.inf
        total += phase.steps * _pace(plan, phase) / share
    return total * slower


def mean_rate(hazard: Hazard, span: Seconds) -> float:
    """Events per second of the whole job, on average over the first `span` seconds; injected ones are not counted."""
    if hazard.kind == "times" or not span > 0:
        return 0.0
    if hazard.kind == "batch":
        assert hazard.shape is not None
        before, after = (math.pow((hazard.age + time) / hazard.scale, hazard.shape) for time in (0.0, span))
        return hazard.units * (after - before) / span
    rate = hazard.rate
    for window in hazard.windows:
        inside = max(0.0, min(window.end, span) - max(window.start, 0.0))
        rate *= 1 + (window.factor - 1) * inside / span
    if hazard.burn_in is not None:
        excess, decay = hazard.burn_in
        rate *= 1 + excess * -math.expm1(-span / decay) * decay / span
    return rate


class _Losses(NamedTuple):
    """What one failure class costs: of its failures the share that each tier is the nearest to survive."""

    rate: float
    down: Seconds
    shares: tuple[float, ...]
    more: Seconds


def kept_share(plan: CampaignPlan, phase: Phase, rates: list[float]) -> float:
    """Part of wall-clock that is kept steps, in the long run of a phase; `rates` are those of the failures."""
    pace = _pace(plan, phase)
    if not phase.tiers:
        return 1.0 if not any(rates) else 0.0
    saving = 1 + sum(tier.blocking / tier.every for tier in phase.tiers) / pace
    pausing = sum(r * f.detection.mean for f, r in zip(plan.failures, rates, strict=True) if f.effect == "pause")
    stopping = [
        _losses(plan, phase, failure, rate)
        for failure, rate in zip(plan.failures, rates, strict=True)
        if failure.effect != "pause" and rate > 0
    ]
    if not stopping:
        return 1 / (saving * (1 + pausing))
    total = sum(losses.rate for losses in stopping)
    mtbf = 1 / total
    lost = sum(losses.rate / total * losses.more for losses in stopping)
    for place, tier in enumerate(phase.tiers):
        own = sum(losses.rate * losses.shares[place] for losses in stopping)
        if own > 0:
            lost += own / total * _lost(tier, min(tier.every, plan.steps) * pace * saving, 1 / own)
    down = mean_downtime(
        [losses.down for losses in stopping],
        [losses.rate for losses in stopping],
        failures_during_restart=plan.failures_during_restart,
    )
    if plan.failures_during_restart:
        down = mtbf * math.expm1(down / mtbf) if down < 700 * mtbf else math.inf
    return max(0.0, mtbf - lost) / (saving * (1 + pausing) * (mtbf + down))


def _lost(tier: Tier, cycle: Seconds, mtbf: Seconds) -> Seconds:
    """Mean time since a durable save began to be worth something, at a failure: mtbf less what is kept of it."""
    if cycle > 700 * mtbf:
        return mtbf
    return mtbf - cycle * math.exp(-tier.persist / mtbf) / math.expm1(cycle / mtbf)


def _losses(plan: CampaignPlan, phase: Phase, failure: JobFailure, rate: float) -> _Losses:
    pace = _pace(plan, phase)
    shares = [0.0] * len(phase.tiers)
    elastic = plan.policy == "elastic" and plan.elastic is not None
    more: Seconds = 0.0
    if failure.effect in ("silent", "rewind"):
        shares[-1] = 1.0
        more = failure.detection.mean if failure.effect == "silent" else failure.rewind * pace
    else:
        with_it, further = failure.burst
        sizes = [(0, 1 - failure.machine_share)]
        for count, odds in failure.machines:
            sizes.append((count, failure.machine_share * odds * (1 - with_it)))
            sizes.append((count + further, failure.machine_share * odds * with_it))
        for machines, odds in sizes:
            if machines and elastic and plan.elastic is not None and plan.elastic.keeps_state:
                more += odds * pace / 2
                continue
            nearest = next(
                (place for place, tier in enumerate(phase.tiers) if tier.survives >= machines), len(phase.tiers) - 1
            )
            shares[nearest] += odds
    detection = 0.0 if failure.effect == "silent" else failure.detection.mean
    down = detection + failure.diagnosis.mean + _return(plan, failure)
    down += sum(share * tier.load for share, tier in zip(shares, phase.tiers, strict=True))
    return _Losses(rate, down, tuple(shares), more)


def _return(plan: CampaignPlan, failure: JobFailure) -> Seconds:
    """Swap, wait and restart."""
    restart = failure.restart or plan.restart
    in_place = failure.restart or plan.restart_in_place or plan.restart
    if plan.policy == "elastic" and plan.elastic is not None:
        return_ = plan.elastic.reconfigure.mean
        if plan.elastic.fewest >= plan.elastic.replicas:  # it waits for new machines to be up
            return_ += _swap(plan).mean + restart.mean
    else:
        repair = failure.repair.mean if failure.repair is not None else _shop(plan)
        return_ = restart.mean + (repair if plan.policy == "wait" else _swap(plan).mean)
    return failure.machine_share * return_ + (1 - failure.machine_share) * in_place.mean


def _swap(plan: CampaignPlan) -> Duration:
    pools = (plan.hot, plan.warm, plan.preempted)
    return next((pool.swap for pool in pools if pool.size), Duration(0.0))


def _shop(plan: CampaignPlan) -> Seconds:
    return plan.shop.automatic.mean + plan.shop.escalation * plan.shop.manual.mean
