"""Machines of the job, standing by and in repair: counts by kind, never one object per machine.

Machines are alike but for being lemons and for how often they were in the shop. Repairs are a heap of return times
that is looked at when someone needs a machine.

Pinned by tests/engine/campaign/test_machines.py.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from simulator.engine.campaign.marks import Draws, Mark
from simulator.errors import ScenarioError
from simulator.physics.campaign.plan import CampaignPlan, Duration, JobFailure
from simulator.scenario.units import Seconds

# Kind of a machine: visits to the shop times two, plus one for a lemon. Visits are counted only where they matter.
Kind = int


class Group:
    """A number of machines by kind."""

    __slots__ = ("kinds", "size")

    def __init__(self) -> None:
        self.kinds: dict[Kind, int] = {}
        self.size = 0

    def add(self, kind: Kind, count: int = 1) -> None:
        """Machines come."""
        if count:
            self.kinds[kind] = self.kinds.get(kind, 0) + count
            self.size += count

    def take(self, even: Callable[[], float], lemon: bool = False) -> Kind:
        """One goes, drawn from all, or from the lemons if there are any."""
        kinds = self.kinds
        lemons = self.lemons if lemon else 0
        lemon = lemons > 0
        if len(kinds) == 1:
            (kind,) = kinds
        else:
            place = even() * (lemons if lemon else self.size)
            for kind in sorted(kinds):
                if lemon and not kind & 1:
                    continue
                place -= kinds[kind]
                if place < 0:
                    break
            else:  # rounding
                kind = max(kind for kind in kinds if kind & 1 or not lemon)
        if kinds[kind] == 1:
            del kinds[kind]
        else:
            kinds[kind] -= 1
        self.size -= 1
        return kind

    @property
    def lemons(self) -> int:
        """Bad machines among them."""
        return sum(count for kind, count in self.kinds.items() if kind & 1)


class Fleet:
    """All machines over time."""

    def __init__(self, plan: CampaignPlan, draws: Draws):
        self.plan = plan
        self.draws = draws
        self.job, self.hot, self.warm, self.preempted = Group(), Group(), Group(), Group()
        sizes = (plan.machines, plan.hot.size, plan.warm.size, plan.preempted.size)
        groups = (self.job, self.hot, self.warm, self.preempted)
        for group, size in zip(groups, sizes, strict=True):
            lemons = int(draws.rng.binomial(size, plan.lemons.share)) if plan.lemons.share > 0 else 0
            group.add(0, size - lemons)
            group.add(1, lemons)
        self.lemons = self.job.lemons
        self.missing = 0
        self.came = 0  # machines of the last `fill`
        self.borrowed = 0
        self.repairs: list[tuple[Seconds, int, Kind]] = []
        self.number = 0
        self.counts = {"hot": 0, "warm": 0, "preempted": 0, "selections": 0, "waits": 0, "manual": 0, "retired": 0}
        self.pooled = plan.policy != "wait"
        self.retire = plan.lemons.retire_after if plan.policy != "wait" else 0
        # Integrals of a count over time: its end value times the end, less the sum of time times change.
        self.repair_s = 0.0
        self.stays: list[tuple[Seconds, Seconds]] | None = None  # out of service from when to when, if asked for
        self.idle_moments = 0.0
        self.borrowed_moments = 0.0

    def lose(self, failure: JobFailure, mark: Mark, machines: int, now: Seconds, from_lemons: bool) -> int:
        """So many machines of the job go to repair, from `now` on; returns how many there were to lose."""
        machines = min(machines, self.job.size)
        for number in range(machines):
            if number == 0:
                kind = self.job.take(lambda: mark.victim, from_lemons)
                seconds, manual, cured = mark.repair, mark.manual, mark.cured
            else:
                kind = self.job.take(self.draws.even)
                seconds, manual, cured = self.repair(failure.repair)
            self.lemons -= kind & 1
            self._send(kind, now, seconds, manual, cured)
        self.missing += machines
        return machines

    def drain(self, now: Seconds) -> int:
        """A machine of the job goes to the shop for nothing."""
        if self.job.size == 0:
            return 0
        kind = self.job.take(self.draws.even)
        self.lemons -= kind & 1
        self._send(kind, now, *self.repair(None))
        self.missing += 1
        return 1

    def repair(self, stated: Duration | None) -> tuple[Seconds, bool, bool]:
        """Seconds of a repair, whether by hand, and whether it makes a lemon good."""
        draws, shop = self.draws, self.plan.shop
        if stated is not None:
            return draws.seconds(stated), False, False
        by_hand = shop.escalation > 0 and draws.even() < shop.escalation
        seconds = draws.seconds(shop.automatic) + (draws.seconds(shop.manual) if by_hand else 0.0)
        silent = shop.silent_manual if by_hand else shop.silent_automatic
        return seconds, by_hand, draws.even() >= silent

    def _send(self, kind: Kind, now: Seconds, seconds: Seconds, manual: bool, cured: bool) -> None:
        if manual:
            self.counts["manual"] += 1
        if cured:
            kind &= ~1
        if self.retire:
            kind += 2
            if kind >> 1 >= self.retire:
                self.counts["retired"] += 1
                if self.stays is not None:
                    self.stays.append((now, math.inf))
                return
        self.number += 1
        self.repair_s += seconds
        if self.stays is not None:
            self.stays.append((now, now + seconds))
        heapq.heappush(self.repairs, (now + seconds, self.number, kind))

    def fill(self, now: Seconds) -> tuple[tuple[str, Duration], ...]:
        """Take what the pools have for the missing machines; returns the waits that this takes."""
        self.came = 0
        if not self.missing or not self.pooled:
            return ()
        repairs = self.repairs
        if repairs and repairs[0][0] <= now:
            self.bring(now)
        plan, taken = self.plan, []
        if self.missing and self.hot.size:
            self.counts["hot"] += self._move(self.hot, min(self.missing, self.hot.size), now)
            taken.append(("hot", plan.hot.swap))
        if self.missing and self.warm.size:
            self.counts["selections"] += 1
            self.counts["warm"] += self._move(self.warm, min(self.missing, self.warm.size), now)
            for _ in range(min(plan.hot.size - self.hot.size, self.warm.size)):
                self.hot.add(self.warm.take(self.draws.even))
            taken.append(("warm", plan.warm.swap))
        if self.missing and self.preempted.size:
            count = min(self.missing, self.preempted.size)
            self.borrowed += count
            self.borrowed_moments += now * count
            self.counts["preempted"] += self._move(self.preempted, count, now)
            taken.append(("preempted", plan.preempted.swap))
        return tuple(taken)

    def _move(self, pool: Group, count: int, now: Seconds) -> int:
        for _ in range(count):
            kind = pool.take(self.draws.even)
            self.job.add(kind)
            self.lemons += kind & 1
        self.missing -= count
        self.came += count
        if pool is not self.preempted:
            self.idle_moments -= now * count
        return count

    def bring(self, now: Seconds) -> None:
        """Machines that are back by now go where they belong; none of them to the job."""
        repairs = self.repairs
        while repairs and repairs[0][0] <= now:
            time, _, kind = heapq.heappop(repairs)
            if self.borrowed:
                self.borrowed -= 1
                self.borrowed_moments -= time
                self.preempted.add(kind)
                continue
            full = self.hot.size >= self.plan.hot.size and self.plan.warm.size > 0
            (self.warm if full else self.hot).add(kind)
            self.idle_moments += time

    def stands_by(self, now: Seconds) -> bool:
        """Whether a pool has a machine to give away: nobody waits for one."""
        if self.missing or not self.pooled:
            return False
        self.bring(now)
        return self.hot.size + self.warm.size + self.preempted.size > 0

    def back(self) -> Seconds:
        """When the next machine comes back."""
        return self.repairs[0][0] if self.repairs else math.inf

    def join(self, now: Seconds) -> int:
        """Machines that are back by now join the job as far as some are missing; returns how many did."""
        joined = 0
        while self.missing and self.repairs and self.repairs[0][0] <= now:
            _, _, kind = heapq.heappop(self.repairs)
            self._place(kind)
            joined += 1
        return joined

    def _place(self, kind: Kind) -> None:
        self.job.add(kind)
        self.lemons += kind & 1
        self.missing -= 1

    def wait(self, now: Seconds, missing: int = 0) -> Seconds:
        """When only so many machines are missing any more: repaired machines go to the job first.

        Raises
        ------
        ScenarioError
            If no machine is left to wait for.
        """
        if self.missing > missing:
            self.counts["waits"] += 1
        while self.missing > missing:
            if not self.repairs:
                raise ScenarioError(
                    f"this run cannot go on: after {now:.6g} s the job lacks {self.missing} of {self.plan.machines} "
                    f"machines, no spare is left and none is in repair ({self.counts['retired']} were retired): "
                    "add spares, or retire machines after more repairs (lemons.retire_after)"
                )
            time, _, kind = heapq.heappop(self.repairs)
            now = max(now, time)
            self._place(kind)
        return now

    def machine_seconds(self, end: Seconds) -> dict[str, float]:
        """Machine-seconds out of service, standing by and borrowed, until the end."""
        if self.pooled:
            self.bring(end)
        beyond = sum(time - end for time, _, _ in self.repairs if time > end)
        idle = (self.hot.size + self.warm.size) * end - self.idle_moments
        return {
            "repair": max(0.0, self.repair_s - beyond),
            "idle": max(0.0, idle),
            "borrowed": max(0.0, self.borrowed * end - self.borrowed_moments),
        }
