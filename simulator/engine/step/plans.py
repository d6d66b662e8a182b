"""What a step program comes to before it runs: bodies with their times on the clock's grain, and what can be contended.

A constraint can be contended when two things that may run at the same time use it. What runs one thing at a time (the
compute stream of a rank class, its stream of an axis, the channel of a pair of ranks) is a *lane*; a call occupies the
lanes of all its members. A constraint whose users all occupy one lane is never contended, and nobody has to watch it.

Pinned by tests/engine/test_iteration.py and tests/engine/test_lazy.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple, TypeAlias

import simpy

from simulator.engine.clock import grain_of, rounder
from simulator.engine.network import Network
from simulator.physics.program.steps import Body, Call, CallPhase, Chain, Coflow, Join, Shared, Start, StepProgram
from simulator.scenario.units import Bytes, BytesPerSecond, Seconds

Lane: TypeAlias = tuple[object, ...]


class Moving(NamedTuple):
    """A transfer of a call at work: `left` bytes at `updated` seconds from the phase's first byte, at a rate since."""

    coflow: int
    left: Bytes
    rate: BytesPerSecond
    updated: Seconds


class PhasePlan:
    """One phase: `latency`, then `seconds` until the slowest of the transfers that take time is delivered."""

    __slots__ = ("_pieces", "instant", "latency", "seconds", "transfers")

    def __init__(self, phase: CallPhase, plans: Plans) -> None:
        network = plans.network
        taking = [network.takes_time(index, size) for index, size in phase.transfers]
        self.latency = plans.round(phase.latency)
        self.transfers = tuple(each for each, takes in zip(phase.transfers, taking, strict=True) if takes)
        self.instant = tuple(each for each, takes in zip(phase.transfers, taking, strict=True) if not takes)
        self._pieces: list[tuple[Seconds, tuple[Moving, ...]]] = []
        coflows = [network.coflows[index] for index, _ in self.transfers]
        if _disjoint(coflows):
            seconds = [plans.round(size / network.coflows[index].solo_rate) for index, size in self.transfers]
            self.seconds = max(seconds, default=0.0)
        else:
            self.seconds = self._run(network)

    def _run(self, network: Network) -> Seconds:
        """Let the transfers share what they have in common, and note how that went."""
        env, start = network.env, network.env.now
        active = dict.fromkeys(range(len(self.transfers)))
        flows = [network.start(*each, partial(active.pop, place)) for place, each in enumerate(self.transfers)]
        while active:
            env.step()
            if env.peek() > env.now:
                left = [flows[place] for place in active]
                moving = tuple(Moving(flow.index, flow.remaining, flow.rate, flow.updated - start) for flow in left)
                self._pieces.append((env.now - start, moving))
        return env.now - start

    def moving(self, elapsed: Seconds, coflows: tuple[Coflow, ...]) -> tuple[Moving, ...]:
        """What is still at work so many seconds after the first byte, left alone until then."""
        if not self._pieces:
            moving = tuple(Moving(index, size, coflows[index].solo_rate, 0.0) for index, size in self.transfers)
            self._pieces = [(0.0, moving)]
        found = [moving for start, moving in self._pieces if start <= elapsed][-1]
        return tuple(each for each in found if each.updated + each.left / each.rate > elapsed)


class CallPlan:
    """A call with its times: `starts[k]` is when phase k begins, the last entry when the call ends, left alone.

    `busy` is the state of a rank that stands still while it runs, `idle` before it starts; `contended` are the
    constraints that something else may use at the same time; `rounds` counts how often each member has come to it.
    """

    __slots__ = ("busy", "call", "contended", "idle", "phases", "rounds", "seconds", "starts")

    def __init__(self, call: Call, plans: Plans) -> None:
        self.call = call
        self.phases = tuple(PhasePlan(phase, plans) for phase in call.phases)
        starts = [0.0]
        for phase in self.phases:
            starts.append(starts[-1] + (phase.latency + phase.seconds))
        self.starts = starts
        self.seconds = starts[-1]
        self.contended = plans.contended_of(call.constraints)
        self.busy = "optimizer" if call.axis == "world" else f"exposed_{call.axis}"
        self.idle = "waiting" if call.across_stages else "imbalance"
        self.rounds = dict.fromkeys(call.members, 0)

    def next_round(self, rank: int) -> int:
        """Count another time at which a member comes to the call: members meet at the same count."""
        self.rounds[rank] += 1
        return self.rounds[rank]


class ChainPlan:
    """A chain with its times: `ends[0][i]` is when segment i begins, left alone; `ends[1][i]` beside a collective.

    `places` are the segments of each call that can be contended.
    """

    __slots__ = ("calls", "contended", "count", "ends", "parts", "places", "segments")

    def __init__(self, chain: Chain, plans: Plans) -> None:
        slowdown = plans.program.overlap_slowdown
        self.segments = chain.segments
        self.count = len(chain.segments)
        self.parts = chain.parts
        self.contended = plans.contended_of(chain.constraints)
        alone, beside = [0.0], [0.0]
        self.calls: list[CallPlan | None] = []
        for seconds, _, kernel, call in chain.segments:
            plan = None if call is None else plans.call(call)
            self.calls.append(plan)
            nominal = plans.round(seconds) if plan is None else plan.seconds
            alone.append(alone[-1] + nominal)
            beside.append(beside[-1] + (plans.round(seconds * slowdown) if kernel else nominal))
        self.ends = (alone, beside)
        self.places: list[tuple[CallPlan, list[int]]] = []
        if self.contended:
            places: dict[CallPlan, list[int]] = {}
            for place, plan in enumerate(self.calls):
                if plan is not None and plan.contended:
                    places.setdefault(plan, []).append(place)
            self.places = list(places.items())


class Launched(NamedTuple):
    """A collective to put on a stream."""

    tag: str
    plan: CallPlan


class Awaited(NamedTuple):
    """A tag to wait for."""

    tag: str


PlannedBody: TypeAlias = tuple[ChainPlan | CallPlan | Launched | Awaited, ...]


class Plans:
    """Everything that is known of a program before it runs.

    Attributes
    ----------
    bodies, contended
        Every body of each rank class, and how often it runs; constraints that can be contended.
    grain
        Of the clock, see `clock`.
    mixed
        Channels on which messages of several kinds or stages can meet.
    shared
        Calls with several members that have been planned so far.
    network
        With a clock of its own, to try calls out on.
    """

    def __init__(self, program: StepProgram) -> None:
        self.program = program
        ranks = range(len(program.rank_counts))
        self.bodies = [_bodies(program, rank) for rank in ranks]
        messages = _messages(program)
        self.mixed = _mixed(messages)
        self.contended = _contended(self.bodies, {call for call, _, _ in messages})
        self.grain = grain_of(_work(program, self.bodies))
        self._rounder = rounder(self.grain)
        env = simpy.Environment()
        self.network = Network(env, program.coflows, program.capacity, grain=self.grain)
        self.shared: list[CallPlan] = []
        self._calls: dict[Call, CallPlan] = {}
        self._chains: dict[int, ChainPlan] = {}
        self._planned: dict[int, PlannedBody] = {}

    def round(self, seconds: Seconds) -> Seconds:
        """The nearest multiple of the grain."""
        return seconds + self._rounder - self._rounder

    def contended_of(self, constraints: frozenset[int]) -> tuple[int, ...]:
        """Those of the constraints that can be contended."""
        return tuple(sorted(constraints & self.contended)) if self.contended else ()

    def call(self, call: Call) -> CallPlan:
        """Plan of a call."""
        plan = self._calls.get(call)
        if plan is None:
            plan = self._calls[call] = CallPlan(call, self)
            if len(call.members) > 1:
                self.shared.append(plan)
        return plan

    def body(self, body: Body) -> PlannedBody:
        """Plan of a body; the program keeps all bodies, so that their ids stay theirs."""
        plan = self._planned.get(id(body))
        if plan is None:
            plan = self._planned[id(body)] = tuple(self._steps(body))
        return plan

    def _steps(self, body: Body) -> Iterator[ChainPlan | CallPlan | Launched | Awaited]:
        for step in body:
            if isinstance(step, Chain):
                if id(step) not in self._chains:
                    self._chains[id(step)] = ChainPlan(step, self)
                yield self._chains[id(step)]
            elif isinstance(step, Shared):
                yield self.call(step.call)
            elif isinstance(step, Start):
                yield Launched(step.tag, self.call(step.call))
            else:
                yield Awaited(step.tag)


def _disjoint(coflows: list[Coflow]) -> bool:
    used = [constraint for coflow in coflows for constraint in coflow.constraints]
    return len(used) == len(set(used))


def _bodies(program: StepProgram, rank: int) -> list[tuple[Body, int]]:
    """Every body of a rank class, and how often it runs."""
    counts: dict[int, int] = {}
    found: dict[int, Body] = {}
    for _, _, body, _ in program.tasks[rank]:
        key = id(body)
        if key in counts:
            counts[key] += 1
        else:
            counts[key], found[key] = 1, body
    inner = [(body, counts[key]) for key, body in found.items()]
    return [(program.prologue[rank], 1), *inner, (program.epilogue[rank], 1)]


def _messages(program: StepProgram) -> set[tuple[Call, str, int]]:
    """Call, kind and stage of every message that is sent."""
    return {message[:3] for row in program.tasks for task in row if (message := task[3]) is not None}


def _mixed(messages: Iterable[tuple[Call, str, int]]) -> frozenset[tuple[int, ...]]:
    kinds: dict[tuple[int, ...], set[tuple[str, int]]] = {}
    for call, kind, stage in messages:
        kinds.setdefault(call.members, set()).add((kind, stage))
    return frozenset(channel for channel, several in kinds.items() if len(several) > 1)


def _contended(bodies: list[list[tuple[Body, int]]], messages: set[Call]) -> frozenset[int]:
    """Constraints whose users do not all occupy one lane."""
    common: dict[int, frozenset[Lane]] = {}

    def use(constraints: Iterable[int], lanes: frozenset[Lane]) -> None:
        for constraint in constraints:
            known = common.get(constraint)
            if known is None:
                common[constraint] = lanes
            elif known is not lanes:
                common[constraint] = known & lanes

    for rank, own in enumerate(bodies):
        compute = frozenset({(rank, "compute")})
        for body, _ in own:
            for step in body:
                if isinstance(step, Chain):
                    use(step.constraints, compute)
                elif not isinstance(step, Join):
                    lane = "compute" if isinstance(step, Shared) else step.call.axis
                    use(step.call.constraints, frozenset((member, lane) for member in step.call.members))
    for call in messages:
        use(call.constraints, frozenset({("channel", *call.members)}))
    return frozenset(constraint for constraint, lanes in common.items() if not lanes)


def _work(program: StepProgram, bodies: list[list[tuple[Body, int]]]) -> Seconds:
    """Seconds that the longest rank needs at least, and one body of every rank: roughly the step."""
    seconds: dict[int, float] = {}
    for own in bodies:
        for body, _ in own:
            if id(body) not in seconds:
                seconds[id(body)] = sum(
                    step.seconds if isinstance(step, Chain) else step.call.seconds
                    for step in body
                    if not isinstance(step, Join)
                )
    longest = max((sum(seconds[id(body)] * count for body, count in own) for own in bodies), default=0.0)
    return longest + sum(max(seconds[id(body)] for body, _ in own) for own in bodies)
