"""Coflows in time: `start` calls back when the bytes are delivered, `transfer` returns an event.

Active coflows share constraints max-min fairly (`physics.sharing`). A coflow that finds its constraints unused runs at
its solo rate from the start: one event, at its end. Where coflows share, rates are solved once per instant, behind
everything else that happens at it, and only for those that share a constraint, directly or through others, with one
that started or ended; a combination that was solved before is looked up. Between solves rates are constant, so a
coflow's end is known; a change of rate moves it, and a version number discards the end that was expected before.

Whoever runs collectives without telling the network about each of them (a chain in one timeout) holds their
constraints; a coflow that starts on a constraint that is held interrupts the holder, at that same instant.

Completions within a relative 1e-12 of each other are one instant: all end, then one solve.

Limits: rates change at once (no congestion-control transient). Pinned by tests/engine/test_network.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

import numpy as np
import simpy
from simpy.events import Event

from simulator.engine.clock import SAME_INSTANT_GRAINS, Late, Timer, rounder
from simulator.errors import TopologyError
from simulator.physics.program.steps import Coflow
from simulator.physics.sharing import max_min_rates
from simulator.scenario.units import Bytes, BytesPerSecond, Seconds

_SAME_INSTANT = 1e-12


class Holder(Protocol):
    """Who runs collectives on its own and has to be told when that ends."""

    def interrupt(self) -> None:
        """Something else starts on a constraint that is held: let go of all of them, and go on in detail."""


class Flow:
    """One coflow in progress: `remaining` bytes at time `updated`."""

    __slots__ = ("coflow", "done", "index", "rate", "remaining", "updated", "version")

    def __init__(self, index: int, coflow: Coflow, size: Bytes, now: Seconds, done: Callable[[], None]) -> None:
        self.index, self.coflow, self.remaining, self.done = index, coflow, size, done
        self.rate, self.updated, self.version = 0.0, now, 0


class Network:
    """The fluid network of one iteration.

    Parameters
    ----------
    env
        Clock.
    coflows, capacity
        As in `StepProgram`.
    grain
        Times are multiples of it; 0 for any time.
    known
        Rates of combinations that were solved before, shared between networks of the same coflows.

    Attributes
    ----------
    solves
        Max-min problems solved so far.
    """

    def __init__(
        self,
        env: simpy.Environment,
        coflows: tuple[Coflow, ...],
        capacity: tuple[float, ...],
        *,
        grain: Seconds = 0.0,
        known: dict[tuple[int, ...], tuple[BytesPerSecond, ...]] | None = None,
    ) -> None:
        self.env = env
        self.coflows = coflows
        self.capacity = np.asarray(capacity, dtype=float)
        self.solves = 0
        self.known: dict[tuple[int, ...], tuple[BytesPerSecond, ...]] = {} if known is None else known
        self.users: list[dict[Flow, None]] = [{} for _ in capacity]
        self._holders: dict[int, Holder] = {}
        self._touched: dict[Flow, None] = {}
        self._solve_due = False
        self._ends: list[tuple[float, int, int, Flow]] = []  # heap of (end, tie-breaker, version, flow)
        self._tie = count()
        self._alarm = math.inf
        self._rounder = rounder(grain)
        self._same = SAME_INSTANT_GRAINS * grain
        self._same_relative = 0.0 if grain else _SAME_INSTANT

    # --- starts ------------------------------------------------------------------------------------------------------

    def transfer(self, index: int, size: Bytes) -> Event:
        """Move `size` bytes on the busiest edge of coflow `index`; the event succeeds on delivery.

        Raises
        ------
        TopologyError
            When the coflow has no rate: it would never end.
        """
        done = self.env.event()
        if not self.takes_time(index, size):
            done.succeed()
            return done

        def deliver() -> None:
            done.succeed()

        self.start(index, size, deliver)
        return done

    def takes_time(self, index: int, size: Bytes) -> bool:
        """Whether there is anything to move, and anything that holds it back.

        Raises
        ------
        TopologyError
            When the coflow has no rate: it would never end.
        """
        coflow = self.coflows[index]
        if size <= 0 or coflow.solo_rate == math.inf:
            return False
        if not coflow.solo_rate > 0:
            raise TopologyError(f"{coflow.name} crosses a link without capacity and would never end")
        return True

    def start(self, index: int, size: Bytes, done: Callable[[], None]) -> Flow:
        """Start a transfer that takes time; `done` is called on delivery."""
        coflow = self.coflows[index]
        flow = Flow(index, coflow, size, self.env.now, done)
        if self._register(flow):
            self._touch((flow,))
        else:
            self._retime(flow, coflow.solo_rate)
            self._set_alarm()
        self._interrupt_holders(coflow)
        return flow

    def adopt(self, index: int, left: Bytes, rate: BytesPerSecond, since: Seconds, done: Callable[[], None]) -> Flow:
        """Take over a transfer that has run at `rate` since a time at which it had so many bytes left."""
        flow = Flow(index, self.coflows[index], left, since, done)
        self._register(flow)
        self._retime(flow, rate)
        self._touch((flow,))
        self._interrupt_holders(flow.coflow)
        return flow

    def _register(self, flow: Flow) -> bool:
        """Put a flow on its constraints; whether any of them is used already."""
        shared = False
        for constraint in flow.coflow.constraints:
            users = self.users[constraint]
            if users:
                shared = True
            users[flow] = None
        return shared

    # --- holds -------------------------------------------------------------------------------------------------------

    def is_free(self, constraints: Iterable[int], holder: Holder) -> bool:
        """Whether no coflow is on these constraints and nobody else holds them."""
        users, holders = self.users, self._holders
        return not any(users[each] or holders.get(each, holder) is not holder for each in constraints)

    def hold(self, constraints: Iterable[int], holder: Holder) -> None:
        """Hold constraints that are free."""
        for constraint in constraints:
            self._holders[constraint] = holder

    def release(self, constraints: Iterable[int], holder: Holder) -> None:
        """Let go of those constraints that this holder holds."""
        holders = self._holders
        for constraint in constraints:
            if holders.get(constraint) is holder:
                del holders[constraint]

    def _interrupt_holders(self, coflow: Coflow) -> None:
        if self._holders:
            for constraint in coflow.constraints:
                holder = self._holders.get(constraint)
                if holder is not None:
                    holder.interrupt()

    # --- rates -------------------------------------------------------------------------------------------------------

    def _touch(self, flows: Iterable[Flow]) -> None:
        """Ask for the rates of these flows, and of all that share with them, once this instant is over."""
        for flow in flows:
            self._touched[flow] = None
        if not self._solve_due:
            self._solve_due = True
            Late(self.env, self._solve)

    def _solve(self, _: Event) -> None:
        self._solve_due = False
        if self._deliver():
            self._touch(())  # what these ends bring about belongs to this instant too
            return
        touched, self._touched = self._touched, {}
        while touched:
            component = self._component(next(iter(touched)))
            for flow in component:
                touched.pop(flow, None)
            self._assign(component)
        self._set_alarm()

    def _component(self, seed: Flow) -> list[Flow]:
        """Flows that share a constraint with the seed, directly or through others."""
        found = {seed: None}
        stack = [seed]
        while stack:
            for constraint in stack.pop().coflow.constraints:
                for flow in self.users[constraint]:
                    if flow not in found:
                        found[flow] = None
                        stack.append(flow)
        return list(found)

    def _assign(self, component: list[Flow]) -> None:
        if len(component) == 1:
            rates: tuple[float, ...] = (component[0].coflow.solo_rate,)
        else:
            # rates depend only on which coflows share, and a training step repeats the same few combinations
            component.sort(key=lambda flow: flow.index)
            key = tuple(flow.index for flow in component)
            if key not in self.known:
                self.solves += 1
                self.known[key] = self._shared_rates(component)
            rates = self.known[key]
        now = self.env.now
        for flow, rate in zip(component, rates, strict=True):
            if rate == flow.rate:
                continue
            flow.remaining = max(0.0, flow.remaining - flow.rate * (now - flow.updated))
            flow.updated = now
            self._retime(flow, rate)

    def _retime(self, flow: Flow, rate: BytesPerSecond) -> None:
        """Give a flow a rate, from `updated` on."""
        flow.rate = rate
        flow.version += 1
        end = flow.updated + (flow.remaining / rate + self._rounder - self._rounder)
        heappush(self._ends, (end, next(self._tie), flow.version, flow))

    def _shared_rates(self, component: list[Flow]) -> tuple[BytesPerSecond, ...]:
        coflows = [flow.coflow for flow in component]
        indptr = np.cumsum([0, *(len(coflow.constraints) for coflow in coflows)])
        links = np.concatenate([coflow.constraints for coflow in coflows]).astype(np.int64)
        usage = np.concatenate([coflow.usage for coflow in coflows])
        weight = np.array([coflow.weight for coflow in coflows])
        cap = np.array([coflow.cap for coflow in coflows])
        local, compact = np.unique(links, return_inverse=True)
        rates = max_min_rates(self.capacity[local], indptr, compact, usage, weight, cap)
        return tuple(float(rate) for rate in rates)

    # --- ends --------------------------------------------------------------------------------------------------------

    def _set_alarm(self) -> None:
        """Wake up at the next end, unless that is arranged already."""
        while self._ends and self._ends[0][2] != self._ends[0][3].version:
            heappop(self._ends)
        if not self._ends or self._ends[0][0] == self._alarm:
            return
        self._alarm = at = self._ends[0][0]

        def ring(_: Event) -> None:
            if at == self._alarm:  # else another alarm has taken its place
                self._alarm = math.inf
                self._deliver()
                if not self._solve_due:
                    self._set_alarm()

        Timer(self.env, max(0.0, at - self.env.now), ring)

    def _deliver(self) -> bool:
        """End all flows whose end is this instant up to rounding; whether there were any."""
        now = self.env.now
        latest = now + self._same + now * self._same_relative
        ended: list[Flow] = []
        while self._ends and self._ends[0][0] <= latest:
            _, _, version, flow = heappop(self._ends)
            if version == flow.version:
                self._finish(flow)
                ended.append(flow)
        for flow in ended:  # once all have ended: what they bring about finds their links free
            flow.done()
        return bool(ended)

    def _finish(self, flow: Flow) -> None:
        flow.version += 1
        self._touched.pop(flow, None)
        for constraint in flow.coflow.constraints:
            users = self.users[constraint]
            del users[flow]
            if users:
                self._touch(users)
