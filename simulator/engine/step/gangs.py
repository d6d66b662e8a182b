"""Meetings: stretches that several rank classes go through together, as one event for those that end together.

`stretches` says which meetings nobody can disturb. In such a meeting everything follows from when each member begins
its stretch: a call starts when its last member comes to it and takes its time alone, chains take theirs. So a member
that begins a stretch only waits for the others to begin theirs; then the meeting is worked out at once, and each member
goes on at its end, with the spans that it has by then. No end is before the last beginning: each depends on all.

Most meetings are like an earlier one, only later: what comes of them is kept by when the members begin, relative to the
first. Times are multiples of the clock's grain, so that equal is equal and sums are exact.

Pinned by tests/engine/test_joint.py.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from simpy.events import Event

from simulator.engine.clock import Timer
from simulator.engine.step.plans import ChainPlan
from simulator.engine.step.stretches import Meeting, Stretch, meeting_of
from simulator.scenario.units import Seconds

if TYPE_CHECKING:
    from simulator.engine.iteration import Iteration
    from simulator.engine.step.worker import Worker

Row: TypeAlias = tuple[Seconds, Seconds, tuple[tuple[str, Seconds], ...]]
"""Start, end and parts of a span; times from the first beginning."""

_KEPT = 64


class Outcome(NamedTuple):
    """When each member of a meeting ends, and its spans; times from the first beginning."""

    ends: tuple[Seconds, ...]
    rows: tuple[list[Row], ...]


def outcome_of(meeting: Meeting, begins: tuple[Seconds, ...]) -> Outcome:
    """What comes of a meeting whose members begin at these times."""
    at = list(begins)
    rows: tuple[list[Row], ...] = tuple([] for _ in begins)
    for plan, members in meeting.meets:
        started = 0.0
        for member, chains in members:
            if chains:
                at[member] = _walk(chains, at[member], rows[member])
            if at[member] > started:
                started = at[member]
        end = started + plan.seconds
        for member, _ in members:
            begin = at[member]
            if end > begin:
                rows[member].append((begin, end, ((plan.busy, end - started), (plan.idle, started - begin))))
                at[member] = end
    for member, chains in enumerate(meeting.tails):
        at[member] = _walk(chains, at[member], rows[member])
    return Outcome(tuple(at), rows)


def _walk(chains: tuple[ChainPlan, ...], begin: Seconds, rows: list[Row]) -> Seconds:
    """One chain after another, left alone; when the last one ends."""
    for chain in chains:
        end = begin + chain.ends[0][-1]
        if end > begin:
            rows.append((begin, end, chain.parts))
        begin = end
    return begin


class Joint:
    """A meeting in progress: who has come to it, in which stretch, and when."""

    __slots__ = ("_gangs", "came")

    def __init__(self, gangs: Gangs) -> None:
        self._gangs = gangs
        self.came: list[tuple[Worker, Stretch, Seconds]] = []

    def begin(self) -> None:
        """All have come."""
        self.came.sort(key=lambda entry: entry[0].rank)
        begins = [begin for _, _, begin in self.came]
        first, env = min(begins), self._gangs.iteration.env
        found = self._gangs.outcome(tuple(stretch for _, stretch, _ in self.came), tuple(b - first for b in begins))
        together: dict[Seconds, list[int]] = {}
        for number, end in enumerate(found.ends):
            together.setdefault(end, []).append(number)
        for end, numbers in together.items():
            Timer(env, first + end - env.now, partial(self._end, first, found, numbers))

    def _end(self, first: Seconds, found: Outcome, numbers: list[int], _: Event) -> None:
        ready = self._gangs.iteration.ready
        for number in numbers:
            ready.append(partial(self.came[number][0].stretch_ended, first, found.rows[number]))


class Gangs:
    """The meetings of a step."""

    def __init__(self, iteration: Iteration) -> None:
        self.iteration = iteration
        self._open: dict[int, Joint] = {}
        self._meetings: dict[tuple[Stretch, ...], tuple[Meeting, dict[tuple[Seconds, ...], Outcome]]] = {}

    def come(self, worker: Worker, stretch: Stretch) -> Joint:
        """A member begins its stretch: nobody is ahead of the others by more than one meeting."""
        joint = self._open.get(stretch.gang)
        if joint is None:
            joint = self._open[stretch.gang] = Joint(self)
        joint.came.append((worker, stretch, self.iteration.env.now))
        if len(joint.came) == stretch.size:
            del self._open[stretch.gang]
            joint.begin()
        return joint

    def outcome(self, stretches: tuple[Stretch, ...], begins: tuple[Seconds, ...]) -> Outcome:
        """What comes of a meeting, worked out or remembered."""
        if stretches not in self._meetings:
            meeting = meeting_of(stretches)
            assert meeting is not None
            self._meetings[stretches] = meeting, {}
        meeting, known = self._meetings[stretches]
        found = known.get(begins)
        if found is None:
            if len(known) >= _KEPT:
                known.pop(next(iter(known)))  # the oldest
            found = known[begins] = outcome_of(meeting, begins)
        return found
