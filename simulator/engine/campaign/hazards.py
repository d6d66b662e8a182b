"""When things happen to a job: streams of arrivals, drawn in blocks and merged into one.

Every class has a cumulative hazard; unit exponentials are mapped through its inverse, so that a rate that changes over
time costs nothing extra and campaigns that differ in a rate meet the same failures at scaled times. The blocks of a
stream have sizes of their own: what a stream yields does not depend on who asks, or for how much.

Limits: the hazard of a `renewal` or `batch` class knows no windows; a renewal process starts with a renewal at 0.
Pinned by tests/engine/campaign/test_hazards.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.physics.campaign.plan import Hazard
from simulator.scenario.units import Seconds

Times = NDArray[np.float64]

_FIRST_BLOCK, _LAST_BLOCK = 64, 4096
_NEWTON_STEPS = 200


def generator(seed: int, replication: int, name: str) -> np.random.Generator:
    """The stream of random numbers of this name: keyed by name, so that nobody shifts anybody else's draws."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(replication, *name.encode())))


def block_size(number: int) -> int:
    """Arrivals of a stream's block of this number: small at first, then thousands."""
    return min(_FIRST_BLOCK << min(number, 12), _LAST_BLOCK)


class Clock:
    """Cumulative hazard of a `poisson` class, and its inverse: rate times factor of the windows, times burn-in.

    On each piece between two edges of windows it is f [u + c (1 - e^(-u/decay))] for u seconds since the edge.
    """

    def __init__(self, hazard: Hazard, share: float = 1.0):
        self.rate = hazard.rate * share
        burn_in = hazard.burn_in
        self.plain = not hazard.windows and (burn_in is None or burn_in.excess == 0)
        if self.plain:
            return
        self.excess, self.decay = (burn_in.excess, burn_in.decay) if burn_in else (0.0, 1.0)
        edges = {0.0, *(max(0.0, edge) for window in hazard.windows for edge in (window.start, window.end))}
        self.edges = np.array(sorted(edge for edge in edges if math.isfinite(edge)))
        self.factors = np.array(
            [
                self.rate * math.prod(window.factor for window in hazard.windows if window.start <= edge < window.end)
                for edge in self.edges
            ]
        )
        spans = self.factors[:-1] * self._piece(self.edges[:-1], np.diff(self.edges))
        self.sums = np.concatenate([[0.0], np.cumsum(spans)])

    def _piece(self, edges: Times, passed: Times) -> Times:
        scale: Times = self.excess * self.decay * np.exp(-edges / self.decay)
        return passed - scale * np.expm1(-passed / self.decay)

    def sum(self, time: Seconds) -> float:
        """Expected arrivals until `time`."""
        if self.plain:
            return self.rate * time
        place = int(np.searchsorted(self.edges, time, side="right")) - 1
        piece = self._piece(self.edges[place : place + 1], np.array([time - self.edges[place]]))
        return float(self.sums[place] + self.factors[place] * piece[0])

    def times(self, sums: Times) -> Times:
        """When the cumulative hazard reaches `sums`; infinite where it never does."""
        if self.plain:
            return sums / self.rate if self.rate > 0 else np.full(len(sums), math.inf)
        place = np.searchsorted(self.sums, sums, side="right") - 1
        factors = self.factors[place]
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(factors > 0, (sums - self.sums[place]) / factors, math.inf)
        edges = self.edges[place]
        slope = self.excess * np.exp(-edges / self.decay)
        passed = wanted / (1 + slope)  # Newton on a concave function: from the left, never beyond the root
        finite = np.isfinite(wanted)
        for _ in range(_NEWTON_STEPS):
            fade = np.exp(-passed[finite] / self.decay)
            reached = passed[finite] + slope[finite] * self.decay * (1 - fade)
            change = (wanted[finite] - reached) / (1 + slope[finite] * fade)
            passed[finite] += change
            if not np.any(np.abs(change) > 1e-14 * wanted[finite]):
                break
        return edges + passed


class Stream:
    """Arrival times of one class, ascending, block by block; `share` is the part of its hazard that comes from here."""

    def __init__(self, hazard: Hazard, rng: np.random.Generator | None, share: float = 1.0):
        self.hazard = hazard
        self.rng = rng
        self.share = share
        self.number = 0
        self.passed = 0.0
        self.clock = Clock(hazard, share) if hazard.kind == "poisson" else None
        self.over = share <= 0 or (hazard.rate <= 0 and hazard.kind in ("poisson", "renewal"))
        if hazard.kind == "batch":
            self.over = share <= 0 or hazard.units <= 0

    def block(self) -> Times:
        """The next arrivals; `over` once there are no more."""
        hazard, size = self.hazard, block_size(self.number)
        self.number += 1
        if hazard.kind == "times":
            self.over = True
            return np.array(hazard.times, dtype=np.float64)
        assert self.rng is not None
        if hazard.kind == "renewal":
            return self._sums(self._gaps(hazard, size))
        sums = self._sums(self.rng.standard_exponential(size))
        if self.clock is not None:
            return self.clock.times(sums)
        assert hazard.shape is not None
        units = hazard.units * self.share
        past = (hazard.age / hazard.scale) ** hazard.shape
        times: Times = hazard.scale * (sums / units + past) ** (1 / hazard.shape) - hazard.age
        return np.maximum(times, 0.0)

    def _gaps(self, hazard: Hazard, size: int) -> Times:
        assert self.rng is not None
        rate = hazard.rate * self.share
        if hazard.shape is not None:
            exponentials = self.rng.standard_exponential(size)
            gaps: Times = exponentials ** (1 / hazard.shape) / (rate * math.gamma(1 + 1 / hazard.shape))
            return gaps
        sigma = hazard.sigma or 0.0
        drawn: Times = np.exp(sigma * self.rng.standard_normal(size) - sigma**2 / 2) / rate
        return drawn

    def _sums(self, steps: Times) -> Times:
        sums = self.passed + np.cumsum(steps)
        self.passed = float(sums[-1])
        return sums

    def mean_rate(self, span: Seconds) -> float:
        """About how many arrivals per second there are in the first `span` seconds."""
        hazard = self.hazard
        if self.over:
            return 0.0
        if hazard.kind == "batch":
            assert hazard.shape is not None
            grown = ((hazard.age + span) / hazard.scale) ** hazard.shape - (hazard.age / hazard.scale) ** hazard.shape
            return float(self.share * hazard.units * grown / span)
        if hazard.kind == "times":
            return len(hazard.times) / span
        return self.clock.sum(span) / span if self.clock is not None else hazard.rate * self.share


class Arrivals:
    """All streams in one ascending order: `time` is that of the next arrival and `source` the number of its stream.

    Streams that arrive at the same instant come in the order of their numbers.
    """

    def __init__(self, streams: list[Stream], span: Seconds, block: int = 4096):
        self.streams = streams
        self.left: list[Times] = [np.empty(0) for _ in streams]
        rate = sum(stream.mean_rate(span) for stream in streams)
        self.span = min(span * 1.25, block / rate) if rate > 0 else span
        self.horizon = 0.0
        self.times: list[float] = []
        self.sources: list[int] = []
        self.place = 0
        self.time = -math.inf
        self.source = -1
        self._merge()

    def pop(self) -> None:
        """On to the next arrival."""
        self.place += 1
        if self.place >= len(self.times):
            self._merge()
        else:
            self.time = self.times[self.place]
            self.source = self.sources[self.place]

    def _merge(self) -> None:
        self.place = 0
        while True:
            self.horizon += self.span
            parts, owners, more = [], [], False
            for number, stream in enumerate(self.streams):
                left = self.left[number]
                while not stream.over and (len(left) == 0 or left[-1] <= self.horizon):
                    left = np.concatenate([left, stream.block()])
                    if len(left) and not math.isfinite(left[-1]):
                        stream.over = True
                cut = int(np.searchsorted(left, self.horizon, side="right"))
                if cut:
                    parts.append(left[:cut])
                    owners.append(np.full(cut, number))
                self.left[number] = left = left[cut:]
                more = more or (len(left) > 0 and math.isfinite(left[0])) or not stream.over
            if parts:
                break
            if not more:
                self.times, self.sources, self.time, self.source = [math.inf], [-1], math.inf, -1
                return
            self.span *= 2
        times = np.concatenate(parts)
        order = np.argsort(times, kind="stable")
        self.times = times[order].tolist()
        self.sources = np.concatenate(owners)[order].tolist()
        self.time, self.source = self.times[0], self.sources[0]


class LemonStream:
    """Arrivals of a class whose rate follows the lemons in the job: its clock runs as fast as there are lemons.

    Between two changes of their number the cumulative hazard is linear in it, so that the next arrival is where the
    class' own clock reaches what is left of a unit exponential.
    """

    def __init__(self, hazard: Hazard, share: float, at_start: float, rng: np.random.Generator):
        self.clock = Clock(hazard._replace(kind="poisson"), share / at_start)
        self.rng = rng
        self.left: list[float] = []
        self.number = 0
        self.since = 0.0
        self.lemons = 0
        self.wanted = self._draw()
        self.time = math.inf

    def _draw(self) -> float:
        if not self.left:
            self.left = self.rng.standard_exponential(block_size(self.number)).tolist()[::-1]
            self.number += 1
        return self.left.pop()

    def change(self, now: Seconds, lemons: int) -> None:
        """From now on there are so many lemons in the job."""
        if lemons != self.lemons:
            self._pass(now)
            self.lemons = lemons
            self._plan()

    def pop(self) -> None:
        """The next arrival has come."""
        self.since = self.time
        self.wanted = self._draw()
        self._plan()

    def _pass(self, now: Seconds) -> None:
        if self.clock.plain:
            grown = self.clock.rate * (now - self.since)
        else:
            grown = self.clock.sum(now) - self.clock.sum(self.since)
        self.wanted = max(0.0, self.wanted - self.lemons * grown)
        self.since = now

    def _plan(self) -> None:
        if self.lemons == 0:
            self.time = math.inf
        elif self.clock.plain:
            speed = self.lemons * self.clock.rate
            self.time = self.since + self.wanted / speed if speed > 0 else math.inf
        else:
            sums: Any = np.array([self.clock.sum(self.since) + self.wanted / self.lemons])
            self.time = max(self.since, float(self.clock.times(sums)[0]))
