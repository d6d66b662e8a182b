"""Steps, saves and evaluations of a stretch of training at one pace: when is what, in closed form.

A stretch begins at the start of a step. Its step n lasts `step` seconds; then come the saves that are due, the nearest
tier first, and an evaluation. Tier i is due after step `first` and every `every` steps from there. So step n + 1 starts

    at(n) = n step + sum over tiers of blocking (saves until n) + evaluations until n

seconds after the stretch: whole numbers that cost the same for one step as for a thousand billion.

Pinned by tests/engine/campaign/test_timetable.py.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.scenario.units import Seconds


class Saves(NamedTuple):
    """A tier's saves: after step `first`, then every `every` steps; step 1 is the stretch's first."""

    first: int
    every: int
    blocking: Seconds
    persist: Seconds


class Timetable:
    """When the steps and saves of a stretch are.

    Parameters
    ----------
    step
        Seconds of a step.
    saves
        By tier, the nearest first.
    evaluation
        After how many steps, then every how many, for how long; None: never.
    """

    __slots__ = ("evaluation", "rate", "saves", "slack", "step")

    def __init__(self, step: Seconds, saves: tuple[Saves, ...], evaluation: tuple[int, int, Seconds] | None):
        self.step = step
        self.saves = saves
        self.evaluation = evaluation
        rate, slack = step, 0.0
        for _, every, blocking, _ in saves:
            rate += blocking / every
            slack += blocking
        if evaluation is not None:
            rate += evaluation[2] / evaluation[1]
            slack += evaluation[2]
        self.rate = rate
        self.slack = slack

    def at(self, steps: int) -> Seconds:
        """When step `steps` + 1 starts: so many steps are done, and all that is due behind the last of them."""
        time = steps * self.step
        for first, every, blocking, _ in self.saves:
            if steps >= first:
                time += ((steps - first) // every + 1) * blocking
        if self.evaluation is not None and steps >= self.evaluation[0]:
            time += ((steps - self.evaluation[0]) // self.evaluation[1] + 1) * self.evaluation[2]
        return time

    def started(self, passed: Seconds, most: int) -> int:
        """The largest n up to `most` with at(n) <= passed."""
        if most <= 0:
            return 0
        high = min(most, int(passed / self.step) + 1)
        if self.slack == 0:
            low = high
        else:
            low = min(high, max(0, int((passed - self.slack) / self.rate) - 1))
            high = min(high, int((passed + self.slack) / self.rate) + 2)
            # Before its first save a tier costs nothing: the mean rate is no bound there.
            while high < most and self.at(high) <= passed:
                high = min(most, 2 * high + 1)
            while low > 0 and self.at(low) > passed:
                low //= 2
            while high - low > 2:
                middle = (low + high) // 2
                if self.at(middle) <= passed:
                    low = middle
                else:
                    high = middle
        steps = high
        while steps > 0 and self.at(steps) > passed:
            steps -= 1
        while steps < most and self.at(steps + 1) <= passed:
            steps += 1
        return steps

    def boundary(self, passed: Seconds, most: int) -> int:
        """Steps done at the first start of a step that is not before `passed`."""
        steps = self.started(passed, most)
        return steps if steps >= most or self.at(steps) >= passed else steps + 1

    def due(self, steps: int) -> list[int]:
        """Tiers that are saved to behind step `steps`."""
        return [
            tier
            for tier, (first, every, _, _) in enumerate(self.saves)
            if steps >= first and (steps - first) % every == 0
        ]

    def save_end(self, tier: int, steps: int) -> Seconds:
        """When the save to a tier behind step `steps` stops blocking."""
        time = self.at(steps - 1) + self.step
        for other in self.due(steps):
            if other <= tier:
                time += self.saves[other].blocking
        return time

    def count(self, tier: int, steps: int) -> int:
        """Saves to a tier until step `steps`, behind it included."""
        first, every, _, _ = self.saves[tier]
        return (steps - first) // every + 1 if steps >= first else 0
