"""The campaign once more, naively: every step, save and evaluation one by one, all saves in a list, no closed form.

Injected times and constant durations only; machines are alike; victims come from the engine's streams. What it does is
what the plan's and the job's docstrings say, in other words than the engine's: it is the oracle of test_oracle.py.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any

from simulator.engine.campaign.hazards import generator
from simulator.engine.campaign.marks import Marks
from simulator.physics.campaign.plan import ZERO, CampaignPlan, Elastic, JobFailure, Phase, StepTimes
from simulator.records import CAMPAIGN_KEYS

Cut = tuple[JobFailure, float, float]  # a failure, when it struck, and a number that draws its first victim


class Walk:
    """One run; read `now`, `fates`, `struck`, `recoveries` and `durable` afterwards."""

    def __init__(self, plan: CampaignPlan, step_times: StepTimes):
        self.plan, self.step_times = plan, step_times
        self.now, self.step = 0.0, 0
        self.fates: dict[tuple[str, str], float] = {}
        self.struck = {failure.name: 0 for failure in plan.failures}
        self.recoveries: dict[str, int] = {}
        self.order = count()
        self.events: list[tuple[float, int, str, Any]] = []
        for failure in plan.failures:
            for time in failure.hazard.times:
                self.at(time, "failure", failure)
        for pause in plan.pauses:
            for time in pause.hazard.times:
                self.at(time, "pause", pause)
        for source in plan.slow:
            for time in source.hazard.times:
                self.at(time, "slow", source)
        self.tiers = range(len(plan.phases[0].tiers))
        self.saves: list[dict[str, Any]] = [
            {"step": 0, "tier": self.tiers[-1], "begun": -1.0, "durable": -1.0, "gone": False, "first": True}
        ]
        self.log: list[tuple[float, dict[tuple[str, str], float]]] = []  # seconds and parts of each step done
        self.last = [0 for _ in self.tiers]
        self.begun: float | None = None  # when the last save began; None: the job has just resumed
        self.marks = {
            failure.name: Marks(failure, plan, generator(0, 0, f"{failure.name}/marks")) for failure in plan.failures
        }
        self.holds: list[tuple[str, str, float]] = []
        self.todo: list[tuple[str, Any]] = []
        self.found: list[Cut] = []
        self.silent: list[Cut] = []
        self.slow: dict[int, Any] = {}
        self.unswapped: list[int] = []
        self.out = 0  # replicas that do not run
        self.coming = 0
        elastic = plan.elastic or Elastic(1, 1, 1, ZERO, ZERO, keeps_state=False)
        self.seats = [[True] * elastic.nodes_per_replica for _ in range(elastic.replicas)]
        self.spares, self.missing = plan.hot.size, 0
        self.shop: list[float] = []
        self.lost_machines = False

    # ---- bookkeeping

    def at(self, time: float, kind: str, what: Any) -> None:
        heapq.heappush(self.events, (time, next(self.order), kind, what))

    def book(self, key: str, cause: str, seconds: float) -> None:
        self.fates[key, cause] = self.fates.get((key, cause), 0.0) + seconds

    def phase_of(self, step: int) -> tuple[int, Phase]:
        for number, phase in enumerate(self.plan.phases):
            if step < phase.steps:
                return number, phase
            step -= phase.steps
        raise AssertionError

    def time_s(self) -> dict[str, float]:
        times = dict.fromkeys(CAMPAIGN_KEYS, 0.0)
        for (key, _), seconds in self.fates.items():
            times[key] += seconds
        return times

    def durable(self, end: float) -> list[int]:
        done = [
            save
            for save in self.saves
            if not save["first"] and (save["ok"] or (not save["gone"] and save["durable"] <= end))
        ]
        return [sum(save["tier"] == tier for save in done) for tier in self.tiers] if done else [0 for _ in self.tiers]

    # ---- what happens

    def happen(self, mode: str) -> Cut | None:
        """The next event, at its time; modes: train, save, held, down, wait."""
        time, _, kind, what = heapq.heappop(self.events)
        self.now = max(self.now, time)
        exposed = mode in ("train", "save") or (mode in ("held", "down") and self.plan.failures_during_restart)
        victim = self.marks[what.name].next().victim if kind == "failure" else 0.0
        if kind == "failure" and mode == "down" and what.effect in ("silent", "pause", "rewind"):
            pass  # these come from training
        elif kind == "failure" and exposed:
            if what.effect == "pause":
                self.struck[what.name] += 1
                self.holds.append(("degraded", what.name, time + what.detection.median))
            elif what.effect == "silent":
                self.struck[what.name] += 1
                self.silent.append((what, time, victim))
                self.at(time + what.detection.median, "found", (what, time, victim))
            else:
                return what, time, victim
        elif kind == "found" and what in self.silent:
            if mode in ("train", "save"):
                return what  # type: ignore[no-any-return]
            self.found.append(what)
        elif kind == "pause" and mode in ("train", "save"):
            if what.key == "planned":
                self.todo.append(("planned", what))
            else:
                self.holds.append((what.key, what.name, time + what.duration.median))
        elif kind == "slow" and mode not in ("down", "wait") and not (what.classes == (1,) and self.is_slow(what)):
            number = next(self.order)
            self.slow[number] = what
            if what.duration is not None:
                self.at(time + what.duration.median, "well", number)
            if what.swap and what.detection is not None:
                self.at(time + what.detection.median, "swap", number)
        elif kind == "well":
            self.slow.pop(what, None)
        elif kind == "swap" and what in self.slow:
            self.todo.append(("swap", what))
        elif kind == "come":
            self.coming -= what
            self.seat()
            self.todo.append(("rejoin", None))
        elif kind == "back" and self.take_back():
            self.todo.append(("rejoin", None))
            if self.missing:
                self.at(min(self.shop), "back", None)
        return None

    def is_slow(self, source: Any) -> bool:
        return source.name in [each.name for each in self.slow.values()]

    def spare_stands_by(self) -> bool:
        self.spares += sum(time <= self.now for time in self.shop)
        self.shop = [time for time in self.shop if time > self.now]
        return self.spares > 0

    def spend(self, key: str, cause: str, seconds: float, mode: str) -> Cut | None:
        began, end, cut = self.now, self.now + seconds, None
        while self.events and self.events[0][0] < end and cut is None:
            cut = self.happen(mode)
        if cut is None:
            self.now = end
        self.book(key, cause, self.now - began)
        return cut

    def held(self) -> Cut | None:
        """Ends with the last of the holds; each pays from where those before it end."""
        began, cut, known = self.now, None, []
        # A hold that came during saves lasts from where it takes effect.
        known = [(key, cause, self.now + until - since) for key, cause, until, since in self.taken]
        self.taken = []
        end = max(until for _, _, until in known)
        while self.events and self.events[0][0] < end and cut is None:
            cut = self.happen("held")
            known += self.holds
            self.holds = []
            end = max(until for _, _, until in known)
        self.now = end if cut is None else self.now
        for key, cause, until in known:
            share = max(0.0, min(until, self.now) - began)
            self.book(key, cause, share)
            began += share
        return cut

    def hold_if_any(self) -> Cut | None:
        if not self.holds:
            return None
        self.taken = [(key, cause, until, self.hold_since(key, cause, until)) for key, cause, until in self.holds]
        self.holds = []
        return self.held()

    def hold_since(self, key: str, cause: str, until: float) -> float:
        for failure in self.plan.failures:
            if failure.name == cause:
                return until - failure.detection.median
        return until - next(pause.duration.median for pause in self.plan.pauses if pause.name == cause)

    # ---- training

    def run(self) -> None:
        cut = self.spend("restart", "start", self.plan.start.median, "down")
        while True:
            while cut is not None:
                cut = self.recover(cut)
            if self.step == self.plan.steps and self.found:
                cut = self.found.pop(0)
            elif self.step == self.plan.steps:
                self.todo = []
                cut = self.save_outermost("checkpoint", "checkpoint")
                if cut is None:
                    break
            else:
                cut = self.train()
        for _, parts in self.log:
            for (key, cause), seconds in parts.items():
                self.book(key, cause, seconds)

    def state(self) -> tuple[tuple[str, int, int], ...]:
        state = [(source.kind, 0, source.severity[0]) for source in self.slow.values()]
        return tuple(sorted(state + ([("missing_replicas", 0, self.out)] if self.out else [])))

    def step_parts(self) -> dict[tuple[str, str], float]:
        number, phase = self.phase_of(self.step)
        state, healthy = self.state(), phase.step_time
        whole = self.step_times(number, state) if state else healthy
        missing = self.step_times(number, (("missing_replicas", 0, self.out),)) - healthy if self.out else 0.0
        parts = {("productive", ""): healthy, ("degraded", "elastic"): missing}
        names = {source.name for source in self.slow.values()}
        for name in names:
            parts["straggling", name] = (whole - healthy - missing) / len(names)
        parts["slowdown", "garbage_collection"] = self.plan.garbage_collection
        return parts

    def train(self) -> Cut | None:
        """One thing that waits for a step's start, or one step and all that is due behind it."""
        if self.found:
            return self.found.pop(0)
        if self.begun is None and not self.todo:
            self.begun = self.now - self.phase_of(self.step)[1].tiers[0].blocking
        if (
            not self.todo and self.events and self.events[0][0] <= self.now
        ):  # what comes right now comes before the step
            return self.happen("train") or self.hold_if_any()
        if self.todo:
            return self.act(*self.todo.pop(0))
        parts = self.step_parts()
        whole = sum(parts.values())
        left, spent = whole, 0.0
        _, phase = self.phase_of(self.step)
        while left > 0:
            if not self.events or self.events[0][0] >= self.now + left:
                self.now += left
                break
            before = self.now
            cut = self.happen("train")
            left -= self.now - before
            spent += self.now - before
            if cut is None:
                cut = self.hold_if_any()
            if cut is None and self.found:
                cut = self.found.pop(0)
            if cut is not None:
                self.partial = spent
                return cut
        self.log.append((whole, parts))
        self.step += 1
        if self.step == self.plan.steps:
            return self.hold_if_any()
        cut = None
        for tier in self.tiers:
            place = phase.tiers[tier]
            if place.seconds is None:
                due = self.step - self.last[tier] >= place.every
            else:
                assert self.begun is not None
                due = self.now - self.begun >= place.seconds
            if cut is None and due:
                cut = self.save(tier, "checkpoint", "checkpoint")
        evaluation = self.plan.evaluation
        if cut is None and evaluation is not None and self.step % evaluation.every == 0:
            cut = self.spend("evaluation", "evaluation", evaluation.duration, "save")
        return cut or self.hold_if_any()

    def save(self, tier: int, key: str, cause: str) -> Cut | None:
        place = self.phase_of(self.step - 1)[1].tiers[tier]
        writing = [save["durable"] for save in self.saves if save["tier"] == tier and not save["gone"]]
        cut = None
        if writing and max(writing) > self.now:
            cut = self.spend(key, cause, max(writing) - self.now, "save")
        begun = self.now
        cut = cut or self.spend(key, cause, place.blocking, "save")
        if cut is None:
            self.saves.append(
                {
                    "step": self.step, "tier": tier, "begun": begun, "durable": self.now + place.persist,
                    "gone": False, "first": False, "ok": False,
                }
            )  # fmt: skip
            self.last[tier] = self.step
            self.begun = begun
        return cut

    def save_outermost(self, key: str, cause: str) -> Cut | None:
        tier = self.tiers[-1]
        have = [s for s in self.saves if s["tier"] == tier and s["step"] == self.step and not s["gone"]]
        cut = None
        if not have:
            cut = self.save(tier, key, cause)
            have = [] if cut else self.saves[-1:]
        if cut is None and have[-1]["durable"] > self.now:
            cut = self.spend(key, cause, have[-1]["durable"] - self.now, "save")
        return cut

    def act(self, kind: str, what: Any) -> Cut | None:
        if kind == "rejoin":
            elastic = self.plan.elastic
            assert elastic is not None
            out = self.lacking()
            if out >= self.out:
                return None
            cut = self.spend("restart", "elastic", elastic.rejoin.median, "held")
            self.holds = []
            if cut is None:
                self.out = out
            return cut
        if kind == "planned":
            key, cause, pause = "planned", what.name, what.duration.median
        elif what not in self.slow:
            return None
        elif self.slow[what].kind == "slow_node" and self.plan.policy == "restart" and not self.spare_stands_by():
            self.unswapped.append(what)
            return None
        else:
            key, cause, pause = "straggling", self.slow[what].name, 0.0
        cut = self.save_outermost(key, cause)
        self.holds = []  # it stands still anyway
        if kind == "swap" and what not in self.slow:
            return cut
        cut = cut or self.spend(key, cause, pause, "down")
        restart = self.plan.restart.median
        if kind == "swap" and cut is None:
            if self.slow.pop(what).kind == "slow_node":
                self.lost_machines = True
                self.missing += 1
                self.shop.append(self.now + self.plan.shop.automatic.median)
                if self.plan.policy == "elastic":
                    raise NotImplementedError("which replica it is of is drawn elsewhere")
                cut = self.replace(key, cause)
            elif self.plan.restart_in_place is not None:
                restart = self.plan.restart_in_place.median
        cut = cut or self.spend(key, cause, restart, "down")
        cut = cut or self.spend(key, cause, self.phase_of(max(0, self.step - 1))[1].tiers[-1].load, "down")
        if cut is None:
            self.lost_machines = False
            self.begun = None
        return cut

    # ---- recovery

    def go_back(self, cut: Cut, machines: int) -> int:
        failure, time, _ = cut
        for save in self.saves:
            if not save["gone"] and save["durable"] > self.now:
                save["gone"] = True
            elif not save["gone"] and not save["first"]:
                save["ok"] = True
        survives = [tier.survives for tier in self.plan.phases[0].tiers]
        most = self.step - failure.rewind if failure.effect == "rewind" else self.step
        for save in self.saves:
            if survives[save["tier"]] < machines:
                save["gone"] = True
        good = [
            s for s in self.saves
            if not s["gone"] and s["step"] <= max(0, most) and (failure.effect != "silent" or s["begun"] < time)
        ]  # fmt: skip
        best = max(good, key=lambda s: (s["step"], -s["tier"]))
        for save in self.saves:
            if save["step"] > best["step"]:
                save["gone"] = True
        self.lose(best["step"], cut)
        self.silent = [each for each in self.silent if each is not cut and each[1] <= best["begun"]]
        self.found = [each for each in self.found if each in self.silent]
        return int(best["tier"])

    def lose(self, step: int, cut: Cut) -> None:
        lost = self.partial + sum(seconds for seconds, _ in self.log[step:])
        self.partial = 0.0
        del self.log[step:]
        self.step = step
        self.last = [step for _ in self.tiers]
        self.begun = None
        self.book("rewind" if cut[0].effect == "rewind" else "lost_work", cut[0].name, lost)

    partial = 0.0

    def recover(self, cut: Cut) -> Cut | None:
        failure, _, victim = cut
        plan, elastic = self.plan, self.plan.elastic if self.plan.policy == "elastic" else None
        name = failure.name
        self.holds = []
        if elastic and not self.missing:
            self.take_spares()
        self.todo = [each for each in self.todo if each[0] != "planned"]
        machines = failure.machines[0][0] if failure.machine_share else 0
        keeps = elastic is not None and elastic.keeps_state and machines > 0 and failure.effect in ("crash", "hang")
        if failure.effect != "silent":
            self.struck[name] += 1
        if keeps:
            survives = [tier.survives for tier in plan.phases[0].tiers]
            for save in self.saves:
                if save["durable"] > self.now:
                    save["gone"] = True
                elif not save["gone"] and not save["first"]:
                    save["ok"] = True
                if survives[save["tier"]] < machines:
                    save["gone"] = True
            self.lose(self.step, cut)
            source = "replicas"
            tier = 0
        else:
            tier = self.go_back(cut, machines)
            source = plan.phases[0].tiers[tier].name
        notice = failure.diagnosis.median + (0.0 if failure.effect == "silent" else failure.detection.median)
        taken = min(machines, plan.machines - self.missing - self.coming * 0)
        if machines:
            self.lost_machines = True
            self.missing += taken
            self.unseat(taken, victim)
            assert failure.repair is not None
            self.shop += [self.now + notice + failure.repair.median] * taken
        down = "rewind" if failure.effect == "rewind" else "detection"
        again = self.spend(down, name, notice, "down")
        down = "rewind" if failure.effect == "rewind" else "restart"
        if again is None:
            again = self.shrink(name, plan.restart.median) if elastic else self.replace(down, name)
        in_place = plan.restart if plan.restart_in_place is None else plan.restart_in_place
        seconds = (plan.restart if self.lost_machines else in_place).median
        if elastic and machines:
            seconds = elastic.reconfigure.median
        again = again or self.spend(down, name, seconds, "down")
        if not keeps and again is None:
            again = self.spend(down, name, self.phase_of(max(0, self.step - 1))[1].tiers[tier].load, "down")
        if again is None:
            self.lost_machines = False
            self.recoveries[source] = self.recoveries.get(source, 0) + 1
        return again

    def take_spares(self) -> int:
        if self.plan.policy == "wait":
            return 0
        self.spares += sum(time <= self.now for time in self.shop)
        self.shop = [time for time in self.shop if time > self.now]
        taken = min(self.spares, self.missing)
        self.spares -= taken
        self.missing -= taken
        return taken

    def take_back(self) -> int:
        taken = 0
        for time in sorted(self.shop):
            if time <= self.now and self.missing:
                self.shop.remove(time)
                self.missing -= 1
                taken += 1
        self.seat()
        return taken

    def unseat(self, machines: int, victim: float) -> None:
        """Machines leave, side by side from the victim's replica on."""
        left = [replica for replica, seats in enumerate(self.seats) for taken in seats if taken]
        if not left:
            return
        start = left[int(victim * len(left))]
        for replica in [*range(start, len(self.seats)), *range(start)]:
            for seat, taken in enumerate(self.seats[replica]):
                if taken and machines:
                    self.seats[replica][seat] = False
                    machines -= 1

    def seat(self) -> None:
        """Those that came sit down where fewest seats are free."""
        while sum(seats.count(False) for seats in self.seats) > self.missing + self.coming:
            seats = min((seats for seats in self.seats if False in seats), key=lambda each: each.count(False))
            seats[seats.index(False)] = True

    def lacking(self) -> int:
        return sum(False in seats for seats in self.seats)

    def replace(self, key: str, cause: str) -> Cut | None:
        if not self.missing:
            return None
        if self.take_spares():
            cut = self.spend(key, cause, self.plan.hot.swap.median, "down")
            if cut is not None:
                return cut
        while self.missing:
            ready = max(self.now, min(self.shop))
            self.spend("waiting", cause, ready - self.now, "wait")
            self.take_back()
        return None

    def shrink(self, cause: str, restart: float) -> None:
        elastic = self.plan.elastic
        assert elastic is not None
        self.take_back()
        came = self.take_spares()
        if came:
            self.coming += came
            self.at(self.now + self.plan.hot.swap.median + restart, "come", came)
        while True:
            self.out = self.lacking()
            if elastic.replicas - self.out >= max(1, elastic.fewest):
                break
            comes = [time for time, _, kind, _ in self.events if kind == "come"]
            ready = min([*comes, *(self.shop if self.missing else [])])
            self.spend("waiting", cause, max(0.0, ready - self.now), "wait")
            while self.events and self.events[0][0] <= self.now:
                self.happen("wait")
            self.take_back()
        if self.missing and self.shop:
            self.at(min(self.shop), "back", None)
