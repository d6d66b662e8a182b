"""Step programs written by hand, for tests: pipelines with given stage times, and plain lists of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import simpy

from simulator.engine.network import Network
from simulator.physics.program.steps import (
    Body,
    Call,
    CallPhase,
    Chain,
    Coflow,
    Message,
    Segment,
    StepProgram,
    Task,
)
from simulator.physics.schedules.tables import Action, Table


def chain(*parts: tuple[float, str, bool] | Call) -> Chain:
    """A chain of (seconds, state, is a kernel) and collectives of its own rank class."""
    listed = tuple(
        Segment(part.seconds, f"exposed_{part.axis}", False, part) if isinstance(part, Call) else Segment(*part)
        for part in parts
    )
    states: dict[str, float] = {}
    for segment in listed:
        states[segment.state] = states.get(segment.state, 0.0) + segment.seconds
    used = frozenset(c for part in parts if isinstance(part, Call) for c in part.constraints)
    return Chain(listed, sum(segment.seconds for segment in listed), tuple(states.items()), used)


def kernel(seconds: float, state: str = "compute") -> Chain:
    """A single kernel."""
    return chain((seconds, state, True))


def fixed(axis: str, seconds: float, members: Sequence[int] = (0,), *, across: bool = False) -> Call:
    """A collective that takes a given time."""
    return Call(f"{axis}.test", axis, tuple(members), (CallPhase(seconds, ()),), seconds, across_stages=across)


def moving(
    axis: str,
    *phases: CallPhase,
    members: Sequence[int] = (0,),
    coflows: Sequence[Coflow] = (),
    capacity: float = 8.0,
    across: bool = False,
) -> Call:
    """A collective that moves bytes on the links of a program: of these coflows, or on link 0."""
    known = tuple(coflows) or (on_link(capacity),) * (1 + max((i for p in phases for i, _ in p.transfers), default=0))
    used = frozenset(c for phase in phases for index, _ in phase.transfers for c in known[index].constraints)
    seconds = sum(phase.latency + _drain(known, capacity, phase.transfers) for phase in phases)
    return Call(f"{axis}.test", axis, tuple(members), phases, seconds, used, across)


def _drain(coflows: tuple[Coflow, ...], capacity: float, transfers: Sequence[tuple[int, float]]) -> float:
    """Seconds that transfers take together, with all links to themselves."""
    env = simpy.Environment()
    links = 1 + max((link for coflow in coflows for link in coflow.constraints), default=-1)
    network = Network(env, coflows, (capacity,) * links)
    dead = any(not coflows[index].solo_rate > 0 for index, _ in transfers)
    deliveries = [] if dead else [network.transfer(*each) for each in transfers]
    env.run(simpy.AllOf(env, deliveries))
    return float(env.now)


def on_link(capacity: float) -> Coflow:
    """A coflow that has link 0 to itself when alone."""
    return Coflow("test", (0,), (1.0,), 1.0, float("inf"), capacity)


def program(
    *bodies: Sequence[object],
    same_stage: bool = True,
    coflows: Sequence[Coflow] = (),
    capacity: Sequence[float] = (),
    slowdown: float = 1.0,
    counts: Sequence[int] | None = None,
) -> StepProgram:
    """A list of steps per rank class, without a pipeline: replicas of one stage, or a stage each."""
    ranks = range(len(bodies))
    return StepProgram(
        rank_counts=tuple(counts or [1 for _ in ranks]),
        pipeline_ranks=tuple(ranks),
        prologue=tuple(tuple(body) for body in bodies),  # type: ignore[arg-type]
        tasks=tuple(() for _ in ranks),
        epilogue=tuple(() for _ in ranks),
        coflows=tuple(coflows),
        capacity=tuple(capacity),
        blocking_p2p=True,
        overlap_slowdown=slowdown,
        executed_flops=0.0,
        class_of_rank=np.arange(0),
        table=tuple((Action(0 if same_stage else rank, "F", 0),) for rank in ranks),
        vpp=1,
    )


def pipeline(
    table: Table,
    seconds: Callable[[Action], float],
    *,
    blocking: bool,
    message: float = 0.0,
    epilogue: Callable[[int], Body] = lambda rank: (),
) -> StepProgram:
    """Every action of a schedule is one kernel of `seconds(action)`; every message takes `message` seconds."""
    pp = len(table)
    num_stages = 1 + max(action.stage for row in table for action in row)
    calls = {(a, b): fixed("pp", message, (a, b)) for a in range(pp) for b in range(pp) if a != b}

    def needs(action: Action) -> Message | None:
        source = action.stage + (-1 if action.kind == "F" else 1)
        if not 0 <= source < num_stages or source % pp == action.stage % pp:
            return None
        return Message(calls[source % pp, action.stage % pp], action.kind, action.stage, action.microbatch)

    def gives(action: Action) -> Message | None:
        target = action.stage + (1 if action.kind == "F" else -1)
        return needs(Action(target, action.kind, action.microbatch)) if 0 <= target < num_stages else None

    @cache
    def body(duration: float) -> Body:
        return (kernel(duration),)

    def task(action: Action) -> Task:
        return Task(str(action), needs(action), body(seconds(action)), gives(action))

    return StepProgram(
        rank_counts=(1,) * pp,
        pipeline_ranks=tuple(range(pp)),
        prologue=((),) * pp,
        tasks=tuple(tuple(task(action) for action in row) for row in table),
        epilogue=tuple(epilogue(rank) for rank in range(pp)),
        coflows=(),
        capacity=(),
        blocking_p2p=blocking,
        overlap_slowdown=1.0,
        executed_flops=0.0,
        class_of_rank=np.arange(0),
        table=table,
        vpp=num_stages // pp,
    )
