"""Collectives beside compute: the stream of an axis.

Pinned by tests/engine/test_iteration.py.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from simulator.engine.step.plans import CallPlan
from simulator.engine.step.runs import Ticket

if TYPE_CHECKING:
    from simulator.engine.step.worker import Worker


class Launch:
    """A collective put on a stream: `round` counts those of its call, `ended` tells whether it is done."""

    __slots__ = ("ended", "plan", "round", "tag", "ticket")

    def __init__(self, tag: str, plan: CallPlan, number: int) -> None:
        self.tag, self.plan, self.round = tag, plan, number
        self.ticket: Ticket | None = None
        self.ended = False


class Stream:
    """Collectives of one axis beside compute: one after another, in program order.

    `covered` are the seconds that they have run since the worker began to wait for one of them.
    """

    __slots__ = ("_worker", "covered", "current", "queue")

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.current: Launch | None = None
        self.queue: deque[Launch] = deque()
        self.covered = 0.0

    def put(self, launch: Launch) -> None:
        """Queue a collective."""
        self.queue.append(launch)
        if self.current is None:
            self._next()

    def _next(self) -> None:
        worker = self._worker
        self.current = launch = self.queue.popleft()
        ticket, last = worker.iteration.arrive(launch.plan, launch.round)
        launch.ticket = ticket
        ticket.begin.append(worker.begin_beside)
        ticket.end.append(self._end)
        if last:
            ticket.execute()

    def _end(self) -> None:
        launch, worker = self.current, self._worker
        assert launch is not None
        assert launch.ticket is not None
        launch.ended, self.current = True, None
        if worker.mode == "join":
            self.covered += max(0.0, launch.ticket.ended - max(launch.ticket.started, worker.start))
        launch.ticket = None
        if self.queue:
            self._next()  # before the count goes down: kernels do not speed up for no time at all
        worker.end_beside(launch)
