"""One training step: executes a `StepProgram`, decides nothing.

A worker per rank class walks its tasks (`step.worker`). Its compute stream is always in one state, and every stretch of
time becomes a `Span` whose parts name the states. Collectives rendezvous: a call starts when all its members have
arrived, so waiting splits into the time before the last arrival and the transfer itself. Collectives started beside
compute run one after another on the rank's stream of their axis; while one runs, kernels on that rank progress slower,
re-evaluated at each start and end (a fluid activity).

Point-to-point is rendezvous as well: it starts when both sides have posted. A blocking stack posts the send of a task
together with the receive of the next, and waits for both (Megatron's batched send/receive); otherwise only the receive
is waited for, posted one task ahead.

Waiting for members on other pipeline ranks (tied embeddings, the gradient norm) is waiting for the pipeline, as for a
message: at the end of a step it is the schedule's bubble. Waiting for members of the own stage is imbalance.

Two things make it quick and change nothing. What nobody disturbs is one event (`step.runs`, `step.course`): a whole
chain, a whole call; for several rank classes that meet again and again (`step.stretches`, `step.gangs`) a whole body,
whose spans are then emitted at its end, so that only those of one rank are in order. And a steady state is simulated
once (`step.recurrence`). `fuse=False` and `skip=False` switch them off. Both rest on times that are multiples
of a grain (`clock`): a stretch of the schedule has the same length wherever it runs, in one piece or in many.

Everything is a callback of a simpy event, or waits in `ready` to be called before the next event: no process is ever
suspended in the middle, so that the state of a step is in attributes.

Limits: a pipeline message does not slow the kernels beside it; only collectives do. Pinned by
tests/engine/test_iteration.py: GPipe and 1F1B take (m + p - 1)(t_F + t_B) without communication; spans tile the step;
hand-worked overlap. Lazy is detailed: tests/engine/test_lazy.py, tests/engine/test_joint.py. Skipped is
simulated: tests/engine/test_recurrence.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import simpy
from simpy.core import EmptySchedule

from simulator.engine.clock import SAME_INSTANT_GRAINS
from simulator.engine.network import Network
from simulator.engine.step.gangs import Gangs
from simulator.engine.step.plans import CallPlan, Plans
from simulator.engine.step.recurrence import Recurrence
from simulator.engine.step.runs import Channel, Ticket
from simulator.engine.step.stretches import agreed
from simulator.engine.step.worker import Worker
from simulator.errors import ScheduleError
from simulator.physics.garbage import no_garbage
from simulator.physics.program.steps import Message, StepProgram
from simulator.records import Repeated, Span, StepResult, Transfer

_SHOWN_WHEN_STUCK = 8


class Iteration:
    """The state of one step while it runs.

    Attributes
    ----------
    ready
        What is to be called before the next event.
    posts, tickets
        Messages that one side has posted; collectives that some members have come to.
    offset
        Seconds that were skipped: what is now on the clock is that much later in the step.
    spans, places
        Spans so far, and the place in the row of the action that each belongs to (-1: none).
    same_instant
        Times that differ by less are one.
    """

    def __init__(self, program: StepProgram, *, keep_transfers: bool, fuse: bool, skip: bool) -> None:
        self.program = program
        self.plans = plans = Plans(program)
        self.fuse = fuse and not keep_transfers
        self.transfers: list[Transfer] | None = [] if keep_transfers else None
        self.env = simpy.Environment()
        coflows, capacity, known = program.coflows, program.capacity, plans.network.known
        self.network = Network(self.env, coflows, capacity, grain=plans.grain, known=known)
        self.same_instant = SAME_INSTANT_GRAINS * plans.grain
        self.ready: deque[Callable[[], None]] = deque()
        self.posts: dict[Message, Ticket] = {}
        self.tickets: dict[tuple[CallPlan, int], Ticket] = {}
        self.channels: dict[tuple[int, ...], Channel] = {}
        self.offset = 0.0
        self.spans: list[Span] = []
        self.places: list[int] = []
        self.gangs = Gangs(self)
        ranks = range(len(program.rank_counts))
        stretches = agreed(plans) if self.fuse else [{} for _ in ranks]
        self.workers = [Worker(self, rank, stretches[rank]) for rank in ranks]
        self.running = len(self.workers)
        self.watched: Worker | None = None
        self._recurrence: Recurrence | None = None
        self._look = False
        if skip and not keep_transfers and self.workers:
            self.watched = max(self.workers, key=lambda worker: len(worker.tasks))
            self._recurrence = Recurrence(self, self.watched)

    # --- rendezvous --------------------------------------------------------------------------------------------------

    def arrive(self, plan: CallPlan, number: int) -> tuple[Ticket, bool]:
        """Come to a collective for the number-th time; whether that was the last member, who has to execute it."""
        members = len(plan.rounds)
        if members == 1:
            return Ticket(self, plan, 0), True
        ticket = self.tickets.get((plan, number))
        if ticket is None:
            ticket = self.tickets[plan, number] = Ticket(self, plan, members)
        ticket.missing -= 1
        if not ticket.missing:
            del self.tickets[plan, number]
        return ticket, not ticket.missing

    def post(self, message: Message) -> Ticket:
        """Post one side of a message; the second side puts it on the channel of its pair of ranks."""
        ticket = self.posts.pop(message, None)
        if ticket is None:
            ticket = self.posts[message] = Ticket(self, self.plans.call(message.call), 1)
            return ticket
        ticket.missing = 0
        members = message.call.members
        channel = self.channels.get(members)
        if channel is None:
            channel = self.channels[members] = Channel(self, mixed=members in self.plans.mixed)
        channel.put(message, ticket)
        return ticket

    def rename(self, shift: int) -> None:
        """What is known by its microbatch is known by a later one, after a jump."""
        if shift:
            later = {message._replace(microbatch=message.microbatch + shift): t for message, t in self.posts.items()}
            self.posts = later
            for channel in self.channels.values():
                channel.rename(shift)

    # --- the whole step ----------------------------------------------------------------------------------------------

    def look_at(self, place: int) -> None:
        """The watched worker has begun a task."""
        if self._recurrence is not None and self._recurrence.is_due(place):
            self._look = True

    def run(self) -> StepResult:
        """Execute the program."""
        events = self._process()
        for worker in self.workers:
            worker.finish()
        return StepResult(
            step_time=self.env.now + self.offset,
            rank_counts=self.program.rank_counts,
            pieces=tuple(self._pieces()),
            transfers=tuple(self.transfers or ()),
            events=events,
            solves=self.network.solves + self.plans.network.solves,
            skipped=sum(jump.times - 1 for jump in self._recurrence.jumps) if self._recurrence else 0,
            pipeline_ranks=self.program.pipeline_ranks,
        )

    def _process(self) -> int:
        """Process events until all workers are done; their number."""
        env, ready = self.env, self.ready
        for worker in self.workers:
            ready.append(worker.begin)
        events = 0
        while True:
            while ready:
                ready.popleft()()
            if not self.running:
                return events
            if self._look and env.peek() > env.now:
                self._look = False
                assert self._recurrence is not None
                self._recurrence.look()
            try:
                env.step()
            except EmptySchedule:
                raise ScheduleError(_stuck(self.workers)) from None
            events += 1

    def _pieces(self) -> Iterator[Span | Repeated]:
        """Spans in order of their end, steady states once."""
        done = 0
        for first, last, times, period, strides in self._recurrence.jumps if self._recurrence else ():
            yield from self.spans[done:first]
            spans, places = tuple(self.spans[first:last]), tuple(self.places[first:last])
            yield Repeated(spans, places, strides, times, period, self.program.tasks)
            done = last
        yield from self.spans[done:]


def _stuck(workers: list[Worker]) -> str:
    waiting = [worker for worker in workers if worker.mode != "done"]
    places = [f"rank {worker.rank} waits in {worker.doing}" for worker in waiting[:_SHOWN_WHEN_STUCK]]
    more = len(waiting) - len(places)
    return f"the step is stuck: nothing left to happen, but {', '.join(places)}" + (f" and {more} more" if more else "")


def simulate_step(
    program: StepProgram, *, keep_transfers: bool = False, fuse: bool = True, skip: bool = True
) -> StepResult:
    """Simulate one training step.

    Parameters
    ----------
    keep_transfers
        Whether to record every coflow, of which a large step has tens of thousands; nothing is fused or skipped then.
    fuse
        Whether chains, calls and meetings that nobody disturbs are one event each. The result is the same.
    skip
        Whether a steady state is simulated once. The result is the same.

    Raises
    ------
    ScheduleError
        When ranks wait for one another, or join what they have not started.
    TopologyError
        When a coflow crosses a link without capacity.
    """
    with no_garbage():
        return Iteration(program, keep_transfers=keep_transfers, fuse=fuse, skip=skip).run()
