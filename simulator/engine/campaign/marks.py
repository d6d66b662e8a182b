"""What each arrival brings: durations, machines, luck. Drawn per arrival, also for those that do not strike.

An arrival's marks come from a stream of its class' own, in a layout that does not depend on the plan: a campaign that
restarts faster, or diagnoses better, meets the same victims and the same repairs.

Pinned by tests/engine/campaign/test_hazards.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulator.engine.campaign.hazards import block_size
from simulator.physics.campaign.plan import CampaignPlan, Duration, JobFailure
from simulator.scenario.units import Seconds

# Columns of the normal and of the uniform draws of an arrival.
_DETECTION, _DIAGNOSIS, _RESTART, _REPAIR, _MANUAL = range(5)
_SHARE, _MACHINES, _BURST, _WRONG, _VICTIM, _ESCALATION, _CURE = range(7)
NORMALS, UNIFORMS = 5, 7


class Mark:
    """What one arrival of a failure class brings.

    Attributes
    ----------
    detection, diagnosis, restart, in_place
        Seconds.
    machines
        How many it takes.
    wrong
        Whether another machine is named.
    victim
        A number in 0..1 that picks the first machine.
    repair, manual, cured
        Seconds until the first machine is back, whether that is by hand, and whether a lemon would be good then.
    """

    __slots__ = (
        "cured", "detection", "diagnosis", "in_place", "machines", "manual", "repair", "restart", "victim", "wrong",
    )  # fmt: skip

    def __init__(self, columns: tuple[Any, ...]):
        (
            self.detection, self.diagnosis, self.restart, self.in_place, self.machines, self.wrong, self.victim,
            self.repair, self.manual, self.cured,
        ) = columns  # fmt: skip


class Marks:
    """The marks of a failure class, in the order of its arrivals."""

    def __init__(self, failure: JobFailure, plan: CampaignPlan, rng: np.random.Generator):
        self.failure = failure
        self.plan = plan
        self.rng = rng
        self.number = 0
        self.rows: list[tuple[Any, ...]] = []
        counts, weights = zip(*failure.machines, strict=True) if failure.machines else ((1,), (1.0,))
        self.counts = np.array(counts)
        self.edges = np.cumsum(weights)[:-1]

    def next(self) -> Mark:
        """The marks of the next arrival."""
        if not self.rows:
            self.draw()
        return Mark(self.rows.pop())

    def skip(self) -> None:
        """The next arrival did not strike."""
        if not self.rows:
            self.draw()
        self.rows.pop()

    def draw(self) -> None:
        """Draw the marks of the next block of arrivals."""
        failure, plan, size = self.failure, self.plan, block_size(self.number)
        self.number += 1
        normal = self.rng.standard_normal((NORMALS, size))
        even = self.rng.random((UNIFORMS, size))
        restart = failure.restart or plan.restart
        in_place = failure.restart or plan.restart_in_place or plan.restart
        lost = even[_SHARE] < failure.machine_share
        machines = self.counts[np.searchsorted(self.edges, even[_MACHINES], side="right")]
        machines = machines + np.where(even[_BURST] < failure.burst[0], failure.burst[1], 0)
        machines = np.minimum(np.where(lost, machines, 0), plan.machines)
        repair, manual, cured = _repairs(
            failure, plan, normal[_REPAIR], normal[_MANUAL], even[_ESCALATION], even[_CURE]
        )
        columns = (
            durations(failure.detection, normal[_DETECTION]),
            durations(failure.diagnosis, normal[_DIAGNOSIS]),
            durations(restart, normal[_RESTART]),
            durations(in_place, normal[_RESTART]),
            machines.tolist(),
            ((even[_WRONG] < failure.wrong_diagnosis) & (machines > 0)).tolist(),
            even[_VICTIM].tolist(),
            repair,
            manual,
            cured,
        )
        self.rows = list(zip(*columns, strict=True))
        self.rows.reverse()


def durations(duration: Duration, normal: Any) -> list[float]:
    """Lognormal times of these normal draws; the same one everywhere at sigma 0."""
    if duration.sigma == 0:
        return [duration.median] * len(normal)
    drawn: list[float] = (duration.median * np.exp(duration.sigma * normal)).tolist()
    return drawn


def _repairs(
    failure: JobFailure, plan: CampaignPlan, automatic: Any, manual: Any, escalation: Any, cure: Any
) -> tuple[list[float], list[bool], list[bool]]:
    """Seconds of repair, whether by hand, whether it would make a lemon good."""
    shop = plan.shop
    if failure.repair is not None:
        size = len(automatic)
        return durations(failure.repair, automatic), [False] * size, [False] * size
    by_hand = escalation < shop.escalation
    seconds = np.array(durations(shop.automatic, automatic))
    seconds = seconds + np.where(by_hand, np.array(durations(shop.manual, manual)), 0.0)
    cured = cure >= np.where(by_hand, shop.silent_manual, shop.silent_automatic)
    return seconds.tolist(), by_hand.tolist(), cured.tolist()


class Draws:
    """Single draws from a stream of its own, for what is too rare for blocks."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.even_left: list[float] = []
        self.normal_left: list[float] = []

    def even(self) -> float:
        """Uniform in 0..1."""
        if not self.even_left:
            self.even_left = self.rng.random(64).tolist()
        return self.even_left.pop()

    def seconds(self, duration: Duration) -> Seconds:
        """A time; nothing is drawn for a constant one."""
        if duration.sigma == 0:
            return duration.median
        if not self.normal_left:
            self.normal_left = self.rng.standard_normal(64).tolist()
        return duration.median * math.exp(duration.sigma * self.normal_left.pop())
