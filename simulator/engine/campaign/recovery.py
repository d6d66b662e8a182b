"""Coming back: what a failure loses, and the recovery until training runs again.

Pinned by tests/engine/campaign/test_campaign.py and tests/engine/campaign/test_oracle.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from simulator.engine.campaign import hopeless
from simulator.engine.campaign.events import (
    DOWN,
    WAIT,
    Strike,
    expect_machine,
    get_well,
    happen,
    next_swap,
    plan_lemons,
    set_state,
    set_timer,
    spend,
)
from simulator.engine.campaign.marks import Mark
from simulator.engine.campaign.replicas import regroup
from simulator.physics.campaign.plan import JobFailure
from simulator.records import Incident
from simulator.scenario.units import Seconds

if TYPE_CHECKING:
    from simulator.engine.campaign.job import Job

OF_MACHINES = ("slow_gpu", "slow_node", "slow_nic")


def recover(job: Job, strike: Strike) -> Strike | None:
    """Detect, replace machines, restart and load; returns the failure that cut it short, if any."""
    hopeless.count(job)
    failure, mark, _, lemon = strike
    plan, fleet, ledger = job.plan, job.fleet, job.ledger
    name, began, effect = failure.name, job.now, failure.effect
    job.after.clear()
    job.pending = [each for each in job.pending if each[0] != "planned"]
    if effect != "silent":
        job.counts[name] += 1
    machines = mark.machines
    elastic = plan.elastic if plan.policy == "elastic" else None
    keeps = elastic is not None and elastic.keeps_state and machines > 0 and effect in ("crash", "hang")
    if elastic is not None and not fleet.missing:
        fleet.bring(began)
    lost, tier = _go_back(job, strike, keeps)
    back = effect == "rewind"
    ledger.add("rewind" if back else "lost_work", name, lost)
    if ledger.records:
        ledger.gave_up(job.step, "rewind" if back else "lost_work")
    named = (0.0 if effect == "silent" else mark.detection) + mark.diagnosis
    taken = 0
    if machines:
        job.replaced = True
        if mark.wrong:
            taken = fleet.drain(began + named)
            job.again.append(Strike(failure, _redraw(job, failure, mark), began, lemon))
        else:
            taken = fleet.lose(failure, mark, machines, began + named, lemon)
            if job.slow:
                _lose_slow(job, taken)
        if elastic is not None:
            regroup(job, mark.victim)
        plan_lemons(job)
    job.waited = 0.0
    struck = spend(job, "rewind" if back else "detection", name, named, DOWN)
    detected = job.now - began
    if struck is None:
        struck = _come_back(job, "rewind" if back else "restart", strike, keeps, tier)
    if ledger.records:
        source = "replicas" if keeps else plan.phases[0].tiers[tier].name
        down, waited = job.now - began, job.waited
        when = strike.time if effect == "silent" else began
        ledger.incidents.append(
            Incident(
                when, name, lost, down, detected, waited, down - detected - waited, taken, source, job.step
            )
        )  # fmt: skip
    return struck


def _come_back(job: Job, key: str, strike: Strike, keeps: bool, tier: int) -> Strike | None:
    failure, mark = strike.failure, strike.mark
    plan, fleet, name = job.plan, job.fleet, failure.name
    elastic = plan.elastic if plan.policy == "elastic" else None
    if elastic is None:
        struck = replace_machines(job, key, name) if fleet.missing else None
        seconds = mark.restart if job.replaced else mark.in_place
    else:
        struck = shrink(job, name, mark.restart)
        seconds = mark.restart if job.replaced else mark.in_place
        if strike.mark.machines:
            seconds = job.restarts.seconds(elastic.reconfigure)
    if struck is None and seconds > 0:
        struck = spend(job, key, name, seconds, DOWN)
    if struck is None and not keeps:
        load = plan.phases[job.phase_before()].tiers[tier].load
        if load > 0:
            struck = spend(job, key, name, load, DOWN)
    if struck is None:
        job.replaced = False
        next_swap(job)
        source = "replicas" if keeps else plan.phases[0].tiers[tier].name
        job.recoveries[source] = job.recoveries.get(source, 0) + 1
    return struck


def _go_back(job: Job, strike: Strike, keeps: bool) -> tuple[Seconds, int]:
    """Give up the steps that are lost; returns their seconds, and the tier that the state comes back from."""
    history, machines, effect = job.history, strike.mark.machines, strike.failure.effect
    now, step, last = job.now, job.step, job.tiers - 1
    for tier, busy in enumerate(job.busy):
        if busy > now:
            history.discard(tier, job.saved[tier])
            job.busy[tier], job.saved[tier] = -math.inf, -1
    lost, job.lost_partial = job.lost_partial, 0.0
    if keeps:
        history.lose(machines, step)
        for tier, survives in enumerate(history.survives):
            if survives < machines:
                job.saved[tier] = -1
        job.last, job.begun = [step] * job.tiers, [-math.inf] * job.tiers
        _count_kept(job, step)
        return lost, last
    before = strike.time if effect == "silent" else math.inf
    limit = max(0, step - strike.failure.rewind) if effect == "rewind" else step
    save = history.newest(now, machines, limit, before)
    if save is None:
        save = history.oldest()
    lost += history.cut(save.step)
    history.lose(machines, save.step)
    job.step = save.step
    job.last, job.begun = [save.step] * job.tiers, [-math.inf] * job.tiers
    job.saved = [-1] * job.tiers
    job.saved[save.tier] = save.step
    if save.tier < last:  # the outermost tier may hold the same step
        far = history.newest(now, 0, save.step, math.inf, last)
        job.saved[last] = far.step if far is not None else -1
    if job.silent:
        job.silent = [each for each in job.silent if each is not strike and each.time <= save.begun]
        job.found = [each for each in job.found if each in job.silent]
    if history.is_long():
        job.forget(now)
    _count_kept(job, save.step)
    return lost, save.tier


def _count_kept(job: Job, step: int) -> None:
    """A failure that leaves the job no further than one before it did is one of too many, sooner or later."""
    job.stuck += 1
    if step > job.farthest:
        job.farthest, job.stuck = step, 0
    elif job.stuck > hopeless.MAX_STUCK:
        raise hopeless.endless(job)


def _redraw(job: Job, failure: JobFailure, mark: Mark) -> Mark:
    """The same failure once more: as many machines, everything else anew."""
    draws, plan = job.others, job.plan
    seconds, manual, cured = job.fleet.repair(failure.repair)
    return Mark(
        (
            draws.seconds(failure.detection), draws.seconds(failure.diagnosis),
            draws.seconds(failure.restart or plan.restart),
            draws.seconds(failure.restart or plan.restart_in_place or plan.restart),
            mark.machines, draws.even() < failure.wrong_diagnosis, draws.even(), seconds, manual, cured,
        )
    )  # fmt: skip


def _lose_slow(job: Job, machines: int) -> None:
    """Lost machines may be the slow ones."""
    for _ in range(machines):
        slow = [number for number, each in job.slow.items() if each.component[0] in OF_MACHINES]
        place = int(job.others.even() * job.plan.machines)
        if place < len(slow):
            get_well(job, slow[place])


def replace_machines(job: Job, key: str, cause: str) -> Strike | None:
    """Machines from the pools, then from the shop."""
    fleet = job.fleet
    seconds = sum(job.restarts.seconds(duration) for _, duration in fleet.fill(job.now))
    plan_lemons(job)
    struck = spend(job, key, cause, seconds, DOWN) if seconds > 0 else None
    if struck is None and fleet.missing:
        began = job.now
        ready = fleet.wait(job.now)
        struck = spend(job, "waiting", cause, ready - began, WAIT)
        job.waited += ready - began
        plan_lemons(job)
    return struck


def shrink(job: Job, cause: str, restart: Seconds) -> Strike | None:
    """Drop the replicas that lack machines; wait where too few would be left.

    Machines from the pools are swapped in and started (`restart`) while the others train, then taken in.
    """
    fleet, elastic = job.fleet, job.plan.elastic
    assert elastic is not None
    fleet.join(job.now)
    waits = fleet.fill(job.now)
    if waits:
        seconds = sum(job.restarts.seconds(duration) for _, duration in waits) + restart
        job.arriving += fleet.came
        set_timer(job, job.now + seconds, "arrive", fleet.came)
    regroup(job)
    began = job.now
    while elastic.replicas - len(job.gone) < max(1, elastic.fewest):
        arrival = min((each[0] for each in job.timers if each[2] == "arrive"), default=math.inf)
        if math.isinf(arrival) and math.isinf(fleet.back()):
            fleet.wait(job.now)
        spend(job, "waiting", cause, max(0.0, min(arrival, fleet.back()) - job.now), WAIT)
        while job.timers[0][0] <= job.now:
            happen(job, WAIT)
        fleet.join(job.now)
        regroup(job)
    job.waited += job.now - began
    expect_machine(job)
    plan_lemons(job)
    job.replicas_out = len(job.gone)
    set_state(job)
    return None
