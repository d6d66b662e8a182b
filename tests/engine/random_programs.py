"""Random pipelines whose classes contend for links, and what it means that two results are the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from hypothesis import strategies as st

from simulator.physics.program.steps import (
    Body,
    Call,
    CallPhase,
    Coflow,
    Join,
    Message,
    Shared,
    Start,
    Step,
    StepProgram,
    Task,
)
from simulator.physics.schedules.tables import Action, build_table
from simulator.records import Span, StepResult
from tests.engine.programs import chain, fixed, kernel, moving

CAPACITY = (8.0, 8.0)
COFLOWS = (
    Coflow("spine", (0,), (1.0,), 1.0, float("inf"), 8.0),
    Coflow("both", (0, 1), (0.5, 1.0), 1.0, float("inf"), 8.0),
    Coflow("capped", (1,), (1 / 3,), 1.0, 5.0, 5.0),
    Coflow("heavy", (0,), (1.0,), 2.0, float("inf"), 8.0),
)
SECONDS = st.sampled_from([0.5, 1.0, 1.25, 0.7, 1 / 3])
TRANSFER = st.tuples(st.integers(0, len(COFLOWS) - 1), st.sampled_from([1.0, 2.0, 3.3, 0.7, 0.0]))
PHASE = st.builds(CallPhase, st.sampled_from([0.0, 0.01, 0.125]), st.lists(TRANSFER, max_size=2).map(tuple))
PHASES = st.lists(PHASE, min_size=1, max_size=2)
PART = st.tuples(st.sampled_from(["kernel", "own", "own", "shared", "start", "join"]), SECONDS, PHASES)


def call(axis: str, phases: Sequence[CallPhase], members: Sequence[int]) -> Call:
    """A collective on the links of these programs."""
    return moving(axis, *phases, members=members, coflows=COFLOWS)


@st.composite
def pipelines(draw: st.DrawFn, microbatches: Sequence[int] = (1, 2, 5, 12, 24)) -> StepProgram:
    """Pipelines of one or two rank classes each; all their traffic shares two links."""
    kind = draw(st.sampled_from(["1f1b", "gpipe", "interleaved"]))
    pp, classes = draw(st.integers(2 if kind == "interleaved" else 1, 4)), draw(st.integers(1, 2))
    vpp = 2 if kind == "interleaved" else 1
    count = draw(st.sampled_from(microbatches))
    count = max(pp, count // pp * pp) if kind == "interleaved" else count
    equal = draw(st.booleans())
    stages = range(1 if equal else pp * vpp)
    recipes = {(stage, kind): draw(st.lists(PART, min_size=1, max_size=4)) for stage in stages for kind in "FB"}
    message = draw(st.one_of(st.just([CallPhase(0.0, ())]), PHASES))
    tail = draw(PHASES)
    table = build_table(kind, pp=pp, num_microbatches=count, vpp=vpp)

    @cache
    def met(stage: int, kind: str, place: int) -> Call:
        """A collective of all classes of a pipeline rank."""
        members = [stage % pp * classes + each for each in range(classes)]
        return call("ep" if place % 2 else "dp", recipes[0 if equal else stage, kind][place][2], members)

    @cache
    def wire(source: int, target: int, number: int) -> Call:
        return call("pp", message, (source * classes + number, target * classes + number))

    @cache
    def body(rank: int, stage: int, kind: str) -> Body:
        steps: list[Step] = []
        started: list[str] = []
        for place, (what, seconds, phases) in enumerate(recipes[0 if equal else stage, kind]):
            if what == "shared":
                steps.append(Shared(met(stage, kind, place)))
            elif what == "start":
                started.append(f"{stage}{kind}{place}")
                steps += [Start(started[-1], met(stage, kind, place)), kernel(seconds)]
            elif what == "join" and started:
                steps.append(Join(started.pop()))
            else:
                own = [call("tp", phases, (rank,))] if what == "own" else []
                steps.append(chain((seconds, "compute", True), *own, *own, (seconds / 3, "recomputation", True)))
        return tuple(steps)

    def received(action: Action, number: int) -> Message | None:
        source = action.stage + (-1 if action.kind == "F" else 1)
        if not 0 <= source < pp * vpp or source % pp == action.stage % pp:
            return None
        return Message(wire(source % pp, action.stage % pp, number), action.kind, action.stage, action.microbatch)

    def sent(action: Action, number: int) -> Message | None:
        target = action.stage + (1 if action.kind == "F" else -1)
        return received(action._replace(stage=target), number) if 0 <= target < pp * vpp else None

    def task(action: Action, rank: int) -> Task:
        number = rank % classes
        return Task(str(action), received(action, number), body(rank, action.stage, action.kind), sent(action, number))

    ranks = range(pp * classes)
    norm = fixed("world", 0.1, ranks, across=True)
    tails = [call("dp", tail, (rank,)) for rank in ranks]
    return StepProgram(
        rank_counts=(1,) * len(ranks),
        pipeline_ranks=tuple(rank // classes for rank in ranks),
        class_of_rank=np.arange(0),
        prologue=((),) * len(ranks),
        tasks=tuple(tuple(task(action, rank) for action in table[rank // classes]) for rank in ranks),
        epilogue=tuple((Start("t", tails[r]), kernel(0.3, "optimizer"), Join("t"), Shared(norm)) for r in ranks),
        coflows=COFLOWS,
        capacity=CAPACITY,
        blocking_p2p=kind != "interleaved" and draw(st.booleans()),
        overlap_slowdown=draw(st.sampled_from([1.0, 1.1, 1.5])),
        executed_flops=0.0,
        table=table,
        vpp=vpp,
    )


def assert_same(result: StepResult, expected: StepResult) -> None:
    """Every span of every rank, its name, times and parts, to 1e-9 of the step; shorter ones are left out."""
    allowed = 1e-9 * expected.step_time
    assert abs(result.step_time - expected.step_time) <= allowed
    for rank in range(len(expected.rank_counts)):
        found, wanted = (_spans(each, rank, allowed) for each in (result, expected))
        assert [span.name for span in found] == [span.name for span in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert abs(one.start - other.start) <= allowed
            assert abs(one.end - other.end) <= allowed
            parts, others = dict(one.parts), dict(other.parts)
            for state in parts.keys() | others.keys():
                assert abs(parts.get(state, 0.0) - others.get(state, 0.0)) <= allowed


def _spans(result: StepResult, rank: int, least: float) -> list[Span]:
    return [span for span in result.spans if span.rank == rank and span.end - span.start > least]
