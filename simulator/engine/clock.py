"""Events of the step's clock: a callback after a delay, and one behind everything else at an instant.

Times are multiples of a `grain`, a power of two far below what the step can resolve. Sums and differences of such
times have no rounding: the same stretch of a schedule lasts the same whenever it runs, so that a steady state repeats
to the last bit, and events that should coincide do.

Pinned by tests/engine/test_network.py and tests/engine/test_iteration.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import simpy
from simpy.events import NORMAL, Event, EventPriority

from simulator.scenario.units import Seconds

LAST = EventPriority(2)  # simpy's own priorities are 0 (urgent) and 1

GRAINS_BITS = 49
"""Grains of the work of a step, as a power of two: 2e-15 of it, and a step 16 times as long still has exact sums."""

SAME_INSTANT_GRAINS = 512.0
"""Grains within which two times are one instant: 1e-12 of the work of a step."""


class Timer(Event):
    """Calls `then` after a delay."""

    def __init__(self, env: simpy.Environment, delay: Seconds, then: Callable[[Event], None]) -> None:
        self.env = env
        self.callbacks, self._ok, self._value = [then], True, None
        env.schedule(self, NORMAL, delay)


class Late(Event):
    """Calls `then` behind everything else at this instant, also what the instant itself brings about."""

    def __init__(self, env: simpy.Environment, then: Callable[[Event], None]) -> None:
        self.env = env
        self.callbacks, self._ok, self._value = [then], True, None
        env.schedule(self, LAST)


def grain_of(work: Seconds) -> Seconds:
    """Grain of a step with so much work on its longest path."""
    return math.ldexp(1.0, math.frexp(work)[1] - GRAINS_BITS - 1) if 0 < work < math.inf else 2.0**-60


def rounder(grain: Seconds) -> float:
    """What rounds x to a multiple of the grain when it is added to x and taken away again; 0 rounds nothing.

    At 1.5 · 2^52 grains neighbouring floats are one grain apart. Longer x lose bits, but stay multiples.
    """
    return grain * 1.5 * 2.0**52
