"""Which steps were done when, at what pace, and which saves there are to go back to.

History is a list of stretches, each with its timetable: saves are looked up in closed form, never listed. It is cut
where a failure goes back to, and forgotten behind the newest save that nothing can destroy.

Pinned by tests/engine/campaign/test_campaign.py and tests/engine/campaign/test_oracle.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from simulator.engine.campaign.timetable import Timetable
from simulator.physics.campaign.plan import ALL_MACHINES, Tier
from simulator.scenario.units import Seconds

# Stretches kept before it is worth looking which can be forgotten.
_KEPT = 48
# A loss spike goes back at most this many times as far as its class says, if spikes come one on top of the other.
_REWINDS = 4


class Save(NamedTuple):
    """A save to go back to: steps kept, tier, and when it began."""

    step: int
    tier: int
    begun: Seconds


class Pace:
    """Seconds of a step of a phase in some state, and what of them is more than on a healthy cluster.

    `extra` lists (key, cause, seconds). `kept` counts the steps done at this pace that were kept.
    """

    __slots__ = ("extra", "healthy", "kept", "phase", "step")

    def __init__(self, phase: int, healthy: Seconds, step: Seconds, extra: tuple[tuple[str, str, Seconds], ...]):
        self.phase = phase
        self.healthy = healthy
        self.step = step
        self.extra = extra
        self.kept = 0


class Stretch:
    """Training at one pace from step `first` on; step n ends relative to `origin` as the timetable says.

    `end` is the number of steps after which it ends; `steps` is how many were done, once it is over. With `open_end`
    it ends before the saves behind its last step.
    """

    __slots__ = ("end", "first", "open_end", "origin", "pace", "steps", "table")

    def __init__(self, first: int, pace: Pace, table: Timetable, origin: Seconds, end: int, open_end: bool):
        self.first = first
        self.pace = pace
        self.table = table
        self.origin = origin
        self.end = end
        self.open_end = open_end
        self.steps = 0

    def end_time(self) -> Seconds:
        """When it ends, if nothing comes in between."""
        if self.open_end:
            return self.origin + (self.table.at(self.end - 1) + self.table.step)
        return self.origin + self.table.at(self.end)


class History:
    """What was done and saved so far."""

    def __init__(self, tiers: tuple[Tier, ...], rewind: int):
        self.stretches: list[Stretch] = []
        self.survives = [tier.survives for tier in tiers]
        last = len(tiers) - 1
        # The state that the run starts from is a save like any other, of the outermost tier.
        self.single: list[tuple[Save, Seconds]] = [(Save(0, last, -math.inf), -math.inf)]
        self.alive = [-1] * len(tiers)  # saves of a tier up to this step are gone
        self.void: set[tuple[int, int]] = set()  # (tier, step) of saves that were cut short
        self.counts = [0] * len(tiers)
        self.rewind = rewind * _REWINDS
        self.most = _KEPT  # stretches until it is worth looking again

    def add(self, stretch: Stretch) -> None:
        """A stretch is over, with its `steps` done."""
        if stretch.steps > 0:
            self.stretches.append(stretch)

    def add_save(self, save: Save, durable: Seconds) -> None:
        """A save out of the timetable."""
        self.single.append((save, durable))
        self.counts[save.tier] += 1

    def newest(
        self, now: Seconds, machines: int, steps: int, before: Seconds = math.inf, tier: int | None = None
    ) -> Save | None:
        """The save with the most steps, up to `steps`, that is durable and survives the loss of so many machines.

        `before`: it must have begun before that. Of several with the same steps, that of the nearest tier.
        """
        tiers = [
            number for number, survives in enumerate(self.survives)
            if survives >= machines and (tier is None or number == tier)
        ]  # fmt: skip
        best: Save | None = None
        for stretch in reversed(self.stretches):
            if best is not None and best.step >= stretch.first + stretch.steps:
                break
            if stretch.first >= steps:
                continue
            for number in tiers:
                found = self._newest_of(stretch, number, now, steps, before)
                if found is not None and (best is None or found.step > best.step):
                    best = found
            if best is not None:
                break
        for save, durable in reversed(self.single):
            if best is not None and save.step < best.step:
                break
            if (
                save.tier in tiers and save.step <= steps and save.step > self.alive[save.tier]
                and durable <= now and save.begun < before and (save.tier, save.step) not in self.void
                and (best is None or (save.step, -save.tier) > (best.step, -best.tier))
            ):  # fmt: skip
                best = save
        return best

    def oldest(self) -> Save:
        """Where the run began, or the oldest save that is remembered."""
        if self.single and not self.stretches:
            return self.single[0][0]
        if not self.stretches or self.stretches[0].first == 0:
            return Save(0, len(self.survives) - 1, -math.inf)
        for save, _ in self.single:
            if save.step <= self.stretches[0].first + self.stretches[0].steps:
                return save
        first = self.stretches[0]
        tier = len(self.survives) - 1
        return self._newest_of(first, tier, math.inf, first.first + first.steps, math.inf) or Save(
            first.first, tier, -math.inf
        )

    def _newest_of(self, stretch: Stretch, tier: int, now: Seconds, steps: int, before: Seconds) -> Save | None:
        table = stretch.table
        if tier >= len(table.saves):
            return None
        first, every, blocking, persist = table.saves[tier]
        most = min(stretch.steps, steps - stretch.first)
        if stretch.open_end and stretch.steps == stretch.end:
            most = min(most, stretch.end - 1)
        if before < now:
            most = min(most, table.started(before - stretch.origin, stretch.steps) + 1)
        if most < first:
            return None
        step = first + (most - first) // every * every
        while step >= first and stretch.first + step > self.alive[tier]:
            end = stretch.origin + table.save_end(tier, step)
            if (
                end + persist <= now
                and end - blocking < before
                and (not self.void or (tier, stretch.first + step) not in self.void)
            ):
                return Save(stretch.first + step, tier, end - blocking)
            step -= every
        return None

    def discard(self, tier: int, step: int) -> None:
        """A save that never became durable."""
        self.void.add((tier, step))
        self.counts[tier] -= 1

    def cut(self, step: int) -> Seconds:
        """Give up all steps after `step`; returns the seconds that they took."""
        lost = 0.0
        while self.stretches:
            stretch = self.stretches[-1]
            spare = stretch.first + stretch.steps - step
            if spare <= 0:
                break
            if spare < stretch.steps:
                lost += spare * stretch.pace.step
                stretch.steps -= spare
                break
            lost += stretch.steps * stretch.pace.step
            self.stretches.pop()
        while self.single and self.single[-1][0].step > step:
            self.single.pop()
        self.alive = [min(gone, step) for gone in self.alive]
        if self.void:
            self.void = {(tier, place) for tier, place in self.void if place <= step}
        return lost

    def lose(self, machines: int, step: int) -> None:
        """Tiers that do not survive the loss of so many machines hold nothing up to this step any more."""
        for tier, survives in enumerate(self.survives):
            if survives < machines:
                self.alive[tier] = step

    def is_long(self) -> bool:
        """Whether it is worth looking what can be forgotten."""
        return len(self.stretches) > self.most

    def forget(self, now: Seconds, steps: int, before: Seconds) -> int:
        """Book what cannot be given up any more, and forget it; returns how many steps that are."""
        floor = self.newest(now, ALL_MACHINES, max(0, steps - self.rewind), before)
        if floor is None:
            self.most = 2 * len(self.stretches)
            return 0
        place = 0
        for stretch in self.stretches:
            if stretch.first + stretch.steps >= floor.step:
                break
            stretch.pace.kept += stretch.steps
            place += 1
        del self.stretches[:place]
        self.single = [each for each in self.single if each[0].step >= floor.step]
        self.void = {each for each in self.void if each[1] >= floor.step}
        self.most = max(_KEPT, 2 * len(self.stretches))
        return floor.step

    def settle(self, save: Save) -> None:
        """Nothing goes back behind this save any more."""
        self.book()
        self.void.clear()
        self.single = [(save, save.begun)]

    def book(self) -> None:
        """All steps are kept: book them."""
        for stretch in self.stretches:
            stretch.pace.kept += stretch.steps
        self.stretches.clear()
