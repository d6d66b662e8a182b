"""Joint is detailed: classes that go through a stretch together end as if every kernel and call had been an event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine.iteration import simulate_step
from simulator.engine.step.plans import Plans
from simulator.engine.step.stretches import agreed
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
from simulator.physics.schedules.tables import build_table
from simulator.records import Span, StepResult
from tests.engine.programs import chain, fixed, kernel, moving, on_link, program
from tests.engine.random_programs import SECONDS, assert_same

LINK = Coflow("link", (0,), (1.0,), 1.0, float("inf"), 10.0)


def joint_steps(plan: StepProgram) -> list[int]:
    """Stretches that each rank class goes through together with others."""
    return [sum(map(len, places.values())) for places in agreed(Plans(plan))]


def rows(result: StepResult, rank: int) -> list[Span]:
    """Spans of a rank class in order."""
    return [span for span in result.spans if span.rank == rank]


def check(plan: StepProgram, joint: Sequence[int]) -> StepResult:
    """The step, if so many stretches are joint and every span is that of the detailed step."""
    assert joint_steps(plan) == list(joint)
    result = simulate_step(plan)
    assert_same(result, simulate_step(plan, fuse=False, skip=False))
    return result


# --- worked examples -------------------------------------------------------------------------------------------------


def test_a_slow_member_makes_the_others_wait() -> None:
    """Kernels of 1 s on rank 0 and 1.5 s on rank 1, before each of two calls of 0.25 s and after them.

    Rank 0 waits 0.5 s before each call; calls at 1.5 to 1.75 s and 3.25 to 3.5 s. Rank 0 ends at 4.5 s, rank 1 at 5 s.
    Two events: an end each.
    """
    call = Shared(fixed("tp", 0.25, (0, 1)))
    quick, slow = kernel(1.0), kernel(1.5)
    plan = program([quick, call, quick, call, quick], [slow, call, slow, call, slow])
    result = check(plan, [1, 1])
    fast = rows(result, 0)
    assert [(span.start, span.end) for span in fast] == [
        (0, 1),
        (1, 1.75),
        (1.75, 2.75),
        (2.75, 3.5),
        (3.5, 4.5),
        (4.5, 5),
    ]
    assert [dict(span.parts) for span in fast[1::2][:2]] == [{"exposed_tp": 0.25, "imbalance": 0.5}] * 2
    assert [dict(span.parts) for span in rows(result, 1)[1::2]] == [{"exposed_tp": 0.25, "imbalance": 0.0}] * 2
    assert result.events == 2


def test_groups_that_cross_are_one_gang() -> None:
    """A grid of two by two: calls along its rows and its columns, 1 s of kernel before each; rank 3 takes 2 s.

    Row calls (1 s) end at 2 s and, with rank 3, at 3 s. Ranks 0 and 1 come to the column calls at 3 s, 2 at 4 s and 3
    at 5 s: these end at 5 s (0 and 2) and 6 s (1 and 3). All wait for rank 3 at the last row calls: see the ends.
    """
    across = [Shared(fixed("tp", 1.0, members)) for members in ((0, 1), (2, 3))]
    down = [Shared(fixed("ep", 1.0, members)) for members in ((0, 2), (1, 3))]
    bodies = []
    for rank in range(4):
        work = kernel(2.0 if rank == 3 else 1.0)
        bodies.append([work, across[rank // 2], work, down[rank % 2], work, across[rank // 2]])
    result = check(program(*bodies), [1] * 4)
    ends = [[span.end for span in rows(result, rank)] for rank in range(4)]
    assert ends == [
        [1, 2, 3, 5, 6, 8, 9],
        [1, 2, 3, 6, 7, 8, 9],
        [1, 3, 4, 5, 6, 9],
        [2, 3, 5, 6, 8, 9],
    ]
    assert result.events == 2


def pipe(count: int, *, slow: float, blocking: bool = True) -> StepProgram:
    """Two stages of two classes each, one of the four slow; three calls in every action, messages of 0.1 s."""
    table = build_table("1f1b", pp=2, num_microbatches=count)
    calls = [fixed("tp", 0.2, (2 * stage, 2 * stage + 1)) for stage in (0, 1)]
    wires = {(a, n): fixed("pp", 0.1, (2 * a + n, 2 * (1 - a) + n)) for a in (0, 1) for n in (0, 1)}

    @cache
    def body(rank: int, kind: str) -> Body:
        part = kernel((1.0 if kind == "F" else 2.0) * (slow if rank == 1 else 1.0))
        return tuple(step for _ in range(3) for step in (part, Shared(calls[rank // 2])))

    tasks = []
    for rank in range(4):
        stage, number = divmod(rank, 2)
        row = []
        for action in table[stage]:
            away = Message(wires[stage, number], action.kind, 1 - stage, action.microbatch)
            back = Message(wires[1 - stage, number], action.kind, stage, action.microbatch)
            sends = (action.kind == "F") == (stage == 0)
            row.append(Task(str(action), None if sends else back, body(rank, action.kind), away if sends else None))
        tasks.append(tuple(row))
    shell = program([], [], [], [])
    return replace(shell, tasks=tuple(tasks), pipeline_ranks=(0, 0, 1, 1), table=table, blocking_p2p=blocking)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_body_is_an_event_of_each_member_at_most(blocking: bool) -> None:
    """Per action and class six steps: joint one event, with the message two; spans are the same to the last bit."""
    plan = pipe(24, slow=1.25, blocking=blocking)
    assert joint_steps(plan) == [48] * 4
    joint, detailed = simulate_step(plan, skip=False), simulate_step(plan, skip=False, fuse=False)
    for rank in range(4):
        assert rows(joint, rank) == rows(detailed, rank)
    assert joint.events <= 2 * 48 * 4
    assert detailed.events > 2.2 * joint.events


@pytest.mark.parametrize("slow", [1.0, 1.25])
def test_meetings_in_progress_are_part_of_the_state(slow: float) -> None:
    """A steady state of meetings is skipped, and what is skipped is what would have been."""
    plan = pipe(96, slow=slow)
    result, whole = simulate_step(plan), simulate_step(plan, skip=False)
    assert result.skipped > 20
    assert_same(result, whole)
    assert_same(result, simulate_step(plan, fuse=False))


# --- what is walked in detail ----------------------------------------------------------------------------------------


def test_a_collective_beside_is_detail() -> None:
    """What is started before a stretch and joined after it slows its kernels; once it is joined they are joint."""
    gather, call = fixed("dp", 5.0, (0, 1)), Shared(fixed("tp", 0.25, (0, 1)))
    stretch = [kernel(1.0), call, kernel(1.0), call]
    body = [Start("g", gather), *stretch, Join("g"), *stretch]
    plan = replace(program(body, body), overlap_slowdown=1.5)
    result = check(plan, [1, 1])
    assert "overlap_slowdown" in dict(result.spans[0].parts)


def test_links_that_outsiders_use_are_detail() -> None:
    """Rank 2 may send on the link of the calls of 0 and 1 at any time."""
    call = moving("tp", CallPhase(0.0, ((0, 10.0),)), members=(0, 1), capacity=10.0)
    other = moving("tp", CallPhase(0.0, ((1, 12.0),)), members=(2,), capacity=10.0)
    bodies = [[kernel(1.0), Shared(call), kernel(1.0), Shared(call)]] * 2
    plan = program(*bodies, [chain((1.5, "compute", True), other)], coflows=[on_link(10.0)] * 2, capacity=[10.0])
    check(plan, [0, 0, 0])


def test_links_that_need_a_member_are_joint() -> None:
    """What members start afterwards uses the same link: it cannot run before they have been through."""
    call = moving("tp", CallPhase(0.0, ((0, 10.0),)), members=(0, 1), capacity=10.0)
    later = moving("dp", CallPhase(0.0, ((1, 40.0),)), members=(0, 1, 2), capacity=10.0)
    tail = [Start("g", later), kernel(1.0), Join("g")]
    bodies = [[kernel(1.0 + rank), Shared(call), kernel(1.0), Shared(call), *tail] for rank in (0, 1)]
    plan = program(*bodies, tail, coflows=[on_link(10.0)] * 2, capacity=[10.0])
    check(plan, [1, 1, 0])


def test_a_member_that_does_not_depend_on_all_is_detail() -> None:
    """0 and 1 meet twice, then 1 and 2 twice: 0 is through before 2 has to be there."""
    first, second = Shared(fixed("tp", 1.0, (0, 1))), Shared(fixed("ep", 1.0, (1, 2)))
    plan = program([first, first], [first, first, second, second], [kernel(9.0), second, second])
    check(plan, [0, 0, 0])


def test_members_that_do_not_fit_together_are_detail() -> None:
    """Rank 1 meets in one stretch what rank 0 meets in two."""
    call, own = Shared(fixed("tp", 1.0, (0, 1))), fixed("dp", 0.5, (0,))
    plan = program([call, call, Start("g", own), Join("g"), call, call], [call, call, call, call])
    check(plan, [0, 0])


def test_transfers_are_recorded_in_detail() -> None:
    """With `keep_transfers` nothing is joint."""
    call = moving("tp", CallPhase(0.0, ((0, 10.0),)), members=(0, 1), coflows=[LINK])
    plan = program(*[[Shared(call), Shared(call)]] * 2, coflows=[LINK], capacity=[10.0])
    assert joint_steps(plan) == [1, 1]
    assert len(simulate_step(plan, keep_transfers=True).transfers) == 2


# --- law -------------------------------------------------------------------------------------------------------------


@st.composite
def grids(draw: st.DrawFn) -> StepProgram:
    """Tasks of a grid of classes: calls of rows and columns, some on links, collectives beside, other bodies."""
    wide, tall = draw(st.integers(2, 3)), draw(st.integers(1, 2))
    ranks = range(wide * tall)
    speed = [draw(st.sampled_from([1.0, 1.0, 0.9, 0.5])) for _ in ranks]
    shared_link = draw(st.booleans())
    coflows = [Coflow(f"link{r}", (0 if shared_link else r,), (1.0,), 1.0, float("inf"), 10.0) for r in range(8)]

    def call(axis: str, members: Sequence[int], size: float) -> Call:
        transfers = ((members[0], size),) if size else ()
        return moving(axis, CallPhase(0.05, transfers), members=members, coflows=coflows, capacity=10.0)

    size = draw(st.sampled_from([0.0, 2.0, 3.3]))
    across = [call("tp", range(row * wide, (row + 1) * wide), size) for row in range(tall)]
    down = [call("ep", range(column, wide * tall, wide), draw(st.sampled_from([0.0, size]))) for column in range(wide)]
    reduce = call("dp", ranks, draw(st.sampled_from([0.0, 5.0, 30.0])))
    parts = st.lists(st.tuples(st.sampled_from("krckrcsj"), SECONDS), min_size=1, max_size=7)
    recipes = [draw(parts) for _ in range(draw(st.integers(1, 3)))]
    order = [draw(st.integers(0, len(recipes) - 1)) for _ in range(draw(st.integers(1, 4)))] * draw(st.integers(1, 6))

    @cache
    def body(rank: int, recipe: int) -> Body:
        steps: list[Step] = []
        begun = False
        for what, seconds in recipes[recipe]:
            if what == "k":
                steps.append(kernel(seconds / speed[rank]))
            elif what == "r":
                steps.append(Shared(across[rank // wide]))
            elif what == "c" and tall > 1:
                steps.append(Shared(down[rank % wide]))
            elif what == "s" and not begun:
                steps.append(Start("g", reduce))
                begun = True
            elif what == "j" and begun:
                steps.append(Join("g"))
                begun = False
        return tuple(steps)

    tasks = [tuple(Task(f"0F{m}", None, body(rank, kind), None) for m, kind in enumerate(order)) for rank in ranks]
    shell = program(*([] for _ in ranks), coflows=coflows, capacity=[10.0] * 8)
    return replace(shell, tasks=tuple(tasks), overlap_slowdown=draw(st.sampled_from([1.0, 1.25])))


@settings(max_examples=150)
@given(grids())
def test_joint_is_detailed(plan: StepProgram) -> None:
    """Random grids of classes, also with one link for all: every span is that of the detailed step."""
    detailed = simulate_step(plan, skip=False, fuse=False)
    assert_same(simulate_step(plan, skip=False), detailed)
    assert_same(simulate_step(plan), detailed)
