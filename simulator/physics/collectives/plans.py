"""Plans: a collective as phases of traffic, how fast each may run, its predicted time, and the choice between plans.

The time of traffic that has its links to itself is

    latency + wire · size / (efficiency · capacity) + fill · size / (size + knee)

where the last term is the pipeline's: a large message pays the whole fill once, a small one, cut into smaller chunks, a
part of it in proportion. It enters the engine as a cap on the rate, so that contention is shared on top.

Shapes: G groups. Pinned by tests/physics/collectives/test_plans.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simulator.physics.collectives.groups import FloatArray, Pattern
from simulator.scenario.units import Bytes, BytesPerSecond, Seconds


class Traffic(NamedTuple):
    """A pattern and the bytes that its rate has to move per byte of the collective's size."""

    pattern: Pattern
    wire: float


class Ramp(NamedTuple):
    """How traffic reaches its full rate.

    Attributes
    ----------
    inside, across
        Share of the capacity of scale-up links, and of the network's, that it reaches.
    fill
        Seconds to fill the pipeline.
    knee
        Size of the collective at which half of it is paid, bytes.
    most
        The pattern's largest rate, bytes/s.
    """

    inside: float = 1.0
    across: float = 1.0
    fill: Seconds = 0.0
    knee: Bytes = 0.0
    most: BytesPerSecond = math.inf


class Phase(NamedTuple):
    """Traffic that starts together, after the `latency` of each group [G], with the ramp of each."""

    traffic: tuple[Traffic, ...]
    latency: FloatArray
    ramps: tuple[Ramp, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """A collective as one algorithm and protocol run it on the groups of a batch."""

    op: str
    algorithm: str
    protocol: str
    phases: tuple[Phase, ...]


def rate_cap(plan: Plan, pattern: Pattern, size: Bytes = math.inf) -> FloatArray:
    """The most that the plan moves for each group on an otherwise idle cluster, bytes/s. [G].

    `size` is that of the whole collective (nccl-tests' full buffer): small ones do not fill the pipeline.
    """
    for phase in plan.phases:
        for traffic, ramp in zip(phase.traffic, phase.ramps, strict=True):
            if traffic.pattern is pattern:
                return _cap(traffic, ramp, size)
    raise ValueError(f"the plan ({plan.algorithm} {plan.op}) has no such pattern")


def _cap(traffic: Traffic, ramp: Ramp, size: Bytes) -> FloatArray:
    pattern = traffic.pattern
    full = np.minimum(ramp.inside * pattern.solo_inside, ramp.across * pattern.solo_across).clip(max=ramp.most)
    if not ramp.fill:
        return full
    return 1.0 / (1.0 / full + ramp.fill / (traffic.wire * (size + ramp.knee)))


def phase_latency(plan: Plan, phase: Phase, size: Bytes) -> FloatArray:
    """Seconds before each group's traffic of this phase flows, for a collective of `size` bytes. [G].

    Today the same for every size: what depends on size is in `rate_cap`.
    """
    del plan, size
    return phase.latency


def solo_time(plan: Plan, size: Bytes) -> FloatArray:
    """Predicted time of each group without contention, neither with others nor between patterns of a phase. [G].

    One group may be asked for many sizes at once: with `size` [K] the result is [K].
    """
    total: FloatArray = np.zeros(1)
    for phase in plan.phases:
        slowest: FloatArray = np.zeros(1)
        for traffic, ramp in zip(phase.traffic, phase.ramps, strict=True):
            slowest = np.maximum(slowest, size * traffic.wire / _cap(traffic, ramp, size))
        total = total + phase_latency(plan, phase, size) + slowest
    return total


def choose(plans: list[Plan], size: Bytes) -> Plan:
    """Plan with the least predicted time, as NCCL's tuner picks; the first of equals.

    The tuner knows the machine as it should be, not its faults: the fastest group of the batch decides for all.
    """
    return min(plans, key=lambda plan: float(solo_time(plan, size).min()))


def busbw_factor(op: str, n: int) -> float:
    """Bus bandwidth over algorithm bandwidth (NVIDIA/nccl-tests, doc/PERFORMANCE.md)."""
    return {"all_reduce": 2 * (n - 1) / n, "broadcast": 1.0, "send_recv": 1.0}.get(op, (n - 1) / n)
