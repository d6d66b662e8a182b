"""Skipped is simulated: a jump over a steady state changes nothing, and happens only where the state came back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings

from simulator.engine.iteration import simulate_step
from simulator.engine.step.recurrence import Stretch, periodic_stretches
from simulator.physics.program.steps import Body, CallPhase, Join, Shared, Start, StepProgram, Task
from simulator.physics.schedules.tables import Action, build_table
from simulator.records import Repeated
from tests.engine.programs import chain, fixed, kernel, moving, on_link, pipeline, program
from tests.engine.random_programs import assert_same, pipelines

SCHEDULES = pytest.mark.parametrize(
    ("kind", "blocking", "vpp"),
    [("1f1b", True, 1), ("1f1b", False, 1), ("gpipe", True, 1), ("gpipe", False, 1), ("interleaved", False, 2)],
)


def pipe(kind: str, pp: int, count: int, *, blocking: bool, vpp: int = 1, slow: int = 0) -> StepProgram:
    """F of 1 s and B of 2 s, on one stage a third longer; messages of 0.1 s."""
    table = build_table(kind, pp=pp, num_microbatches=count, vpp=vpp)

    def seconds(action: Action) -> float:
        return (1.0 if action.kind == "F" else 2.0) * (4 / 3 if action.stage == slow else 1.0)

    return pipeline(table, seconds, blocking=blocking, message=0.1)


def repeat(body: Sequence[object], count: int, *, prologue: Body = (), rest: Body = ()) -> StepProgram:
    """One rank that does the same in every microbatch."""
    shell = program([])
    same: Body = tuple(body)  # type: ignore[arg-type]
    tasks = tuple(Task(f"0F{microbatch}", None, same, None) for microbatch in range(count))
    fields = {name: getattr(shell, name) for name in shell.__dataclass_fields__}
    fields |= {"prologue": (prologue,), "tasks": (tasks,), "epilogue": (rest,), "coflows": (on_link(8.0),) * 3}
    return StepProgram(**fields | {"capacity": (8.0,), "overlap_slowdown": 1.1})


# --- steady states are found and cost nothing ------------------------------------------------------------------------


@SCHEDULES
@pytest.mark.parametrize("slow", [0, 99], ids=["first stage slow", "equal stages"])
def test_every_schedule_has_a_steady_state(kind: str, blocking: bool, vpp: int, slow: int) -> None:
    """Spans are those of the whole simulation, names and order included."""
    plan = pipe(kind, 4, 48, blocking=blocking, vpp=vpp, slow=slow)
    result, whole = simulate_step(plan), simulate_step(plan, skip=False)
    assert result.skipped > 0
    assert whole.skipped == 0
    assert_same(result, whole)
    assert [(span.rank, span.name) for span in result.spans] == [(span.rank, span.name) for span in whole.spans]


@SCHEDULES
def test_work_does_not_grow_with_the_microbatches(kind: str, blocking: bool, vpp: int) -> None:
    """Four times as many microbatches: as many events, as many spans in memory, more of them counted."""
    few, many = (simulate_step(pipe(kind, 4, count, blocking=blocking, vpp=vpp, slow=99)) for count in (48, 192))
    assert many.events == few.events
    assert len(list(many.counted_spans())) == len(list(few.counted_spans()))
    assert sum(times for _, times in many.counted_spans()) == len(many.spans) > 3 * len(few.spans)


def test_gpipe_has_two_steady_states() -> None:
    """Forwards and then backwards."""
    result = simulate_step(pipe("gpipe", 4, 48, blocking=True))
    assert sum(isinstance(piece, Repeated) for piece in result.pieces) == 2


def test_collectives_of_every_microbatch_are_part_of_the_state() -> None:
    """ZeRO-3 in small: gathers that run one ahead beside kernels that they slow, on links that chains use as well."""
    gather, reduce, own = (
        moving(axis, CallPhase(0.01, ((index, size),)))
        for index, (axis, size) in enumerate([("dp", 6.0), ("edp", 3.0), ("tp", 1.0)])
    )
    compute = (0.4, "compute", True)
    body = [Start("a", gather), Join("r"), chain(compute, own, compute, own), Join("a"), Start("r", reduce)]
    plan = repeat(body, 200, prologue=(Start("r", reduce),), rest=(Join("r"),))
    result, whole = simulate_step(plan), simulate_step(plan, skip=False)
    assert_same(result, whole)
    assert_same(result, simulate_step(plan, fuse=False))
    assert result.skipped > 150
    assert result.events < whole.events / 10


# --- what only looks steady ------------------------------------------------------------------------------------------


def test_a_backlog_that_grows_is_no_steady_state() -> None:
    """Kernels of 1.1 s, 1.2 s of collective each that nobody waits for until the end: every task looks the same."""
    plan = repeat([Start("g", fixed("dp", 1.2)), kernel(1.0)], 100, rest=(Join("g"),))
    result = simulate_step(plan)
    assert result.skipped == 0
    assert_same(result, simulate_step(plan, skip=False))
    assert result.step_time == pytest.approx(100 * 1.2)


def test_a_backlog_that_is_worked_off_ends_a_steady_state() -> None:
    """30 s of collective from before: 1 s tasks take 1.1 s while it runs, all alike, and it must not be jumped over."""
    body = [Start("h", fixed("ep", 0.5)), kernel(1.0), Join("h")]
    plan = repeat(body, 100, prologue=(Start("g", fixed("dp", 30.0)),), rest=(Join("g"),))
    result = simulate_step(plan)
    assert_same(result, simulate_step(plan, skip=False))
    assert 40 < result.skipped < 100 - 27


def test_messages_that_pile_up_are_no_steady_state() -> None:
    """GPipe without blocking, the second stage slow: with every microbatch the first is farther ahead of it."""
    plan = pipe("gpipe", 2, 40, blocking=False, slow=1)
    result = simulate_step(plan)
    assert_same(result, simulate_step(plan, skip=False))
    assert sum(isinstance(piece, Repeated) for piece in result.pieces) <= 1, "at most the backwards repeat"


def test_slack_that_drifts_is_skipped_only_once_it_is_used_up() -> None:
    """Two ranks meet in every eighth microbatch, in between the second falls behind: only eight are a period."""
    meet = fixed("dp", 0.1, (0, 1))
    tasks = []
    for rank in (0, 1):
        plain, last = (kernel(1.0 + 0.01 * rank),), (kernel(1.0 + 0.01 * rank), Shared(meet))
        bodies = [last if number % 8 == 7 else plain for number in range(160)]
        tasks.append(tuple(Task(f"{rank}F{number}", None, body, None) for number, body in enumerate(bodies)))
    shell = program([], [])
    fields = {name: getattr(shell, name) for name in shell.__dataclass_fields__}
    plan = StepProgram(**fields | {"tasks": tuple(tasks)})
    result = simulate_step(plan)
    assert result.step_time == pytest.approx(20 * (8 * 1.01 + 0.1))
    assert_same(result, simulate_step(plan, skip=False))
    assert 10 < result.skipped < 20


# --- laws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=35)
@given(pipelines(microbatches=(12, 24, 40)))
def test_skipped_is_simulated(plan: StepProgram) -> None:
    """Random pipelines, contended or not: every span, its name and its parts are those of the whole simulation."""
    assert_same(simulate_step(plan), simulate_step(plan, skip=False))


@settings(max_examples=8)
@given(pipelines(microbatches=(12,)))
def test_the_same_program_gives_the_same_spans(plan: StepProgram) -> None:
    """Twice the same program: equal records to the last bit, counts of work included."""
    first, second = simulate_step(plan), simulate_step(plan)
    assert first == second
    assert first.spans == second.spans


# --- periods of a row ------------------------------------------------------------------------------------------------


def row(kinds: str) -> list[Task]:
    """Tasks of the kinds that letters name."""
    bodies: dict[str, Body] = {letter: (kernel(1.0),) for letter in kinds}
    return [Task(letter, None, bodies[letter], None) for letter in kinds]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("ABC", []),
        ("AAAA", [Stretch(0, 4, 1)]),
        ("XABABABY", [Stretch(1, 7, 2)]),
        ("AABAABAABAAB", [Stretch(0, 12, 3)]),
        ("AAAABABABABBBB", [Stretch(0, 4, 1), Stretch(3, 11, 2), Stretch(10, 14, 1)]),
    ],
)
def test_stretches_of_a_row(kinds: str, expected: list[Stretch]) -> None:
    """Where at least three periods follow one another; the period is the shortest of those that reach farthest."""
    assert periodic_stretches(row(kinds)) == expected


def test_a_row_that_never_repeats_is_read_once() -> None:
    """No two tasks alike, ten thousand of them: no candidates, so no search."""
    assert periodic_stretches([Task(str(place), None, (kernel(1.0),), None) for place in range(10_000)]) == []
