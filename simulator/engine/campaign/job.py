"""A training run over months: steps, saves, failures, recoveries, machines.

The job trains from its newest save; a failure interrupts it; it is detected, machines are replaced or waited for, the
job restarts and loads. What happens next is always known: the end of the stretch of training or of the recovery, or the
next arrival. simpy's clock is moved from one stretch and one recovery to the next; everything between is worked out in
closed form, so that a campaign costs as much as it has failures, however many steps, saves and machines it has.

What happens when
    A step takes what the cluster's state at its start says. Behind a step come the saves that are due, the nearest
    tier first, then an evaluation. One save per tier is written in the background at a time; a failure discards it.
    After the last step comes a save to the outermost tier; the run ends when it is durable.
    A pause holds a step up; one that comes during saves or an evaluation does so behind them. Planned stops, swaps of
    stragglers and replicas that rejoin wait for the start of the next step. Phases that end at the instant of a failure
    have ended.
    Corruption, loss spikes and pauses come from training, and slowness from work: none of them comes while the job is
    down. A component that is slow does not become slow again; a slow machine is swapped once a spare stands by.
    A failure during a recovery begins it anew with its own detection. What is found while the job is down
    (silent corruption, a straggler) is dealt with when it trains again. Corruption is gone with the steps that it
    came in: going back to a save from before it struck cures it.

Limits: machines that stand by are never slow; after a restart for other reasons a pending planned stop is dropped;
only the loss of machines in one failure counts against a tier. A loss spike that comes on top of many others may find
no save that is old enough any more and takes the oldest.
Pinned by tests/engine/campaign/.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any

import simpy

from simulator.engine.campaign import hopeless
from simulator.engine.campaign.events import DOWN, Hold, Slow, Strike, set_state, slow_down, spend
from simulator.engine.campaign.hazards import Arrivals, LemonStream, Stream, generator
from simulator.engine.campaign.history import History, Pace
from simulator.engine.campaign.ledger import Ledger
from simulator.engine.campaign.machines import Fleet
from simulator.engine.campaign.marks import Draws, Marks
from simulator.engine.campaign.recovery import recover
from simulator.engine.campaign.sprint import is_plain, sprint
from simulator.engine.campaign.stops import finish
from simulator.engine.campaign.training import train
from simulator.physics.campaign.plan import CampaignPlan, Component, JobFailure, State, StepTimes
from simulator.records import CampaignResult
from simulator.scenario.units import Seconds


def simulate_campaign(
    plan: CampaignPlan,
    seed: int,
    replication: int = 0,
    *,
    step_times: StepTimes | None = None,
    keep_records: bool = False,
    progress: Callable[[float], None] | None = None,
) -> CampaignResult:
    """Simulate a training run until its last save is durable.

    Parameters
    ----------
    plan
        What runs and what breaks.
    seed, replication
        Each class draws from streams of its own by (seed, replication, name): campaigns that differ in anything else
        meet the same failures.
    step_times
        Seconds of a step of a phase in a degraded state; None: degraded as healthy.
    keep_records
        Whether to keep incidents, progress and hours.
    progress
        Called with the fraction of steps kept, after each recovery and at the end.

    Raises
    ------
    ScenarioError
        If the run would hardly ever end, or its plan is impossible.
    """
    hopeless.refuse_hopeless(plan)
    environment = simpy.Environment(initial_time=0.0)
    job = Job(plan, seed, replication, step_times, keep_records, progress)
    environment.run(until=environment.process(job.life(environment)))
    return job.result()


# Paces remembered before it is worth looking which are done with: a cluster with many slow machines has a new one
# whenever one of them comes or goes.
_PACES = 1024


class Job:
    """The job over time."""

    def __init__(
        self,
        plan: CampaignPlan,
        seed: int,
        replication: int,
        step_times: StepTimes | None,
        keep_records: bool,
        progress: Callable[[float], None] | None,
    ):
        self.plan = plan
        self.progress = progress
        self.step_times = step_times
        self.now = 0.0
        self.step = 0  # whole steps done
        self.total = plan.steps
        self.begins = [sum(phase.steps for phase in plan.phases[:number]) for number in range(len(plan.phases))]
        self.phase_start = [0.0] * len(plan.phases)
        self.tiers = len(plan.phases[0].tiers)
        self.exposed = plan.failures_during_restart
        self.ledger = Ledger(keep_records)
        self.history = History(
            plan.phases[0].tiers, max((each.rewind for each in plan.failures if each.effect == "rewind"), default=0)
        )
        self.last = [0] * self.tiers  # step of a tier's last save, or where the job resumed
        self.begun = [-math.inf] * self.tiers  # when that save began; -inf: not trained since the job resumed
        self.saved = [-1] * self.tiers  # step of the newest save that a tier has
        self.saved[-1] = 0
        self.busy = [-math.inf] * self.tiers  # until when a tier's newest save is being written
        self.counts = {failure.name: 0 for failure in plan.failures}
        self.recoveries: dict[str, int] = {}
        self.replaced = False  # whether machines were lost since training stopped
        self.replicas_out = 0
        self.gone: dict[int, int] = {}  # machines that a replica lacks
        self.arriving = 0
        self.again: list[Strike] = []
        self.found: list[Strike] = []
        self.silent: list[Strike] = []
        self.pending: list[tuple[str, Any]] = []
        self.after: list[Hold] = []
        self.partial: tuple[Seconds, Pace] | None = None  # a step held up: seconds done, pace
        self.partial_end = 0
        self.slow: dict[int, Slow] = {}
        self.slow_places: set[tuple[str, int]] = set()  # which components of which source are slow
        self.components: list[Component] = []  # what is slow, in order
        self.unswapped: deque[int] = deque()  # slow machines found while no spare stood by
        self.seeking = False  # whether the next machine that comes back is waited for, for one of these
        self.state: State | None = None  # as the components say; None: to be made
        self.dirty = False
        self.paces: dict[tuple[int, State, int], Pace] = {}
        self.most_paces = _PACES
        self.strikes = 0  # stops so far: failures, planned ones and swaps
        self.stuck = 0  # failures since the job last came further
        self.farthest = 0  # the most steps ever kept
        self.limit = hopeless.time_limit(plan)
        self.lost_partial = 0.0
        self.waited = 0.0
        self._set_streams(seed, replication)

    def _set_streams(self, seed: int, replication: int) -> None:
        plan = self.plan
        self.draw: Callable[[str], Draws] = lambda name: Draws(generator(seed, replication, name))
        self.fleet = Fleet(plan, self.draw("machines"))
        self.lemons = self.fleet.lemons
        if self.ledger.records:
            self.fleet.stays = []
        streams: list[Stream] = []
        self.sources: list[tuple[str, Any, Any]] = []
        self.lemon_streams: list[tuple[LemonStream, JobFailure, Marks]] = []
        at_start = plan.lemons.share * plan.machines
        for failure in plan.failures:
            share = failure.lemon_share if at_start > 0 else 0.0
            rng = None if failure.hazard.kind == "times" else generator(seed, replication, failure.name)
            streams.append(Stream(failure.hazard, rng, 1 - share if failure.hazard.kind != "times" else 1.0))
            self.sources.append(("failure", failure, self._marks(failure, "marks", seed, replication)))
            if share > 0 and failure.hazard.kind != "times":
                name = f"{failure.name}/lemons"
                stream = LemonStream(failure.hazard, share, at_start, generator(seed, replication, name))
                stream.change(0.0, self.fleet.lemons)
                marks = self._marks(failure, "lemons/marks", seed, replication)
                self.lemon_streams.append((stream, failure, marks))
        for pause in plan.pauses:
            rng = None if pause.hazard.kind == "times" else generator(seed, replication, f"pause/{pause.name}")
            streams.append(Stream(pause.hazard, rng))
            self.sources.append(("pause", pause, self.draw(f"pause/{pause.name}/marks")))
        for source in plan.slow:
            rng = None if source.hazard.kind == "times" else generator(seed, replication, f"slow/{source.name}")
            streams.append(Stream(source.hazard, rng))
            self.sources.append(("slow", source, self.draw(f"slow/{source.name}/marks")))
        healthy = sum(phase.steps * phase.step_time for phase in plan.phases)
        self.arrivals = Arrivals(streams, max(healthy, 1.0))
        self.others = self.draw("others")
        self.restarts = self.draw("restarts")
        self.timers: list[tuple[Seconds, int, str, Any]] = [(math.inf, 0, "", None)]
        self.timer_number = 0
        self.lemon_time = min((stream.time for stream, _, _ in self.lemon_streams), default=math.inf)
        for source in plan.slow:
            draws = self.draw(f"slow/{source.name}/start")
            size = sum(source.classes)
            if size and source.share > 0:
                count = int(draws.rng.binomial(size, source.share))
                for place in draws.rng.choice(size, count, replace=False).tolist():
                    slow_down(self, source, draws, place=place)
        set_state(self)

    def _marks(self, failure: JobFailure, kind: str, seed: int, replication: int) -> Marks:
        return Marks(failure, self.plan, generator(seed, replication, f"{failure.name}/{kind}"))

    def life(self, environment: simpy.Environment) -> Generator[simpy.Event, Any, None]:
        """Train, and recover from each failure, until the last save is durable."""
        plain = is_plain(self.plan) and not self.ledger.records
        strike = spend(self, "restart", "start", self.restarts.seconds(self.plan.start), DOWN)
        while True:
            if strike is not None:
                while strike is not None:
                    strike = recover(self, strike)
                self._report(self.farthest / self.total)
            yield environment.timeout(max(0.0, self.now - environment.now))
            if plain:
                sprint(self)
                yield environment.timeout(max(0.0, self.now - environment.now))
            if self.step >= self.total:
                strike = finish(self)
                if strike is None:
                    break
            else:
                strike = train(self)
        yield environment.timeout(max(0.0, self.now - environment.now))
        self._report(1.0)

    def _report(self, fraction: float) -> None:
        if self.progress is not None:
            self.progress(fraction)

    def result(self) -> CampaignResult:
        """What is left behind."""
        self.history.book()
        ledger, plan = self.ledger, self.plan
        for pace in self.paces.values():
            self._book(pace)
        productive = sum(phase.steps * phase.step_time for phase in plan.phases)
        names = [tier.name for tier in plan.phases[0].tiers]
        for tier in range(self.tiers):
            if self.busy[tier] > self.now:
                self.history.discard(tier, self.saved[tier])
        starts = [*self.phase_start, self.now]
        machine_s = self.fleet.machine_seconds(self.now)
        return CampaignResult(
            wall_clock=self.now,
            steps=self.step,
            time_s=ledger.time_s(float(productive)),
            failures=self.counts,
            incidents=tuple(sorted(ledger.incidents)),
            progress=tuple(ledger.progress),
            by_cause=ledger.by_cause(),
            phases=tuple(later - earlier for earlier, later in pairwise(starts)),
            saves=dict(zip(names, self.history.counts, strict=True)),
            recoveries=self.recoveries,
            machine_s=machine_s,
            draws=dict(self.fleet.counts),
            hours=ledger.hours(plan.phases, self.now),
            undiscovered=len(self.silent),
            repairs=tuple((since, min(until, self.now)) for since, until in self.fleet.stays or ()),
        )

    def _book(self, pace: Pace) -> None:
        for key, cause, seconds in pace.extra:
            if pace.kept and seconds:
                self.ledger.add(key, cause, pace.kept * seconds)

    def forget(self, now: Seconds) -> None:
        """What nothing can undo any more is no longer remembered step by step."""
        kept = self.history.forget(now, self.step, min((each.time for each in self.silent), default=math.inf))
        if kept > self.farthest:
            self.farthest, self.stuck = kept, 0
            self._report(kept / self.total)

    def forget_paces(self) -> None:
        """Book the paces that no step that can still be lost was done at."""
        used = {id(stretch.pace) for stretch in self.history.stretches}
        for key, pace in list(self.paces.items()):
            if id(pace) not in used:
                self._book(self.paces.pop(key))
        self.most_paces = max(_PACES, 2 * len(self.paces))

    def phase_now(self) -> int:
        """The phase of the next step."""
        number = len(self.begins) - 1
        while self.begins[number] > self.step:
            number -= 1
        return number

    def phase_before(self) -> int:
        """The phase of the step that was done last: its saves are due behind it."""
        number = len(self.begins) - 1
        while number and self.begins[number] >= self.step:
            number -= 1
        return number
