"""Skipping the steady state: where the whole state of a step comes back, what follows comes back too.

The state is everything that the future depends on, relative to now and to the microbatch that the watched worker is at:
where every worker is and what it waits for, how far its chain has got, its streams, the members of collectives that
have arrived, posted messages, channels, bytes left and rates of all coflows. Times are compared on a grid of 1e-12 of
the step. If it is the state of some time T ago, and the tasks that follow are those that led from there to here, only
for later microbatches, then the next T seconds are the last T seconds again: the step jumps over as many such periods
as every rank class has tasks for, and goes on.

Equality of states is the only ground. Periods of the watched worker's row, the time since its last one and a coarse
fingerprint of all positions only say when it is worth taking the state. A state may come back after several periods of
a row: 1F1B with messages that take time does after as many as there are pipeline ranks.

Limits: a rank class that gains on the others all the time, with ever more messages waiting, has no steady state.

Pinned by tests/engine/test_recurrence.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.engine.step.gangs import Joint
from simulator.engine.step.runs import Channel, Run, Ticket
from simulator.engine.step.streams import Launch
from simulator.engine.step.worker import Worker
from simulator.physics.program.steps import Message, Task
from simulator.scenario.units import Seconds

if TYPE_CHECKING:
    from simulator.engine.iteration import Iteration

_LEAST_PERIODS = 3
_MOST_CANDIDATES = 4096


class Stretch(NamedTuple):
    """Places [first, last) of a row that repeat with a period."""

    first: int
    last: int
    period: int


class _Saved(NamedTuple):
    """A state to come back to."""

    time: Seconds
    places: tuple[int, ...]
    base: int
    emitted: int
    state: tuple[Any, ...]


class _Look:
    """What is known of a fingerprint: a state with it, and how often others with it were compared to that state."""

    __slots__ = ("compared", "patience", "saved")

    def __init__(self) -> None:
        self.saved: _Saved | None = None
        self.compared, self.patience = 0, 1


class Jump(NamedTuple):
    """A steady state: spans [first, last) stand for `times` periods."""

    first: int
    last: int
    times: int
    period: Seconds
    strides: tuple[int, ...]


class Recurrence:
    """Watches one worker and jumps where the state of the step comes back."""

    def __init__(self, iteration: Iteration, watched: Worker) -> None:
        self.iteration, self.watched = iteration, watched
        self.jumps: list[Jump] = []
        self._stretches = deque(periodic_stretches(watched.tasks))
        self._looks: dict[Any, _Look] = {}
        self._before = math.nan

    def is_due(self, place: int) -> bool:
        """Whether the watched worker begins a period with this task."""
        while self._stretches and place + self._stretches[0].period >= self._stretches[0].last:
            self._stretches.popleft()
            self._looks = {}
        if not self._stretches:
            return False
        first, _, period = self._stretches[0]
        return place >= first and (place - first) % period == 0

    def look(self) -> None:
        """Once the instant is over: see whether the state has come back.

        Of every fingerprint that is seen again a state is kept, and renewed after 1, 2, 4, ... comparisons: that finds
        a cycle of any length (Brent, BIT 20, 1980).
        """
        workers, place, now = self.iteration.workers, self.watched.at, self.iteration.env.now
        positions = tuple(
            (0 if worker.mode == "done" else worker.at - place, worker.step, worker.mode) for worker in workers
        )
        fingerprint = (round((now - self._before) / self.iteration.same_instant), positions) if self._looks else None
        self._before = now
        look = self._looks.get(fingerprint)
        if look is None:
            self._looks[fingerprint] = _Look()
            return
        saved = look.saved
        if saved is not None and is_state(self.iteration, self._base(), saved.state):
            self._jump(saved)
            return
        look.compared += 1
        if look.compared >= look.patience:
            look.saved, look.compared, look.patience = self._save(), 0, 2 * look.patience

    def _base(self) -> int:
        """Microbatch of the watched worker's task; what others are at is told relative to it."""
        return _microbatch(self.watched.tasks[self.watched.at]) or 0

    def _save(self) -> _Saved:
        iteration, base = self.iteration, self._base()
        places = tuple(worker.at for worker in iteration.workers)
        return _Saved(iteration.env.now, places, base, len(iteration.spans), tuple(state_of(iteration, base)))

    def _jump(self, saved: _Saved) -> None:
        """Skip as many periods as all rank classes have the same tasks for."""
        iteration, shift = self.iteration, self._base() - saved.base
        strides = tuple(worker.at - place for worker, place in zip(iteration.workers, saved.places, strict=True))
        times: int | None = None
        for worker, place, stride in zip(iteration.workers, saved.places, strides, strict=True):
            if stride:
                times = _periods_ahead(worker.tasks, place, stride, shift, times)
        self._looks = {}
        if not times:
            self._stretches.popleft()
            return
        period = iteration.env.now - saved.time
        self.jumps.append(Jump(saved.emitted, len(iteration.spans), times + 1, period, strides))
        iteration.offset += times * period
        iteration.rename(times * shift)
        for worker, stride in zip(iteration.workers, strides, strict=True):
            worker.at += times * stride
            if worker.mode == "done":
                worker.clock -= times * period  # it stays when it was


# --- rows ------------------------------------------------------------------------------------------------------------


def _microbatch(task: Task) -> int | None:
    message = task.receive or task.send
    return None if message is None else message.microbatch


def _wire(message: Message | None) -> tuple[Any, ...] | None:
    return None if message is None else message[:3]


def _is_later(message: Message | None, earlier: Message | None, shift: int) -> bool:
    """Whether a message is an earlier one, for a microbatch that much later."""
    if message is None or earlier is None:
        return message is earlier
    call, kind, stage, microbatch = message
    before, kind_before, stage_before, microbatch_before = earlier
    same = call is before and kind == kind_before and stage == stage_before
    return same and microbatch - microbatch_before == shift


def _periods_ahead(row: Sequence[Task], place: int, stride: int, shift: int, at_most: int | None) -> int:
    """Periods for which the row goes on as from `place` to `place + stride`, with one task to look ahead."""
    if place < 0:
        return 0
    stop = len(row) if at_most is None else min(len(row), place + (at_most + 1) * stride + 2)
    count = 0
    for (_, receive, body, send), before in zip(row[place + stride : stop], row[place:], strict=False):
        if body is not before.body:
            break
        if not (_is_later(receive, before.receive, shift) and _is_later(send, before.send, shift)):
            break
        count += 1
    return max(0, (count - 2) // stride)


def periodic_stretches(row: Sequence[Task]) -> list[Stretch]:
    """Where a row repeats for at least three periods, and with which period."""
    numbers: dict[Any, int] = {}
    kinds = [numbers.setdefault((id(t.body), _wire(t.receive), _wire(t.send)), len(numbers)) for t in row]
    following = _next_places(kinds)
    found: list[Stretch] = []
    budget = _MOST_CANDIDATES
    place = 0
    while place < len(row):
        best, other = None, following[place]
        while other < len(row) and budget:
            period = other - place
            # a multiple of a period that was found repeats as far and no farther
            if best is None or period % best.period:
                budget -= 1
                last = _repeats_until(kinds, place, period)
                if last - place >= _LEAST_PERIODS * period and (best is None or last > best.last):
                    best = Stretch(place, last, period)
            other = following[other]
        if best is not None:
            found.append(best)
        place = max(place + 1, best.last - best.period if best is not None else 0)
    return found


def _repeats_until(kinds: list[int], place: int, period: int) -> int:
    """Where what repeats from a place on ends."""
    last = place + period
    while last < len(kinds) and kinds[last] == kinds[last - period]:
        last += 1
    return last


def _next_places(kinds: list[int]) -> list[int]:
    """Place of the next task of the same kind; the length of the row where there is none."""
    following = [len(kinds)] * len(kinds)
    seen: dict[int, int] = {}
    for place in reversed(range(len(kinds))):
        following[place] = seen.get(kinds[place], len(kinds))
        seen[kinds[place]] = place
    return following


# --- states ----------------------------------------------------------------------------------------------------------


def state_of(iteration: Iteration, base: int) -> Iterator[Any]:
    """Everything that the future of a step depends on, relative to now and to microbatch `base`, piece by piece."""
    photo = _Photo(iteration.env.now, 1.0 / iteration.same_instant, base)
    for worker in iteration.workers:
        yield photo.worker(worker)
    yield frozenset(photo.message(message) for message in iteration.posts)
    for channel in iteration.channels.values():
        yield photo.channel(channel)
    yield frozenset(
        (plan, number - max(plan.rounds.values()), ticket.missing)
        for (plan, number), ticket in iteration.tickets.items()
    )
    for plan in iteration.plans.shared:
        yield photo.rounds(plan.rounds)


def is_state(iteration: Iteration, base: int, state: tuple[Any, ...]) -> bool:
    """Whether this is the state now; stops at the first difference."""
    return all(now == then for now, then in zip_longest(state_of(iteration, base), state))


class _Photo:
    """Describes things relative to a time, in units of the grid, and to a microbatch."""

    def __init__(self, now: Seconds, per_second: float, base: int) -> None:
        self.now, self.per_second, self.base = now, per_second, base

    def since(self, time: Seconds) -> int | None:
        """Age on the grid; None of what has not happened."""
        return None if time != time else round((self.now - time) * self.per_second)

    def grid(self, seconds: Seconds) -> int:
        return round(seconds * self.per_second)

    def message(self, message: Message) -> tuple[Any, ...]:
        return (*message[:3], message.microbatch - self.base)

    @staticmethod
    def rounds(rounds: dict[int, int]) -> tuple[int, ...]:
        most = max(rounds.values())
        return tuple(number - most for number in rounds.values())

    def run(self, run: Run | None) -> tuple[Any, ...] | None:
        if run is None:
            return None
        left = [
            (flow.index, flow.rate, self.grid(flow.remaining / flow.rate - (self.now - flow.updated)))
            for flow in run.flows
            if flow.rate
        ]
        return run.plan, run.mode, run.phase, self.since(run.since), sorted(left)

    def ticket(self, ticket: Ticket | None) -> tuple[Any, ...] | None:
        if ticket is None:
            return None
        return ticket.plan, ticket.missing, self.since(ticket.started), self.since(ticket.ended), self.run(ticket.run)

    def joint(self, joint: Joint | None) -> list[tuple[int, int | None]]:
        assert joint is not None
        return sorted((worker.rank, self.since(begin)) for worker, _, begin in joint.came)

    def launch(self, launch: Launch | None) -> tuple[Any, ...] | None:
        if launch is None:
            return None
        if launch.ended:
            return launch.tag, launch.plan
        behind = launch.round - max(launch.plan.rounds.values())
        return launch.tag, launch.plan, behind, self.ticket(launch.ticket)

    def channel(self, channel: Channel) -> tuple[Any, ...]:
        waiting = tuple(self.message(message) for message, _ in channel.queue)
        return self.ticket(channel.running), waiting, tuple(self.message(message) for message, _ in channel.fresh)

    def worker(self, worker: Worker) -> tuple[Any, ...]:
        """Everything that a worker's future depends on, relative to now."""
        mode = worker.mode
        state: tuple[Any, ...] = (mode, worker.step, worker.at < 0, worker.at == len(worker.tasks), worker.beside)
        if mode == "done":
            return state
        state = (*state, id(worker.body), self.since(worker.start), self.ticket(worker.ahead))
        if mode == "chain":
            course = worker.course
            parts = [(name, self.grid(seconds)) for name, seconds in course.extra.items()]
            state = (*state, course.chain, course.segment, course.slow, self.grid(course.into), self.grid(course.lost))
            state = (*state, self.since(course.stretch), self.run(course.run), parts)
        elif mode == "messages":
            state = (*state, *(self.ticket(ticket) for ticket in worker.waited))
        elif mode == "shared":
            state = (*state, self.ticket(worker.ticket))
        elif mode == "joint":
            state = (*state, self.joint(worker.joint))
        elif mode == "join":
            state = (*state, self.launch(worker.joined))
        if worker.launched:
            beside = [
                (axis, self.grid(stream.covered) if mode == "join" else 0, self.launch(stream.current),
                 [self.launch(launch) for launch in stream.queue])
                for axis, stream in worker.streams.items()
            ]  # fmt: skip
            state = (*state, beside, [self.launch(launch) for launch in worker.launched.values()])
        return state
