"""Training: the pace of the moment, a stretch of steps at that pace, and what a failure leaves of it.

Pinned by tests/engine/campaign/test_campaign.py and tests/engine/campaign/test_oracle.py.
"""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING

from simulator.engine.campaign.events import TRAIN, Strike, happen, hold_up, next_time
from simulator.engine.campaign.history import Pace, Stretch
from simulator.engine.campaign.stops import act, save_to
from simulator.engine.campaign.timetable import Saves, Timetable
from simulator.physics.campaign.plan import Evaluation, State
from simulator.scenario.units import Seconds

if TYPE_CHECKING:
    from simulator.engine.campaign.job import Job

_ROUNDING = 1e-12
# Part of a step by which a save may begin early, for the rounding of the clock.
_SAVE_SLACK = 1e-6
_DIURNAL_BINS = 24


def pace_now(job: Job, number: int) -> Pace:
    """Seconds of a step of a phase in the state of the moment."""
    plan = job.plan
    amplitude, period = plan.diurnal
    place = int(job.now * _DIURNAL_BINS / period * (1 + _ROUNDING)) % _DIURNAL_BINS if amplitude else 0
    key = (number, state_now(job), place)
    pace = job.paces.get(key)
    if pace is None:
        if len(job.paces) >= job.most_paces:
            job.forget_paces()
        swing = 1 + amplitude * (1 - math.cos(2 * math.pi * place / _DIURNAL_BINS)) / 2
        pace = job.paces[key] = _new_pace(job, number, swing)
    return pace


def state_now(job: Job) -> State:
    """What is slow or missing."""
    if job.state is None:
        components = list(job.components)
        if job.replicas_out:
            bisect.insort(components, ("missing_replicas", 0, job.replicas_out))
        job.state = tuple(components)
    return job.state


def _new_pace(job: Job, number: int, swing: float) -> Pace:
    plan, state = job.plan, state_now(job)
    healthy = plan.phases[number].step_time
    times = job.step_times
    degraded = max(healthy, times(number, state)) if state and times is not None else healthy
    extra = []
    missing = 0.0
    if job.replicas_out and times is not None:
        alone = tuple(component for component in state if component[0] == "missing_replicas")
        missing = min(degraded, max(healthy, times(number, alone))) - healthy
        extra.append(("degraded", "elastic", missing))
    names = sorted({slow.source.name for slow in job.slow.values()})
    extra += [("straggling", name, (degraded - healthy - missing) / len(names)) for name in names]
    steady = degraded * plan.step_factor
    extra += [
        ("slowdown", "step_factor", steady - degraded),
        ("slowdown", "diurnal", steady * (swing - 1)),
        ("slowdown", "garbage_collection", plan.garbage_collection),
    ]
    step = steady * swing + plan.garbage_collection
    return Pace(number, healthy, step, tuple(each for each in extra if each[2] > 0))


def timetable(job: Job, pace: Pace, origin: Seconds) -> Timetable:
    """Steps, saves and evaluations from here on at this pace, the next step starting at `origin`.

    With an interval in time, saves are right up to the first evaluation behind the first of them.
    """
    step, saves = job.step, []
    evaluation = _evaluation(job.plan.evaluation, step)
    for tier, (_, every, seconds, blocking, persist, _, _) in enumerate(job.plan.phases[pace.phase].tiers):
        if seconds is not None:
            every = _steps_until(seconds - blocking, pace.step, None)
            if math.isinf(job.begun[tier]):  # as if a save had ended where the job resumed
                job.begun[tier] = origin - blocking
            first = _steps_until(job.begun[tier] + seconds - origin, pace.step, evaluation)
        else:
            first = max(job.last[tier] + every - step, 1)
        saves.append(Saves(first, every, blocking, persist))
    return Timetable(pace.step, tuple(saves), evaluation)


def _steps_until(seconds: Seconds, step: Seconds, evaluation: tuple[int, int, Seconds] | None) -> int:
    """Steps, at least one, until one ends when so much time has passed."""
    most = max(1, math.ceil(seconds / step - _SAVE_SLACK))
    if evaluation is None or most <= evaluation[0]:
        return most
    before = seconds - step * (1 + _SAVE_SLACK)
    return Timetable(step, (), evaluation).boundary(before, most - 1) + 1


def _plan_stretch(job: Job) -> Stretch:
    """From here on at the pace of the moment, until the phase ends, the pace changes or a save has to wait."""
    plan, step, now = job.plan, job.step, job.now
    number = job.phase_now()
    phase = plan.phases[number]
    end = job.begins[number] + phase.steps - step
    if number and step == job.begins[number]:
        job.phase_start[number] = now
    done = 0.0
    if job.partial is not None:
        done, pace = job.partial
        end = min(end, job.partial_end)
        job.partial = None
    else:
        job.dirty = False
        pace = pace_now(job, number)
    origin = now - done
    open_end = step + end == job.total
    table = timetable(job, pace, origin)
    saves = table.saves
    if phase.tiers[0].seconds is not None and table.evaluation is not None:
        stop = saves[0].first + (table.evaluation[0] - saves[0].first) % table.evaluation[1]
        if stop < end:
            end, open_end = stop, False
    for tier, save in enumerate(saves):
        if job.busy[tier] > now and save.first <= end:
            begins = origin + table.save_end(tier, save.first) - save.blocking
            if begins < job.busy[tier]:
                end, open_end = save.first, True
    amplitude, period = plan.diurnal
    if amplitude:
        bin_seconds = period / _DIURNAL_BINS
        edge = (math.floor(now / bin_seconds * (1 + _ROUNDING)) + 1) * bin_seconds
        cut = table.boundary(edge - origin, end)
        if cut < end:
            end, open_end = max(1, cut), False
    return Stretch(step, pace, table, origin, end, open_end)


def train(job: Job) -> Strike | None:
    """Do what waits for the start of a step, then train at one pace; returns the failure that ended it, if any."""
    if job.found:
        if job.partial is not None:
            _lose_partial(job)
        return job.found.pop(0)
    if job.partial is None:
        while job.again:
            again = job.again.pop(0)
            if job.fleet.lemons or not again.lemon:  # else the faulty machine has gone meanwhile
                return again
        if job.pending:
            return act(job, *job.pending.pop(0))
    stretch = _plan_stretch(job)
    table, origin = stretch.table, stretch.origin
    began = job.now
    if job.dirty or job.pending:  # while the step in progress was held up
        _shorten(job, stretch, 1)
    end = stretch.end_time()
    while True:
        soon = next_time(job)
        if soon >= end:
            break
        job.now = soon
        struck = happen(job, TRAIN)
        if struck is not None:
            _close(job, stretch, soon, began)
            return struck
        if job.after:
            passed = soon - origin
            steps = table.started(passed, stretch.end - stretch.open_end)
            done = passed - table.at(steps)
            if done < table.step:
                job.partial, job.partial_end = (done, stretch.pace), stretch.end - steps
                stretch.end, stretch.open_end, stretch.steps = steps, False, steps
                _end(job, stretch, soon, began)
                struck = hold_up(job)
                if struck is not None:
                    _lose_partial(job)
                return struck
            _shorten(job, stretch, steps + 1)
            end = stretch.end_time()
        if job.dirty or job.pending:
            _shorten(job, stretch, table.boundary(soon - origin, stretch.end))
            end = stretch.end_time()
    job.now = end
    stretch.steps = stretch.end
    _end(job, stretch, end, began)
    struck = None
    if stretch.open_end and job.step < job.total:
        struck = save_to(job, table.due(stretch.end), table)
    if struck is None and job.after:
        struck = hold_up(job)
    return struck


def _shorten(job: Job, stretch: Stretch, steps: int) -> None:
    if steps < stretch.end:
        stretch.end, stretch.open_end = steps, False


def _lose_partial(job: Job) -> None:
    assert job.partial is not None
    job.lost_partial = job.partial[0]
    job.partial = None


def _end(job: Job, stretch: Stretch, end: Seconds, began: Seconds) -> None:
    """A stretch is over, after its `steps` whole steps: book it."""
    table, steps = stretch.table, stretch.steps
    first = stretch.first
    timed = steps - 1 if stretch.open_end and steps == stretch.end else steps
    blocked = 0.0
    for tier, save in enumerate(table.saves):
        if timed < save.first:
            continue
        count = (timed - save.first) // save.every + 1
        blocked += count * save.blocking
        newest = save.first + (count - 1) * save.every
        job.history.counts[tier] += count
        job.last[tier] = job.saved[tier] = first + newest
        ended = stretch.origin + table.save_end(tier, newest)
        job.begun[tier], job.busy[tier] = ended - save.blocking, ended + save.persist
    if blocked:
        job.ledger.add("checkpoint", "checkpoint", blocked)
    if table.evaluation is not None and timed >= table.evaluation[0]:
        count = (timed - table.evaluation[0]) // table.evaluation[1] + 1
        job.ledger.add("evaluation", "evaluation", count * table.evaluation[2])
    job.history.add(stretch)
    job.step = first + steps
    if job.history.is_long():
        job.forget(end)
    if job.ledger.records:
        job.ledger.trained(began, end, first, job.step)


def _close(job: Job, stretch: Stretch, now: Seconds, began: Seconds) -> None:
    """A failure ends a stretch: book it until now; the step in progress is lost, saves in progress are not."""
    table = stretch.table
    passed = now - stretch.origin
    steps = table.started(passed, stretch.end - stretch.open_end)
    over = passed - table.at(steps)
    job.lost_partial = min(over, table.step)
    if over >= table.step:
        steps, job.lost_partial = steps + 1, 0.0
    stretch.end, stretch.open_end, stretch.steps = steps, False, steps
    if over < table.step:
        _end(job, stretch, now, began)
        return
    # What is due behind the last step is booked as far as it came.
    over -= table.step
    ahead = 0.0
    for tier in table.due(steps):
        ahead += table.saves[tier].blocking
    job.ledger.add("checkpoint", "checkpoint", min(over, ahead) - ahead)
    if table.evaluation is not None:
        first, every, seconds = table.evaluation
        if steps >= first and (steps - first) % every == 0:
            job.ledger.add("evaluation", "evaluation", max(0.0, over - ahead) - seconds)
    _end(job, stretch, now, began)


def _evaluation(evaluation: Evaluation | None, step: int) -> tuple[int, int, Seconds] | None:
    if evaluation is None:
        return None
    return evaluation.every - step % evaluation.every, evaluation.every, evaluation.duration
