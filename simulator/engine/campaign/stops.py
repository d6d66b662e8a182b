"""Saves and stops out of the timetable: the last save, planned stops, swaps of stragglers, replicas that rejoin.

Pinned by tests/engine/campaign/test_campaign.py and tests/engine/campaign/test_oracle.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from simulator.engine.campaign import hopeless
from simulator.engine.campaign.events import (
    DOWN,
    HELD,
    SAVE,
    Strike,
    get_well,
    next_swap,
    plan_lemons,
    set_state,
    spend,
)
from simulator.engine.campaign.history import Save
from simulator.engine.campaign.recovery import OF_MACHINES, replace_machines, shrink
from simulator.engine.campaign.replicas import regroup
from simulator.engine.campaign.timetable import Timetable
from simulator.records import Incident
from simulator.scenario.units import Seconds

if TYPE_CHECKING:
    from simulator.engine.campaign.job import Job


def save_to(
    job: Job, tiers: list[int], table: Timetable | None, key: str = "checkpoint", cause: str = "checkpoint"
) -> Strike | None:
    """Save to these tiers now, waiting for the write before; then evaluate, if that is due."""
    phase = job.plan.phases[job.phase_before()]
    struck = None
    for tier in tiers:
        if job.busy[tier] > job.now:
            struck = spend(job, key, cause, job.busy[tier] - job.now, SAVE)
        begun, blocking = job.now, phase.tiers[tier].blocking
        if struck is None and blocking > 0:
            struck = spend(job, key, cause, blocking, SAVE)
        if struck is not None:
            return struck
        durable = job.now + phase.tiers[tier].persist
        job.history.add_save(Save(job.step, tier, begun), durable)
        job.last[tier] = job.saved[tier] = job.step
        job.begun[tier] = begun
        job.busy[tier] = durable
    evaluation = job.plan.evaluation
    if table is not None and evaluation is not None and job.step % evaluation.every == 0:
        struck = spend(job, "evaluation", "evaluation", evaluation.duration, SAVE)
    return struck


def save_outermost(job: Job, key: str, cause: str) -> Strike | None:
    """Save to the outermost tier, unless it has this step already, and wait until that is durable."""
    tier, struck = job.tiers - 1, None
    if job.saved[tier] != job.step:
        struck = save_to(job, [tier], None, key, cause)
    if struck is None and job.busy[tier] > job.now:
        struck = spend(job, key, cause, job.busy[tier] - job.now, SAVE)
    return struck


def finish(job: Job) -> Strike | None:
    """All steps are done: the last save."""
    if job.found:
        return job.found.pop(0)
    job.pending.clear()
    return save_outermost(job, "checkpoint", "checkpoint")


def act(job: Job, kind: str, what: Any) -> Strike | None:
    """Do what waited for the start of a step."""
    began = job.now
    if kind == "planned":
        pause, seconds = what
        struck = _stop(job, "planned", pause.name, seconds, None)
        name = pause.name
    elif kind == "swap":
        if what not in job.slow:
            return None
        slow, name = job.slow[what], job.slow[what].source.name
        if slow.component[0] in OF_MACHINES and job.plan.policy == "restart" and not job.fleet.stands_by(job.now):
            job.unswapped.append(what)
            next_swap(job)
            return None
        struck = _stop(job, "straggling", name, 0.0, what)
    else:
        return _rejoin(job)
    job.after.clear()  # held up while it stood still anyway
    if job.ledger.records:
        down = job.now - began
        job.ledger.incidents.append(
            Incident(began, name, 0.0, down, 0.0, job.waited, down - job.waited, int(kind == "swap"), "", job.step)
        )
    return struck


def _stop(job: Job, key: str, cause: str, seconds: Seconds, swapped: int | None) -> Strike | None:
    """Save, stop, put another machine in the place of a slow one, restart and load.

    An elastic job goes on without the replica of the slow machine instead.
    """
    hopeless.count(job)
    job.waited = 0.0
    struck = save_outermost(job, key, cause)
    if swapped is not None and swapped not in job.slow:  # well again meanwhile
        return struck
    if struck is None:
        struck = spend(job, key, cause, seconds, DOWN)
    machine = False
    elastic = job.plan.elastic if job.plan.policy == "elastic" else None
    if struck is None and swapped is not None and get_well(job, swapped).component[0] in OF_MACHINES:
        machine = True
        job.replaced = True
        if elastic is not None and not job.fleet.missing:
            job.fleet.bring(job.now)
        job.fleet.drain(job.now)
        plan_lemons(job)
        next_swap(job)
        if elastic is not None:
            regroup(job, job.others.even())
            struck = shrink(job, cause, job.restarts.seconds(job.plan.restart))
        else:
            struck = replace_machines(job, key, cause)
    if struck is None:
        restart = job.plan.restart
        if swapped is not None and not machine:
            restart = job.plan.restart_in_place or restart
        elif machine and elastic is not None:
            restart = elastic.reconfigure
        struck = spend(job, key, cause, job.restarts.seconds(restart), DOWN)
    if struck is None and not (machine and elastic is not None and elastic.keeps_state):
        struck = spend(job, key, cause, job.plan.phases[job.phase_before()].tiers[-1].load, DOWN)
    if struck is None:
        job.replaced = False
        job.begun = [-math.inf] * job.tiers
    return struck


def _rejoin(job: Job) -> Strike | None:
    elastic = job.plan.elastic
    assert elastic is not None
    out = len(job.gone)
    if out >= job.replicas_out:
        return None
    struck = spend(job, "restart", "elastic", job.restarts.seconds(elastic.rejoin), HELD)
    if struck is None:
        job.replicas_out = out
        set_state(job)
    job.after.clear()
    return struck
