"""Where the step goes: parts that add up to the last bit, bubble by the closed forms, imbalance by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.engine.iteration import simulate_step
from simulator.physics.program.steps import Body, Join, Shared, Start, StepProgram
from simulator.physics.schedules.closed_forms import ideal_bubble_fraction, ideal_bubble_overhead
from simulator.physics.schedules.execution import dry_run, makespan
from simulator.physics.schedules.tables import Action, build_table
from simulator.records import BREAKDOWN_KEYS, Span, StepResult
from simulator.results.waterfall import action_seconds, breakdown
from tests.engine.programs import chain, fixed, kernel, pipeline, program

SECONDS = st.floats(1e-6, 100.0)


def parts_of(plan: StepProgram, ideal_compute: float = 0.0) -> tuple[dict[str, float], float]:
    """Breakdown of a program, and its step time."""
    result = simulate_step(plan)
    return breakdown(result, plan.table, ideal_compute), result.step_time


def shown(parts: dict[str, float]) -> dict[str, float]:
    """Parts that are more than rounding."""
    return {key: seconds for key, seconds in parts.items() if abs(seconds) > 1e-12}


# --- worked examples -------------------------------------------------------------------------------------------------


def test_every_state_has_its_part() -> None:
    """One rank: each state of the engine's spans ends up under its own key; kernels are split by the ideal time."""
    body = [
        chain((4.0, "compute", True), (1.0, "recomputation", True), (0.5, "exposed_tp", False)),
        Shared(fixed("cp", 0.25)),
        Shared(fixed("ep", 0.75)),
        Start("g", fixed("dp", 2.0)),
        kernel(1.0),
        Join("g"),
        chain((0.25, "optimizer", True), (0.125, "host", False)),
    ]
    parts, step_time = parts_of(program(body, slowdown=1.5), ideal_compute=3.0)
    assert parts == {
        "ideal_compute": 3.0, "recomputation": 1.0, "kernel_inefficiency": 2.0, "overlap_slowdown": 0.5,
        "exposed_tp": 0.5, "exposed_cp": 0.25, "exposed_ep": 0.75, "exposed_pp": 0.0, "exposed_dp": 0.5,
        "imbalance": 0.0, "bubble": 0.0, "optimizer": 0.25, "host": 0.125,
    }  # fmt: skip
    assert tuple(parts) == BREAKDOWN_KEYS
    assert step_time == 8.875


def test_parts_are_averaged_over_gpus() -> None:
    """A class of 3 GPUs that computes for 4 s and one of 1 GPU that computes for 2 s and waits: 3.5 s and 0.5 s."""
    call = fixed("tp", 1.0, (0, 1))
    plan = program([kernel(4.0), Shared(call)], [kernel(2.0), Shared(call)], counts=[3, 1])
    parts, _ = parts_of(plan)
    assert shown(parts) == {"kernel_inefficiency": 3.5, "exposed_tp": 1.0, "imbalance": 0.5}


@pytest.mark.parametrize("blocking", [True, False])
def test_unequal_stages_show_imbalance_beyond_the_bubble(blocking: bool) -> None:
    """1F1B, two stages, two microbatches: stage 0 takes F 1, B 1 s; stage 1 takes F 3, B 3 s.

    Rank 1 works from 1 to 13 s, rank 0 ends at 14 s. Rank 0 works 4 s and waits 10; rank 1 works 12 s and waits 2:
    6 s of waiting per GPU. With equal stages of F 2, B 2 s, the same work takes (2 + 1) · 4 = 12 s and waits 4 s. So
    4 s are bubble and 2 s imbalance: the slow stage made the step 2 s longer.
    """
    table = build_table("1f1b", pp=2, num_microbatches=2)
    plan = pipeline(table, lambda action: 3.0 if action.stage else 1.0, blocking=blocking)
    parts, step_time = parts_of(plan)
    assert step_time == 14.0
    assert shown(parts) == {"kernel_inefficiency": 8.0, "bubble": 4.0, "imbalance": 2.0}


def test_work_inside_the_bubble_is_no_bubble() -> None:
    """The last rank reduces its gradients while the first still computes: that time is exposed, not waited.

    Two ranks, two microbatches, F 1, B 2 s: 9 s. Rank 1 is done at 7 s and reduces for 1 s, rank 0 at 9 s and reduces
    for 1 s: 10 s. Rank 0 waits 3 s as always; rank 1 waits 1 s before, and after its second of reduction 2 s more.
    """
    table = build_table("1f1b", pp=2, num_microbatches=2)

    def epilogue(rank: int) -> Body:
        return (Start("g", fixed("dp", 1.0, (rank,))), Join("g"))

    times = {"F": 1.0, "B": 2.0}
    plan = pipeline(table, lambda action: times[action.kind], blocking=True, epilogue=epilogue)
    parts, step_time = parts_of(plan)
    assert step_time == 10.0
    assert shown(parts) == {"kernel_inefficiency": 6.0, "bubble": 3.0, "exposed_dp": 1.0}


def test_the_equal_stage_is_the_mean_over_gpus_without_waiting() -> None:
    """A stage of 3 GPUs with F 1 s, one of 1 GPU with F 5 s, both with B 2 s; one microbatch, 12 s.

    The second also waits 2 s for a replica inside its forward: that is imbalance and lengthens no equal stage. Mean F
    is (3 · 1 + 5) / 4 = 2 s, so equal stages take 2 · (2 + 2) = 8 s, of which 4 s are bubble. Waiting is
    (3 · 9 + 3) / 4 = 7.5 s per GPU; what is beyond 4 s joins the 2 / 4 s of imbalance.
    """
    spans = (
        Span(0, "compute", "0F0", 0, 1, (("compute", 1.0),)),
        Span(0, "compute", "message", 1, 10, (("waiting", 9.0),)),
        Span(0, "compute", "0B0", 10, 12, (("compute", 2.0),)),
        Span(1, "compute", "message", 0, 1, (("waiting", 1.0),)),
        Span(1, "compute", "1F0", 1, 8, (("compute", 5.0), ("imbalance", 2.0))),
        Span(1, "compute", "1B0", 8, 10, (("compute", 2.0),)),
        Span(1, "compute", "wait", 10, 12, (("waiting", 2.0),)),
    )
    table = build_table("1f1b", pp=2, num_microbatches=1)
    parts = breakdown(StepResult(12.0, (3, 1), spans), table, 0.0)
    assert shown(parts) == {"kernel_inefficiency": 4.0, "bubble": 4.0, "imbalance": 4.0}


def test_periods_of_a_steady_state_count_as_often_as_they_run() -> None:
    """The same parts with and without skipping, of unequal stages with messages; most spans are never made."""
    table = build_table("1f1b", pp=4, num_microbatches=64)
    plan = pipeline(table, lambda action: 1.0 + action.stage / 7, blocking=True, message=0.1)
    skipped, whole = simulate_step(plan), simulate_step(plan, skip=False)
    assert skipped.skipped > 40
    assert len(list(skipped.counted_spans())) < len(whole.spans) / 2
    expected = breakdown(whole, table, 100.0)
    assert breakdown(skipped, table, 100.0) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_several_classes_of_a_pipeline_rank() -> None:
    """Two classes of rank 0, of 3 and 1 GPUs, F of 1 and 3 s; rank 1 of 4 GPUs, F of 2 s: mean F 14 / 8 s."""
    spans = tuple(
        Span(rank, "compute", f"{stage}F0", 0.0, seconds, (("compute", seconds),))
        for rank, (stage, seconds) in enumerate([(0, 1.0), (0, 3.0), (1, 2.0)])
    )
    table = ((Action(0, "F", 0),), (Action(1, "F", 0),))
    result = StepResult(3.0, (3, 1, 4), spans, pipeline_ranks=(0, 0, 1))
    assert action_seconds(result, table) == {"F": 14 / 8}


@given(
    kind=st.sampled_from(["gpipe", "1f1b", "interleaved"]),
    pp=st.integers(2, 5),
    groups=st.integers(1, 3),
    seconds=st.tuples(SECONDS, SECONDS),
)
def test_the_quick_makespan_is_that_of_the_dry_run(
    kind: str, pp: int, groups: int, seconds: tuple[float, float]
) -> None:
    """Durations by kind: both runs of a table end at the same time, to the last bit."""
    table = build_table(kind, pp=pp, num_microbatches=groups * pp, vpp=2 if kind == "interleaved" else 1)
    times = dict(zip("FB", seconds, strict=True))
    assert makespan(table, times) == dry_run(table, lambda action: times[action.kind]).makespan


# --- bubbles ---------------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(["gpipe", "1f1b", "interleaved"]),
    pp=st.integers(1, 5),
    groups=st.integers(1, 3),
    vpp=st.integers(2, 3),
    forward=SECONDS,
    backward=SECONDS,
    tied=st.booleans(),
)
def test_the_bubble_is_the_schedules(
    kind: str, pp: int, groups: int, vpp: int, forward: float, backward: float, tied: bool
) -> None:
    """With equal stages and free communication: fraction (p-1)/(vm+p-1), overhead (p-1)/(vm), no imbalance.

    Also where the first and the last rank meet at the end (tied embeddings) and then all of them (gradient norm).
    """
    assume(kind != "interleaved" or pp > 1)
    vpp = vpp if kind == "interleaved" else 1
    microbatches = groups * pp
    table = build_table(kind, pp=pp, num_microbatches=microbatches, vpp=vpp)
    tie = fixed("dp", 0.0, sorted({0, pp - 1}), across=True)
    norm = fixed("world", 0.0, range(pp), across=True)

    def epilogue(rank: int) -> Body:
        return (*([Shared(tie)] if tied and rank in tie.members else []), Shared(norm))

    times = {"F": forward, "B": backward}
    plan = pipeline(table, lambda a: times[a.kind], blocking=kind != "interleaved", epilogue=epilogue)
    parts, step_time = parts_of(plan, ideal_compute=microbatches * vpp * (forward + backward))
    assert parts["bubble"] / step_time == pytest.approx(ideal_bubble_fraction(kind, pp, microbatches, vpp), abs=1e-9)
    overhead = parts["bubble"] / (step_time - parts["bubble"])
    assert overhead == pytest.approx(ideal_bubble_overhead(kind, pp, microbatches, vpp), abs=1e-9)
    rest = {key: seconds / step_time for key, seconds in parts.items() if key not in ("bubble", "ideal_compute")}
    assert rest == pytest.approx(dict.fromkeys(rest, 0.0), abs=1e-9)


@given(m=st.integers(1, 20), seconds=SECONDS)
def test_without_a_pipeline_there_is_no_bubble(m: int, seconds: float) -> None:
    """One stage never waits for the pipeline: no bubble and no imbalance, not even by rounding."""
    table = build_table("1f1b", pp=1, num_microbatches=m)
    parts, _ = parts_of(pipeline(table, lambda action: seconds * (1 + action.microbatch / 7), blocking=True))
    assert parts["bubble"] == 0.0
    assert parts["imbalance"] == 0.0


# --- laws ------------------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(["gpipe", "1f1b", "interleaved"]),
    pp=st.integers(2, 4),
    durations=st.lists(SECONDS, min_size=16, max_size=16),
    message=st.floats(0.0, 1.0),
    blocking=st.booleans(),
    share=st.floats(0.0, 1.0),
)
def test_parts_add_up_exactly_in_any_order(
    kind: str, pp: int, durations: list[float], message: float, blocking: bool, share: float
) -> None:
    """Whoever adds the parts, forwards, shuffled or with math.fsum, gets the step time to the last bit; none < 0."""
    vpp = 2 if kind == "interleaved" else 1
    table = build_table(kind, pp=pp, num_microbatches=pp, vpp=vpp)

    def seconds(action: Action) -> float:
        return durations[action.stage + (8 if action.kind == "F" else 0)]

    def epilogue(rank: int) -> Body:
        reduce = Start("g", fixed("dp", durations[0], (rank,)))
        return reduce, chain((durations[1], "optimizer", True), (durations[2] / 9, "host", False)), Join("g")

    plan = pipeline(table, seconds, blocking=blocking, message=message, epilogue=epilogue)
    computing = sum(seconds(action) for row in table for action in row) / pp
    parts, step_time = parts_of(plan, ideal_compute=share * computing)
    values = list(parts.values())
    assert sum(values) == step_time
    assert sum(reversed(values)) == step_time
    assert sum(random.Random(0).sample(values, len(values))) == step_time
    assert math.fsum(values) == step_time
    assert all(seconds >= -1e-12 * step_time for seconds in values)
    assert parts["ideal_compute"] == pytest.approx(share * computing, rel=1e-9, abs=1e-12 * step_time)


@given(st.lists(SECONDS, min_size=1, max_size=5), st.floats(0.0, 1.0))
def test_rounding_goes_into_kernel_inefficiency(pieces: list[float], ideal: float) -> None:
    """Spans whose parts miss the step time by rounding still give parts that add up."""
    step_time = sum(pieces)
    span = Span(0, "compute", "0F0", 0.0, step_time, tuple(("exposed_tp", piece / 3) for piece in pieces * 3))
    result = StepResult(step_time, (1,), (span,))
    parts = breakdown(result, build_table("1f1b", pp=1, num_microbatches=1), ideal)
    assert sum(parts.values()) == step_time
    assert parts["exposed_tp"] == pytest.approx(step_time)
    assert parts["kernel_inefficiency"] == pytest.approx(-ideal, abs=1e-9)
