"""A chain on its way: walked in stretches, each of which is one timer.

A stretch covers all segments that nobody else can disturb: up to the first call whose constraints are in use, at the
speed that kernels have now. Whoever starts something on a constraint that the stretch holds, or starts or ends the last
collective beside this rank, makes it settle where it is, by bisection of the segments' ends, and another stretch
begins. A call on constraints that are in use is a `Run`.

Pinned by tests/engine/test_iteration.py and tests/engine/test_lazy.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from simpy.events import Event

from simulator.engine.clock import Timer
from simulator.engine.step.plans import ChainPlan
from simulator.engine.step.runs import Run
from simulator.scenario.units import Seconds

if TYPE_CHECKING:
    from simulator.engine.iteration import Iteration
    from simulator.engine.step.worker import Worker


class Course:
    """The chain of a worker.

    Attributes
    ----------
    chain
        None when there is none.
    segment, into
        `into` seconds of the segment's own time were done when the stretch began.
    stretch, slow
        When the stretch, or the call in detail, began; whether kernels are slowed in it (0 or 1).
    lost, extra
        Seconds lost to slower kernels; seconds that calls took more than alone, by state.
    run
        The call that runs in detail.
    """

    def __init__(self, iteration: Iteration, worker: Worker) -> None:
        self.iteration, self.env, self._worker = iteration, iteration.env, worker
        self.chain: ChainPlan | None = None
        self.segment = self.slow = 0
        self.into = self.lost = self.stretch = 0.0
        self.extra: dict[str, Seconds] = {}
        self.run: Run | None = None
        self._stop = 0
        self._first = 0.0
        self._timer: Timer | None = None
        self._tell_ring = self._ring  # bound once

    def begin(self, chain: ChainPlan) -> bool:
        """Begin a chain; whether it takes time."""
        self.chain, self.stretch = chain, self.env.now
        self.segment, self.into, self.lost = 0, 0.0, 0.0
        if self.extra:
            self.extra = {}
        if chain.contended or not self.iteration.fuse or not chain.ends[0][-1]:
            return not self._roll()
        self.slow = 1 if self._worker.beside else 0
        ends = chain.ends[self.slow]
        self._stop, self._first = chain.count, ends[1]
        self._timer = Timer(self.env, ends[-1], self._tell_ring)
        return True

    def _roll(self) -> bool:
        """Begin a stretch, or a call in detail; whether the chain has ended instead."""
        chain = self.chain
        assert chain is not None
        while self.segment < chain.count:
            stop = self._reach(chain)
            if stop == self.segment:
                plan = chain.calls[stop]
                assert plan is not None
                self._release(chain)
                self.stretch = self.env.now
                self.run = Run(self.iteration, plan, self._called)
                self.run.start(self.into)
                return False
            self.slow = 1 if self._worker.beside else 0
            ends = chain.ends[self.slow]
            if self.into:
                self._first = self._left_of_segment(chain)
                delay = self._first + (ends[stop] - ends[self.segment + 1])
            else:
                self._first = ends[self.segment + 1] - ends[self.segment]
                delay = ends[stop] - ends[self.segment]
            self.stretch, self._stop = self.env.now, stop
            if delay > 0:
                self._timer = Timer(self.env, delay, self._tell_ring)
                return False
            self._skip_to(stop)
        self._end_chain(chain)
        return True

    def _left_of_segment(self, chain: ChainPlan) -> Seconds:
        """Seconds that the segment in progress still takes at today's speed."""
        segment = chain.segments[self.segment]
        if not segment.kernel:
            return chain.ends[0][self.segment + 1] - chain.ends[0][self.segment] - self.into
        factor = self.iteration.program.overlap_slowdown if self.slow else 1.0
        return max(0.0, self.iteration.plans.round((segment.seconds - self.into) * factor))

    def _reach(self, chain: ChainPlan) -> int:
        """First segment that the next stretch cannot cover; what the stretch covers is held from now on."""
        if not self.iteration.fuse:
            return self.segment + (chain.calls[self.segment] is None)
        if not chain.contended:
            return chain.count
        network = self.iteration.network
        if network.is_free(chain.contended, self):
            network.hold(chain.contended, self)
            return chain.count
        stop = chain.count
        free = []
        for plan, places in chain.places:
            following = bisect_left(places, self.segment)
            if following < len(places):
                if network.is_free(plan.contended, self):
                    free.append((places[following], plan))
                else:
                    stop = min(stop, places[following])
        for place, plan in free:
            if place < stop:
                network.hold(plan.contended, self)
        return stop

    def _ring(self, timer: Event) -> None:
        if timer is self._timer:
            self._skip_to(self._stop)
            if self._roll():
                self._worker.advance()

    def _skip_to(self, stop: int) -> None:
        """The stretch has come to its end."""
        chain = self.chain
        assert chain is not None
        if self.slow:
            nominal = chain.ends[0][stop] - chain.ends[0][self.segment] - self.into
            self.lost += max(0.0, self.env.now - self.stretch - nominal)
        self.segment, self.into, self._timer = stop, 0.0, None
        self._release(chain)

    def _go_on(self) -> None:
        if self.chain is not None and self._timer is None and self.run is None and self._roll():
            self._worker.advance()

    def _called(self) -> None:
        """A call that ran in detail has ended."""
        chain = self.chain
        assert chain is not None
        assert self.run is not None
        nominal = chain.ends[0][self.segment + 1] - chain.ends[0][self.segment] - self.into
        more = self.env.now - self.stretch - nominal
        if more:
            state = chain.segments[self.segment].state
            self.extra[state] = self.extra.get(state, 0.0) + more
        self.run, self.segment, self.into = None, self.segment + 1, 0.0
        self._go_on()

    def _release(self, chain: ChainPlan) -> None:
        if chain.contended:
            self.iteration.network.release(chain.contended, self)

    def interrupt(self) -> None:
        """Something else has started on a constraint that the stretch holds."""
        assert self.chain is not None
        self._release(self.chain)
        if self._timer is not None:
            self._settle()
            self.iteration.ready.append(self._go_on)

    def _settle(self) -> None:
        """Find where in the chain this stretch has got to, and end it there."""
        chain = self.chain
        assert chain is not None
        ends = chain.ends[self.slow]
        segment, spent = self.segment, self.env.now - self.stretch
        if spent >= self._first:
            reached = ends[segment + 1] + (spent - self._first)
            segment = bisect_right(ends, reached, segment + 1, self._stop + 1) - 1
            into, spent = 0.0, reached - ends[segment]
        else:
            into = self.into
        if segment < self._stop and chain.segments[segment].kernel and self.slow:
            into += spent / self.iteration.program.overlap_slowdown
        else:
            into += spent
        if self.slow:
            nominal = chain.ends[0][segment] - chain.ends[0][self.segment] + into - self.into
            self.lost += max(0.0, self.env.now - self.stretch - nominal)
        self.segment, self.into, self._timer = segment, into, None

    def _end_chain(self, chain: ChainPlan) -> None:
        parts = chain.parts
        if self.extra:
            more = {state: seconds for state, seconds in parts}
            for state, seconds in self.extra.items():
                more[state] = more.get(state, 0.0) + seconds
            parts = tuple(more.items())
        if self.lost:
            parts = (*parts, ("overlap_slowdown", self.lost))
        self.chain = None
        self._worker.chain_ended(parts)

    def change_speed(self) -> None:
        """The first collective beside has begun, or the last one has ended."""
        if self._timer is not None and self.iteration.program.overlap_slowdown != 1.0:
            self._settle()
            self.iteration.ready.append(self._go_on)
