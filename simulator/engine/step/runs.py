"""Calls in progress: who has to arrive, how a call runs, and channels of messages.

A `Run` executes one call. As long as nothing else is on its constraints it is one timer, and holds them. Once it is
interrupted it settles: the phase it is in, the latency left, or bytes left of each transfer at the rates that they have
had since their phase began. Those become real coflows, as if they had been ones from the start.

Pinned by tests/engine/test_iteration.py and tests/engine/test_lazy.py.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import simpy
from simpy.events import Event

from simulator.engine.clock import Late, Timer
from simulator.engine.network import Flow, Network
from simulator.engine.step.plans import CallPlan
from simulator.physics.program.steps import Message
from simulator.records import Transfer
from simulator.scenario.units import Bytes, Seconds


class Engine(Protocol):
    """What a run needs of the iteration: clock, network, and what is to be called before time goes on."""

    env: simpy.Environment
    network: Network
    ready: deque[Callable[[], None]]
    fuse: bool
    transfers: list[Transfer] | None


class Run:
    """One execution of a call.

    Attributes
    ----------
    mode
        `alone` (one timer for all that is left), `latency` or `moving` (in detail), or empty in between.
    phase, since
        The phase that it is in, and when that began; `alone`: the phase it was in when it was left alone.
    """

    __slots__ = ("_left", "_timer", "done", "engine", "flows", "mode", "phase", "plan", "since")

    def __init__(self, engine: Engine, plan: CallPlan, done: Callable[[], None]) -> None:
        self.engine, self.plan, self.done = engine, plan, done
        self.mode, self.phase, self.since = "", 0, 0.0
        self.flows: list[Flow] = []
        self._timer: Timer | None = None
        self._left = 0

    def start(self, elapsed: Seconds = 0.0) -> None:
        """Start, or go on `elapsed` seconds after a start that was left alone until now."""
        phase = bisect_right(self.plan.starts, elapsed) - 1 if elapsed else 0
        self._proceed(phase, elapsed - self.plan.starts[phase])

    def _proceed(self, phase: int, into: Seconds) -> None:
        """Go on from some seconds into a phase."""
        engine, plan = self.engine, self.plan
        delay = plan.seconds - plan.starts[phase] - into
        self.phase, self.since = phase, engine.env.now - into
        if delay <= 0 and not (plan.phases[phase:] and engine.transfers is not None):
            self.mode = ""
            engine.ready.append(self.done)
        elif engine.fuse and (not plan.contended or engine.network.is_free(plan.contended, self)):
            self.mode = "alone"
            engine.network.hold(plan.contended, self)
            self._timer = Timer(engine.env, delay, self._ring)
        elif into < plan.phases[phase].latency:
            self.mode = "latency"
            self._timer = Timer(engine.env, plan.phases[phase].latency - into, self._ring)
        else:
            self._move(into - plan.phases[phase].latency)

    def interrupt(self) -> None:
        """Something else has started on a constraint that is held."""
        self.engine.network.release(self.plan.contended, self)
        plan = self.plan
        elapsed = plan.starts[self.phase] + (self.engine.env.now - self.since)
        if elapsed >= plan.seconds:
            return  # the timer is about to ring
        self.phase = bisect_right(plan.starts, elapsed) - 1
        self.since = self.engine.env.now - (elapsed - plan.starts[self.phase])
        self.mode, self._timer = "", None
        self.engine.ready.append(self._resume)

    def _resume(self) -> None:
        self._proceed(self.phase, self.engine.env.now - self.since)

    def _ring(self, timer: Event) -> None:
        if timer is not self._timer:
            return
        self._timer = None
        if self.mode == "latency":
            self._move(0.0)
            return
        self.engine.network.release(self.plan.contended, self)
        self.mode = ""
        self.done()

    def _move(self, elapsed: Seconds) -> None:
        """Start the transfers of a phase, or take them over some seconds after the first byte."""
        engine, phase = self.engine, self.plan.phases[self.phase]
        network, now = engine.network, engine.env.now
        self.mode = "moving"
        deliver = self._delivered
        if engine.transfers is not None:
            for index, size in phase.instant:
                self._recorded(index, size, now)
        if elapsed:
            start, moving = now - elapsed, phase.moving(elapsed, network.coflows)
            self._left = len(moving)
            self.flows = [network.adopt(m.coflow, m.left, m.rate, start + m.updated, deliver) for m in moving]
        elif engine.transfers is None:
            self._left = len(phase.transfers)
            self.flows = [network.start(index, size, deliver) for index, size in phase.transfers]
        else:
            self._left = len(phase.transfers)
            for index, size in phase.transfers:
                network.start(index, size, partial(self._record_delivery, index, size, now))
        if not self._left:
            self._proceed(self.phase + 1, 0.0)

    def _delivered(self) -> None:
        self._left -= 1
        if not self._left:
            self.flows = []
            self._proceed(self.phase + 1, 0.0)

    def _record_delivery(self, index: int, size: Bytes, start: Seconds) -> None:
        self._recorded(index, size, start)
        self._delivered()

    def _recorded(self, index: int, size: Bytes, start: Seconds) -> None:
        assert self.engine.transfers is not None
        self.engine.transfers.append(Transfer(index, self.plan.call.name, start, self.engine.env.now, size))


class Ticket:
    """One occurrence of a call: how many have not arrived, when it started, when it ended, whom to tell.

    Where nothing can disturb the call it is a timer, else a `run`.
    """

    __slots__ = ("begin", "end", "ended", "engine", "missing", "plan", "run", "started")

    def __init__(self, engine: Engine, plan: CallPlan, members: int) -> None:
        self.engine, self.plan, self.missing = engine, plan, members
        self.started = self.ended = math.nan
        self.begin: list[Callable[[], None]] = []
        self.end: list[Callable[[], None]] = []
        self.run: Run | None = None

    def execute(self) -> None:
        """All have arrived."""
        engine, plan = self.engine, self.plan
        self.started = engine.env.now
        for tell in self.begin:
            tell()
        if engine.fuse and plan.seconds and not plan.contended:
            Timer(engine.env, plan.seconds, self._finish)
        else:
            self.run = Run(engine, plan, self._finish)
            self.run.start()

    def _finish(self, _: Event | None = None) -> None:
        self.ended = self.engine.env.now
        self.run = None
        self.engine.ready.extend(self.end)


class Channel:
    """Messages between two rank classes, in one direction: one after another.

    Where messages of several kinds or stages can meet, those that are posted at one instant queue up in the order of
    (kind, stage, microbatch), whatever the order of the posts.
    """

    __slots__ = ("_engine", "_mixed", "fresh", "queue", "running")

    def __init__(self, engine: Engine, *, mixed: bool) -> None:
        self._engine, self._mixed = engine, mixed
        self.running: Ticket | None = None
        self.queue: deque[tuple[Message, Ticket]] = deque()
        self.fresh: list[tuple[Message, Ticket]] = []

    def put(self, message: Message, ticket: Ticket) -> None:
        """Both sides of a message have been posted."""
        if self._mixed:
            if not self.fresh:
                Late(self._engine.env, self._admit)
            self.fresh.append((message, ticket))
            return
        self.queue.append((message, ticket))
        if self.running is None:
            self._next()

    def _admit(self, _: Event) -> None:
        self.queue.extend(sorted(self.fresh, key=lambda entry: entry[0][1:]))
        self.fresh = []
        if self.running is None:
            self._next()

    def rename(self, shift: int) -> None:
        """Messages are known by later microbatches, after a jump."""
        self.queue = deque((message._replace(microbatch=message.microbatch + shift), t) for message, t in self.queue)
        self.fresh = [(message._replace(microbatch=message.microbatch + shift), t) for message, t in self.fresh]

    def _next(self) -> None:
        self.running = None
        if self.queue:
            self.running = self.queue.popleft()[1]
            self.running.end.append(self._next)
            self.running.execute()
