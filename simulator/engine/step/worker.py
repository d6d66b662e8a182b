"""One rank class at work: its walk through the tasks, and the streams beside its compute stream.

Everything that the future depends on is in attributes, for `recurrence` to compare.

Pinned by tests/engine/test_iteration.py and tests/engine/test_lazy.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.engine.step.course import Course
from simulator.engine.step.gangs import Joint, Row
from simulator.engine.step.plans import CallPlan, ChainPlan, Launched, PlannedBody
from simulator.engine.step.runs import Ticket
from simulator.engine.step.streams import Launch, Stream
from simulator.engine.step.stretches import Stretch
from simulator.errors import ScheduleError
from simulator.records import Span
from simulator.scenario.units import Seconds

if TYPE_CHECKING:
    from simulator.engine.iteration import Iteration

Parts = tuple[tuple[str, float], ...]
_NONE: dict[int, Stretch] = {}


class Worker:
    """One rank class.

    Attributes
    ----------
    at
        Task that it works on or waits behind; -1 in the prologue, the number of tasks in the epilogue.
    body, step
        What it runs, and how many of its steps it has begun.
    mode
        What it waits for: `chain`, `shared`, `joint`, `join`, `messages`, nothing ("") or the end of the step (`done`).
    start
        When that began.
    """

    def __init__(self, iteration: Iteration, rank: int, stretches: dict[int, dict[int, Stretch]]) -> None:
        self.iteration, self.rank, self.env = iteration, rank, iteration.env
        self.tasks = iteration.program.tasks[rank]
        self.blocking = iteration.program.blocking_p2p
        self.at = -1
        self.body: PlannedBody = ()
        self.step = 0
        self._stretches = stretches
        self._ahead = stretches.get(-1, _NONE)
        self.mode = ""
        self.start = self.clock = 0.0
        # messages
        self.ahead: Ticket | None = None
        self.waited: list[Ticket] = []
        self._open = 0
        # collectives
        self.ticket: Ticket | None = None
        self.launched: dict[str, Launch] = {}
        self.streams: dict[str, Stream] = {}
        self.joined: Launch | None = None
        self.beside = 0
        self.joint: Joint | None = None
        self.course = Course(iteration, self)
        self._tell_message = self._message_ended  # bound once

    # --- the walk ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start with the prologue."""
        self.body = self.iteration.plans.body(self.iteration.program.prologue[self.rank])
        self.advance()

    def advance(self) -> None:
        """Go on until there is something to wait for."""
        while True:
            body = self.body
            while self.step < len(body):
                if self.step in self._ahead:
                    self._go_along(self._ahead[self.step])
                    return
                step = body[self.step]
                self.step += 1
                if isinstance(step, ChainPlan):
                    waits = self._begin_chain(step)
                elif isinstance(step, CallPlan):
                    waits = self._meet(step)
                elif isinstance(step, Launched):
                    waits = self._launch(step)
                else:
                    waits = self._join(step.tag)
                if waits:
                    return
            if self._hand_over():
                return

    def _hand_over(self) -> bool:
        """Send the task's output and get the next one's input; whether that takes time."""
        at, tasks, post = self.at, self.tasks, self.iteration.post
        if at == len(tasks):
            self.mode = "done"
            self.iteration.running -= 1
            return True
        tickets: list[Ticket] = []
        if at >= 0:
            send = tasks[at].send
            if send is not None:
                sent = post(send)
                if self.blocking:
                    tickets.append(sent)
        if self.ahead is not None:
            tickets.append(self.ahead)
            self.ahead = None
        elif at + 1 < len(tasks):
            receive = tasks[at + 1].receive
            if receive is not None:
                tickets.append(post(receive))
        now = self.env.now
        self._open = 0
        for ticket in tickets:
            if ticket.ended != ticket.ended:  # not a number: it has not ended
                ticket.end.append(self._tell_message)
                self._open += 1
        if not self._open:
            self._enter()
            return False
        self.mode, self.start, self.waited = "messages", now, tickets
        return True

    def _message_ended(self) -> None:
        self._open -= 1
        if self._open:
            return
        start, waited = self.start, self.waited
        seconds = self.env.now - start
        begin = waited[0].started
        covered = waited[0].ended - (begin if begin > start else start)
        if len(waited) > 1:
            covered = self._covered(covered)
        self.emit("message", -1, start, (("exposed_pp", covered), ("waiting", seconds - covered)))
        self._enter()
        self.advance()

    def _covered(self, first: Seconds) -> Seconds:
        """Seconds of the wait in which one of two messages was on its way; `first` of them for the first."""
        start, (one, other) = self.start, self.waited
        both = min(one.ended, other.ended) - max(one.started, other.started, start)
        second = other.ended - max(other.started, start)
        return max(first, 0.0) + max(second, 0.0) - max(both, 0.0)

    def _enter(self) -> None:
        """Begin the next task, or the epilogue."""
        self.at = at = self.at + 1
        tasks = self.tasks
        self.mode, self.step = "", 0
        self._ahead = self._stretches.get(at, _NONE)
        iteration = self.iteration
        if at == len(tasks):
            self.body = iteration.plans.body(iteration.program.epilogue[self.rank])
            return
        self.body = iteration.plans.body(tasks[at].body)
        if not self.blocking and at + 1 < len(tasks):
            receive = tasks[at + 1].receive
            if receive is not None:
                self.ahead = iteration.post(receive)
        if iteration.watched is self:
            iteration.look_at(at)

    @property
    def doing(self) -> str:
        """Where it is, for a message."""
        if self.mode == "messages":
            following = self.tasks[self.at + 1].name if self.at + 1 < len(self.tasks) else "the end"
            return f"the messages before {following}"
        if self.at < 0:
            return "start"
        return self.tasks[self.at].name if self.at < len(self.tasks) else "end"

    # --- chains ------------------------------------------------------------------------------------------------------

    def _begin_chain(self, chain: ChainPlan) -> bool:
        self.mode, self.start = "chain", self.env.now
        return self.course.begin(chain)

    def chain_ended(self, parts: Parts) -> None:
        """What the chain's time was; whoever says so goes on with `advance`."""
        self.mode = ""
        self.emit("", self.at, self.start, parts)

    # --- stretches ---------------------------------------------------------------------------------------------------

    def _go_along(self, stretch: Stretch) -> None:
        """Go through a stretch together with the others of its gang."""
        self.mode, self.start, self.step = "joint", self.env.now, stretch.stop
        self.joint = self.iteration.gangs.come(self, stretch)

    def stretch_ended(self, first: Seconds, rows: list[Row]) -> None:
        """These are the spans of the stretch, in seconds from `first`."""
        iteration, place = self.iteration, self.at
        name, before = self._name(place), first + iteration.offset
        rank = self.rank
        new = tuple.__new__  # a third of the time of calling Span
        iteration.spans += [
            new(Span, (rank, "compute", name, before + start, before + end, parts)) for start, end, parts in rows
        ]
        iteration.places += [place if 0 <= place < len(self.tasks) else -1] * len(rows)
        self.mode, self.joint, self.clock = "", None, self.env.now
        self.advance()

    # --- collectives -------------------------------------------------------------------------------------------------

    def _meet(self, plan: CallPlan) -> bool:
        """A collective that the compute stream waits for."""
        self.ticket, last = self.iteration.arrive(plan, plan.next_round(self.rank))
        self.mode, self.start = "shared", self.env.now
        self.ticket.end.append(self._met)
        if last:
            self.ticket.execute()
        return True

    def _met(self) -> None:
        ticket, start, now = self.ticket, self.start, self.env.now
        assert ticket is not None
        busy = now - max(start, ticket.started)
        parts = ((ticket.plan.busy, busy), (ticket.plan.idle, max(0.0, ticket.started - start)))
        self.mode, self.ticket = "", None
        self.emit("", self.at, start, parts)
        self.advance()

    def _launch(self, step: Launched) -> bool:
        plan = step.plan
        launch = self.launched[step.tag] = Launch(step.tag, plan, plan.next_round(self.rank))
        axis = plan.call.axis
        if axis not in self.streams:
            self.streams[axis] = Stream(self)
        self.streams[axis].put(launch)
        return False

    def _join(self, tag: str) -> bool:
        """Wait for a collective: exposed while a collective of its stream runs, else waiting for a member."""
        launch = self.launched.get(tag)
        if launch is None:
            raise ScheduleError(f"rank {self.rank} in {self.doing} joins {tag!r}, which it has not started")
        if launch.ended:
            return False
        self.mode, self.start, self.joined = "join", self.env.now, launch
        for stream in self.streams.values():
            stream.covered = 0.0
        return True

    def begin_beside(self) -> None:
        """A collective of a stream has begun."""
        self.beside += 1
        if self.beside == 1:
            self.course.change_speed()

    def end_beside(self, launch: Launch) -> None:
        """A collective of a stream has ended."""
        self.beside -= 1
        if not self.beside:
            self.course.change_speed()
        if launch is self.joined:
            start, now = self.start, self.env.now
            covered = self.streams[launch.plan.call.axis].covered
            parts = ((launch.plan.busy, covered), (launch.plan.idle, max(0.0, now - start - covered)))
            self.mode, self.joined = "", None
            self.emit("", self.at, start, parts)
            self.advance()

    # --- records -----------------------------------------------------------------------------------------------------

    def emit(self, name: str, place: int, start: Seconds, parts: Parts) -> None:
        """One span from `start` to now: of the task at `place` if it has no name."""
        now, iteration = self.env.now, self.iteration
        if now > start:
            before = iteration.offset
            name = name or self._name(place)
            iteration.spans.append(Span(self.rank, "compute", name, start + before, now + before, parts))
            iteration.places.append(place if 0 <= place < len(self.tasks) else -1)
        self.clock = now

    def _name(self, place: int) -> str:
        """Name of the spans of a task."""
        return "start" if place < 0 else self.tasks[place].name if place < len(self.tasks) else "end"

    def finish(self) -> None:
        """The rest of the step: waiting for the slowest rank."""
        seconds = self.env.now - self.clock
        self.emit("wait", -1, self.clock, (("waiting", seconds),))
