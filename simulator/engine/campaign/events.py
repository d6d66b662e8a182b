"""What happens to a job, and time that passes: the next arrival or timer, whoever it concerns.

A plan's arrivals and what follows from them (a straggler found, a machine back) come in the order of their times. What
they do depends on what the job does: it trains, saves, is held up, is down, or waits for machines.

Pinned by tests/engine/campaign/test_campaign.py and tests/engine/campaign/test_oracle.py.
"""

from __future__ import annotations

import bisect
import heapq
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.engine.campaign import hopeless
from simulator.engine.campaign.marks import Draws, Mark, Marks
from simulator.engine.campaign.replicas import regroup
from simulator.physics.campaign.plan import Component, JobFailure, Pause, SlowSource
from simulator.records import Incident
from simulator.scenario.units import Seconds

if TYPE_CHECKING:
    from simulator.engine.campaign.job import Job

# What the job does: training, saving (or evaluating), held up, down, waiting for machines.
TRAIN, SAVE, HELD, DOWN, WAIT = range(5)


# These come from training: they do not strike a job that is down.
OF_TRAINING = ("silent", "pause", "rewind")


class Strike(NamedTuple):
    """A failure that struck: its class, what it brings, when, and whether it came from a lemon."""

    failure: JobFailure
    mark: Mark
    time: Seconds
    lemon: bool


class Slow(NamedTuple):
    """A slow component: what it does to a step, whence, and which of its source's components it is."""

    component: Component
    source: SlowSource
    place: int


class Hold(NamedTuple):
    """Something that holds the job up: fate and cause, how long, and when it came."""

    key: str
    cause: str
    seconds: Seconds
    time: Seconds


def next_time(job: Job) -> Seconds:
    """When the next thing happens."""
    soon = job.arrivals.time
    if job.lemon_time < soon:
        soon = job.lemon_time
    if job.timers[0][0] < soon:
        soon = job.timers[0][0]
    return soon


def set_timer(job: Job, time: Seconds, kind: str, what: Any) -> None:
    """Something that follows from an arrival will happen then: see `_ring`."""
    job.timer_number += 1
    heapq.heappush(job.timers, (time, job.timer_number, kind, what))


def happen(job: Job, mode: int) -> Strike | None:
    """Let the next thing happen; returns the failure if it stops the job."""
    time = next_time(job)
    if job.timers[0][0] <= time:
        _, _, kind, what = heapq.heappop(job.timers)
        return _ring(job, kind, what, mode)
    if job.arrivals.time <= time:
        kind, source, marks = job.sources[job.arrivals.source]
        job.arrivals.pop()
        if kind == "failure":
            return _arrive(job, source, marks, mode, time, False)
        if kind == "slow":
            slow_down(job, source, marks, mode, time)
        else:
            _pause(job, source, marks, mode)
        return None
    stream, failure, marks = min(job.lemon_streams, key=lambda each: each[0].time)
    stream.pop()
    job.lemon_time = min(each.time for each, _, _ in job.lemon_streams)
    return _arrive(job, failure, marks, mode, time, True)


def _arrive(job: Job, failure: JobFailure, marks: Marks, mode: int, time: Seconds, lemon: bool) -> Strike | None:
    strikes = mode <= SAVE or (mode <= DOWN and job.exposed)
    if not strikes or (mode == DOWN and failure.effect in OF_TRAINING):
        marks.skip()
        return None
    mark = marks.next()
    if failure.effect == "pause":
        job.counts[failure.name] += 1
        job.after.append(Hold("degraded", failure.name, mark.detection, time))
        return None
    strike = Strike(failure, mark, time, lemon)
    if failure.effect == "silent":
        job.counts[failure.name] += 1
        job.silent.append(strike)
        set_timer(job, time + mark.detection, "found", strike)
        return None
    return strike


def _ring(job: Job, kind: str, what: Any, mode: int) -> Strike | None:
    if kind == "found":
        if what in job.silent:
            if mode <= SAVE:
                return what  # type: ignore[no-any-return]
            job.found.append(what)
    elif kind == "well":
        if what in job.slow:
            get_well(job, what)
    elif kind == "slow":
        if what in job.slow:
            job.pending.append(("swap", what))
    elif kind == "spare":
        job.seeking = False
        next_swap(job)
    elif kind == "arrive":
        job.arriving -= what
        regroup(job)
        job.pending.append(("rejoin", None))
    elif job.fleet.missing and job.fleet.join(job.now if mode == TRAIN else max(job.now, what)):
        regroup(job)
        plan_lemons(job)
        job.pending.append(("rejoin", None))
        expect_machine(job)
    return None


def expect_machine(job: Job) -> None:
    """An elastic job takes the next machine that comes back."""
    if job.fleet.missing and job.fleet.repairs:
        set_timer(job, job.fleet.back(), "back", job.fleet.back())


def plan_lemons(job: Job) -> None:
    """Lemons may have come or gone: their failures come sooner or later."""
    if job.fleet.lemons != job.lemons:
        job.lemons = job.fleet.lemons
        _change_lemons(job)


def _change_lemons(job: Job) -> None:
    if job.lemon_streams:
        for stream, _, _ in job.lemon_streams:
            stream.change(job.now, job.lemons)
        job.lemon_time = min(stream.time for stream, _, _ in job.lemon_streams)


def _pause(job: Job, pause: Pause, draws: Draws, mode: int) -> None:
    seconds = draws.seconds(pause.duration)
    if mode > SAVE:
        return
    if pause.key == "planned":
        job.pending.append(("planned", (pause, seconds)))
    else:
        job.after.append(Hold(pause.key, pause.name, seconds, job.now))


def slow_down(
    job: Job, source: SlowSource, draws: Draws, mode: int = TRAIN, time: Seconds = 0.0, place: int | None = None
) -> None:
    """A component is slow from now on: this one, or any; not one that is slow already, nor while the job is down."""
    if place is None:
        place = int(draws.even() * sum(source.classes))
    left, kind = place, 0
    for kind, count in enumerate(source.classes):  # noqa: B007
        left -= count
        if left < 0:
            break
    low, high = source.severity
    severity = min(high, low + int(draws.even() * (high - low + 1)))
    lasts = draws.seconds(source.duration) if source.duration is not None else None
    unseen = draws.seconds(source.detection) if source.detection is not None else None
    if mode >= DOWN or (source.name, place) in job.slow_places:
        return
    job.timer_number += 1
    number = job.timer_number
    job.slow[number] = Slow((source.kind, kind, severity), source, place)
    job.slow_places.add((source.name, place))
    bisect.insort(job.components, job.slow[number].component)
    if lasts is not None:
        set_timer(job, time + lasts, "well", number)
    if unseen is not None and source.swap:
        set_timer(job, time + unseen, "slow", number)
    set_state(job)


def get_well(job: Job, number: int) -> Slow:
    """A slow component is no longer slow, or no longer there."""
    slow = job.slow.pop(number)
    job.slow_places.discard((slow.source.name, slow.place))
    del job.components[bisect.bisect_left(job.components, slow.component)]
    set_state(job)
    return slow


def next_swap(job: Job) -> None:
    """Of the slow machines that no spare was there for, the next one is swapped as soon as there is one."""
    while job.unswapped and job.unswapped[0] not in job.slow:
        job.unswapped.popleft()
    if not job.unswapped or job.seeking or job.fleet.missing:
        return  # a recovery takes what comes back, and looks here when it is over
    if job.fleet.stands_by(job.now):
        job.pending.append(("swap", job.unswapped.popleft()))
    elif job.fleet.repairs:
        job.seeking = True
        set_timer(job, job.fleet.back(), "spare", None)


def set_state(job: Job) -> None:
    """What is slow or missing has changed: the next step starts in another state."""
    job.state = None
    job.dirty = True


def spend(job: Job, key: str, cause: str, seconds: Seconds, mode: int) -> Strike | None:
    """Let some time pass; returns the failure that cut it short, if any."""
    began, end = job.now, job.now + seconds
    struck = None
    if mode == WAIT and end > job.limit:  # nothing can cut that short
        job.now = end
        job.ledger.add(key, cause, seconds)
        raise hopeless.endless(job)
    while next_time(job) < end:
        job.now = next_time(job)
        struck = happen(job, mode)
        if struck is not None:
            end = job.now
            break
    job.now = end
    if end > began:
        job.ledger.add(key, cause, end - began)
        job.ledger.spent(key, began, end, job.step)
    return struck


def hold_up(job: Job) -> Strike | None:
    """Held up until the last of the holds that have come, or come meanwhile, is over; returns what cut it short."""
    began = booked = end = job.now
    shares: deque[tuple[Seconds, Hold]] = deque()
    struck, first = None, job.after[0].key
    while True:
        for hold in job.after:
            shares.append((job.now + hold.seconds, hold))
            end = max(end, job.now + hold.seconds)
        job.after.clear()
        soon = next_time(job)
        if soon >= end:
            break
        job.now = soon
        struck = happen(job, HELD)
        if struck is not None:
            end = soon
            break
        while shares and shares[0][0] <= soon:
            booked = _book(job, shares.popleft(), booked, end)
        hopeless.check_time(job)
    job.now = end
    while shares:
        booked = _book(job, shares.popleft(), booked, end)
    job.ledger.spent(first, began, end, job.step)
    hopeless.check_time(job)
    return struck


def _book(job: Job, share: tuple[Seconds, Hold], booked: Seconds, end: Seconds) -> Seconds:
    """A hold pays from where those before it end, until it ends or everything does; returns until when is paid."""
    until, (key, cause, _, time) = share
    seconds = max(0.0, min(until, end) - booked)
    job.ledger.add(key, cause, seconds)
    if key == "degraded" and job.ledger.records:
        job.ledger.incidents.append(Incident(time, cause, 0.0, seconds, step=job.step))
    return booked + seconds
