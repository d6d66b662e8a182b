"""One training step: pipelines against closed forms and the dry run, overlap by hand and by an exact oracle."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.iteration import Iteration, simulate_step
from simulator.errors import ScheduleError, TopologyError
from simulator.physics.program.steps import Call, CallPhase, Chain, Join, Message, Shared, Start, StepProgram
from simulator.physics.schedules.execution import dry_run
from simulator.physics.schedules.tables import Action, build_table
from simulator.records import StepResult, Transfer
from tests.engine.programs import chain, fixed, kernel, moving, on_link, pipeline, program

BLOCKING = pytest.mark.parametrize("blocking", [True, False])
EIGHTHS = st.integers(1, 40).map(lambda n: n / 8)


def states(result: StepResult, rank: int = 0, name: str | None = None) -> dict[str, float]:
    """Seconds of a rank by state, zeros left out."""
    found: dict[str, float] = defaultdict(float)
    for span in result.spans:
        if span.rank == rank and name in (None, span.name):
            for state, seconds in span.parts:
                found[state] += seconds
    return {state: seconds for state, seconds in found.items() if seconds}


def assert_tiled(result: StepResult) -> None:
    """Spans of every rank follow one another from 0 to the end of the step, and their parts fill them."""
    for rank in range(len(result.rank_counts)):
        spans = [span for span in result.spans if span.rank == rank]
        assert [span.start for span in spans] == [0.0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == result.step_time
        for span in spans:
            assert sum(seconds for _, seconds in span.parts) == pytest.approx(span.end - span.start, rel=1e-9)
            assert all(seconds >= 0 for _, seconds in span.parts)


# --- pipelines -------------------------------------------------------------------------------------------------------


@BLOCKING
@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
@given(pp=st.integers(1, 6), num_microbatches=st.integers(1, 9), forward=EIGHTHS, backward=EIGHTHS)
def test_gpipe_and_1f1b_take_their_closed_form(
    kind: str, blocking: bool, pp: int, num_microbatches: int, forward: float, backward: float
) -> None:
    """(m + p - 1)(tF + tB) with equal stages and free messages, to the last bit (all numbers are eighths)."""
    table = build_table(kind, pp=pp, num_microbatches=num_microbatches)
    times = {"F": forward, "B": backward}
    result = simulate_step(pipeline(table, lambda action: times[action.kind], blocking=blocking))
    assert result.step_time == (num_microbatches + pp - 1) * (forward + backward)
    for rank in range(pp):
        waiting = (pp - 1) * (forward + backward)
        expected = {"compute": num_microbatches * (forward + backward), "waiting": waiting}
        assert states(result, rank) == {state: seconds for state, seconds in expected.items() if seconds}


@given(pp=st.integers(2, 5), groups=st.integers(1, 3), vpp=st.integers(2, 4), forward=EIGHTHS, backward=EIGHTHS)
def test_interleaving_divides_the_bubble(pp: int, groups: int, vpp: int, forward: float, backward: float) -> None:
    """Waiting over work is (p - 1) / (v m): the bubble is p - 1 chunks long, of v m that a rank works through."""
    table = build_table("interleaved", pp=pp, num_microbatches=groups * pp, vpp=vpp)
    times = {"F": forward, "B": backward}
    result = simulate_step(pipeline(table, lambda action: times[action.kind], blocking=False))
    for rank in range(pp):
        found = states(result, rank)
        assert found["waiting"] / found["compute"] == pytest.approx((pp - 1) / (vpp * groups * pp), rel=1e-12)


@given(
    kind=st.sampled_from(["gpipe", "1f1b", "interleaved"]),
    pp=st.integers(2, 4),
    groups=st.integers(1, 2),
    durations=st.lists(EIGHTHS, min_size=16, max_size=16),
)
def test_with_free_messages_the_engine_is_the_dry_run(kind: str, pp: int, groups: int, durations: list[float]) -> None:
    """With unequal stages, sends that do not block and free messages, every action ends as in the dry run."""
    vpp = 2 if kind == "interleaved" else 1
    table = build_table(kind, pp=pp, num_microbatches=groups * pp, vpp=vpp)

    def seconds(action: Action) -> float:
        return durations[action.stage + (8 if action.kind == "F" else 0)]

    result, dry = simulate_step(pipeline(table, seconds, blocking=False)), dry_run(table, seconds)
    assert result.step_time == dry.makespan
    ends = {span.name: span.end for span in result.spans if span.name not in ("message", "wait")}
    assert ends == {str(action): end for rank in range(pp) for action, _, end in dry.timeline(rank)}


def test_a_blocking_send_holds_its_rank_until_the_receiver_is_ready() -> None:
    """GPipe, two ranks, three microbatches; forwards take 1 s on rank 0 and 3 s on rank 1.

    Rank 1 works on F0 from 1 to 4 s and only then receives F1, which rank 0 has had since 2 s. If sends block, rank 0
    starts F2 at 4 s, else at 2 s. Rank 1 is the bottleneck either way.
    """
    table = build_table("gpipe", pp=2, num_microbatches=3)

    def seconds(action: Action) -> float:
        return 3.0 if action.stage == 1 and action.kind == "F" else 1.0

    for blocking, start in ((True, 4.0), (False, 2.0)):
        result = simulate_step(pipeline(table, seconds, blocking=blocking))
        (forward,) = (span for span in result.spans if span.name == "0F2")
        assert forward.start == start
        assert result.step_time == 1 + 3 * 3 + 3 + 1


def test_message_time_is_exposed_and_the_rest_is_waiting() -> None:
    """Two ranks, one microbatch, F 1 s, B 2 s, messages of 0.5 s: 1 + 0.5 + 1 + 2 + 0.5 + 2 = 7 s.

    Rank 1 waits 1 s for the forward and 0.5 s for its transfer, and at the end 2.5 s for the last backward and its
    message. Rank 0 stands still from 1 to 5 s: two transfers, else waiting. If sends do not block that is the same,
    because it waits for the answer.
    """
    table = build_table("1f1b", pp=2, num_microbatches=1)
    for blocking in (True, False):
        plan = pipeline(table, lambda action: 1.0 if action.kind == "F" else 2.0, blocking=blocking, message=0.5)
        result = simulate_step(plan)
        assert result.step_time == 7.0
        backward_send = 0.5 if blocking else 0.0  # a blocking rank 1 is busy sending B until 5 s
        assert states(result, 1) == {"compute": 3.0, "exposed_pp": 0.5 + backward_send, "waiting": 3.5 - backward_send}
        exposed = 1.0 if blocking else 0.5
        assert states(result, 0) == {"compute": 3.0, "exposed_pp": exposed, "waiting": 4.0 - exposed}


def test_send_and_receive_at_once_are_exposed_once() -> None:
    """1F1B, two ranks, two microbatches, F and B of 1 s, messages of 0.5 s, sends block: 7.5 s.

    Rank 0: F0 0-1, its message until 1.5, F1 until 2.5. Rank 1: F0 1.5-2.5, B0 until 3.5. Then F1 and B0 cross, until
    4. Rank 0: B0 4-5, waits until 6; rank 1: F1 4-5, B1 5-6; its message until 6.5; rank 0: B1 until 7.5. So rank 0
    waits 1 + 1 s and shows 0.5 s of transfer three times, also for the exchange.
    """
    table = build_table("1f1b", pp=2, num_microbatches=2)
    result = simulate_step(pipeline(table, lambda action: 1.0, blocking=True, message=0.5))
    assert result.step_time == 7.5
    assert states(result, 0) == {"compute": 4.0, "waiting": 2.0, "exposed_pp": 1.5}


def test_a_send_that_does_not_block_runs_beside_compute() -> None:
    """GPipe, F and B of 2 s, messages of 1 s: only the fill and the turn-around show transfers, if sends do not block.

    Rank 0 computes F0, F1 back to back (0-4); the first transfer runs 2-3, the second waits until rank 1 has started
    on F0 (3) but F1 is ready at 4: 4-5. Rank 1: F0 3-5, F1 5-7, B0 7-9, B1 9-11. Rank 0 has B0 at 10, B1 at 12 (sent
    at 11, done at 12): B0 10-12, B1 12-14.
    """
    table = build_table("gpipe", pp=2, num_microbatches=2)
    result = simulate_step(pipeline(table, lambda action: 2.0, blocking=False, message=1.0))
    spans = {(span.rank, span.name): (span.start, span.end) for span in result.spans if span.name[1] in "FB"}
    assert spans[0, "0F1"] == (2.0, 4.0)
    assert spans[1, "1F0"] == (3.0, 5.0)
    assert spans[1, "1F1"] == (5.0, 7.0)
    assert spans[0, "0B0"] == (10.0, 12.0)
    assert result.step_time == 14.0


def test_messages_of_a_channel_go_one_after_another() -> None:
    """Two messages between the same ranks, posted at once, take their turns in the order of their posting."""
    call = fixed("pp", 2.0, (0, 1))
    step = Iteration(program([]), keep_transfers=False, fuse=True, skip=False)
    tickets = [step.post(Message(call, "F", 1, microbatch)) for microbatch in (0, 1)]
    for microbatch in (0, 1):
        assert step.post(Message(call, "F", 1, microbatch)) is tickets[microbatch], "both sides share a ticket"
    distant = fixed("pp", 1.0, (1, 2))
    other = step.post(Message(distant, "F", 2, 0))
    step.post(Message(distant, "F", 2, 0))
    while step.ready or step.env.peek() < float("inf"):
        while step.ready:
            step.ready.popleft()()
        if step.env.peek() < float("inf"):
            step.env.step()
    assert [(ticket.started, ticket.ended) for ticket in tickets] == [(0.0, 2.0), (2.0, 4.0)]
    assert (other.started, other.ended) == (0.0, 1.0)


# --- collectives that compute waits for ------------------------------------------------------------------------------


def test_a_collective_starts_with_its_last_member() -> None:
    """Replicas that arrive at 1 and 3 s share 2 s of transfer: 2 s of imbalance for the first, none for the second."""
    call = fixed("tp", 2.0, (0, 1))
    result = simulate_step(program([kernel(1.0), Shared(call)], [kernel(3.0), Shared(call)]))
    assert result.step_time == 5.0
    assert states(result, 0) == {"compute": 1.0, "imbalance": 2.0, "exposed_tp": 2.0}
    assert states(result, 1) == {"compute": 3.0, "exposed_tp": 2.0}


@pytest.mark.parametrize(("axis", "state"), [("dp", "exposed_dp"), ("world", "optimizer")])
def test_waiting_for_another_pipeline_rank_is_waiting_for_the_pipeline(axis: str, state: str) -> None:
    """The tie of embeddings and the gradient norm meet other stages: there the early rank sits in the bubble."""
    call = fixed(axis, 2.0, (0, 1), across=True)
    result = simulate_step(program([kernel(1.0), Shared(call)], [kernel(3.0), Shared(call)], same_stage=False))
    assert states(result, 0) == {"compute": 1.0, "waiting": 2.0, state: 2.0}


def test_members_meet_at_the_same_count() -> None:
    """The same call in every microbatch: the second round of one replica waits for the second round of the other."""
    call = fixed("ep", 1.0, (0, 1))
    early = [kernel(1.0), Shared(call), kernel(1.0), Shared(call)]
    late = [kernel(2.0), Shared(call), kernel(5.0), Shared(call)]
    result = simulate_step(program(early, late))
    assert result.step_time == 9.0
    assert states(result, 0) == {"compute": 2.0, "imbalance": 1.0 + 4.0, "exposed_ep": 2.0}


def test_phases_follow_one_another_after_their_latencies() -> None:
    """Latency 1 s, 20 B at 10 B/s; latency 0.5 s, 30 B and 10 B at once.

    The first transfer runs from 1 to 3 s. The other two start at 3.5 s and have 5 B/s each until the small one ends at
    5.5 s; the large one has 20 B left, which take 2 s more. Each is recorded with its own start and end.
    """
    call = moving("ep", CallPhase(1.0, ((0, 20.0),)), CallPhase(0.5, ((0, 30.0), (1, 10.0))))
    plan = program([Shared(call)], coflows=[on_link(10.0)] * 2, capacity=[10.0])
    result = simulate_step(plan, keep_transfers=True)
    assert result.step_time == 7.5
    assert states(result) == {"exposed_ep": 7.5}
    assert result.transfers == (
        Transfer(0, "ep.test", 1.0, 3.0, 20.0),
        Transfer(1, "ep.test", 3.5, 5.5, 10.0),
        Transfer(0, "ep.test", 3.5, 7.5, 30.0),
    )
    assert result.solves == 1


def test_collectives_of_different_ranks_share_links() -> None:
    """Two stages on a link of 10 B/s: 60 B from 0 s, 20 B from 2 s. Half each from 2 to 6 s; the first ends at 8."""
    calls = [moving("tp", CallPhase(0.0, ((rank, size),)), members=(rank,)) for rank, size in ((0, 60.0), (1, 20.0))]
    bodies = [[Shared(calls[0])], [kernel(2.0), Shared(calls[1])]]
    plan = program(*bodies, same_stage=False, coflows=[on_link(10.0)] * 2, capacity=[10.0])
    result = simulate_step(plan)
    assert states(result, 0) == {"exposed_tp": 8.0}
    assert states(result, 1) == {"compute": 2.0, "exposed_tp": 4.0, "waiting": 2.0}


# --- collectives beside compute --------------------------------------------------------------------------------------


def test_a_kernel_beside_a_collective_slows_down_until_it_ends() -> None:
    """10 s of kernel at slowdown 1.1 beside 4.4 s of collective: 4 s of work by then, 6 s at full speed: 10.4 s."""
    result = simulate_step(program([Start("g", fixed("dp", 4.4)), kernel(10.0)], slowdown=1.1))
    assert result.step_time == pytest.approx(10.4)
    assert states(result) == pytest.approx({"compute": 10.0, "overlap_slowdown": 0.4})


def test_a_kernel_slows_down_when_the_collective_really_starts() -> None:
    """Replica 1 joins the collective 2 s late, so replica 0's kernel loses nothing before.

    Replica 0: 2 s of its 10 s at full speed, then 4.4 s beside the collective do 4 s of work, then 4 s: 10.4 s.
    Replica 1: 2 s, then a kernel of 8 s: 4 s of work in 4.4 s, then 4 s: 10.4 s.
    """
    call = fixed("dp", 4.4, (0, 1))
    bodies = [[Start("g", call), kernel(10.0)], [kernel(2.0), Start("g", call), kernel(8.0)]]
    result = simulate_step(program(*bodies, slowdown=1.1))
    assert result.step_time == pytest.approx(10.4)
    for rank in (0, 1):
        assert states(result, rank) == pytest.approx({"compute": 10.0, "overlap_slowdown": 0.4})
    assert_tiled(result)


def test_only_kernels_slow_down() -> None:
    """2 s kernel, 3 s of a private collective, 2 s kernel, beside 6 s of collective at slowdown 2.

    The first kernel takes 4 s; of the private collective 2 s pass until 6 s and 1 s after; the second kernel runs at
    full speed: 4 + 3 + 2 = 9 s.
    """
    mixed = chain((2.0, "compute", True), (3.0, "exposed_tp", False), (2.0, "recomputation", True))
    result = simulate_step(program([Start("g", fixed("dp", 6.0)), mixed], slowdown=2.0))
    assert result.step_time == 9.0
    assert states(result) == {"compute": 2.0, "exposed_tp": 3.0, "recomputation": 2.0, "overlap_slowdown": 2.0}


def test_a_stream_runs_in_program_order() -> None:
    """Two collectives of one axis follow one another, those of another axis run beside: 3 + 4 s for dp, 5 s for ep."""
    starts = [Start("a", fixed("dp", 3.0)), Start("b", fixed("dp", 4.0)), Start("c", fixed("ep", 5.0))]
    result = simulate_step(program([*starts, kernel(2.0), Join("c"), Join("b"), Join("a")]))
    assert result.step_time == 7.0
    assert states(result) == {"compute": 2.0, "exposed_ep": 3.0, "exposed_dp": 2.0}


def test_a_join_waits_for_collectives_queued_before_it() -> None:
    """Joined while it is still queued: all of the stream's transfers are exposed, as is its own."""
    starts = [Start("a", fixed("dp", 3.0)), Start("b", fixed("dp", 4.0))]
    result = simulate_step(program([*starts, Join("b"), kernel(1.0)]))
    assert states(result) == {"exposed_dp": 7.0, "compute": 1.0}


def test_a_join_leaves_the_next_collective_to_the_next_join() -> None:
    """The second collective begins at the instant at which the first is joined, and is exposed in its own join."""
    starts = [Start("a", fixed("dp", 3.0)), Start("b", fixed("dp", 4.0))]
    result = simulate_step(program([*starts, kernel(1.0), Join("a"), Join("b")]))
    assert states(result) == {"compute": 1.0, "exposed_dp": 2.0 + 4.0}


def test_a_join_tells_late_members_from_transfers() -> None:
    """Replica 1 starts its collectives 5 s late: 5 s of imbalance for replica 0, then 3 + 4 s of transfers for both."""
    calls = [fixed("dp", 3.0, (0, 1)), fixed("dp", 4.0, (0, 1))]
    starts = [Start("a", calls[0]), Start("b", calls[1])]
    result = simulate_step(program([*starts, Join("b")], [kernel(5.0), *starts, Join("b")]))
    assert states(result, 0) == {"imbalance": 5.0, "exposed_dp": 7.0}
    assert states(result, 1) == {"compute": 5.0, "exposed_dp": 7.0}


def test_tags_are_used_again_in_every_microbatch() -> None:
    """A join is for the latest start of its tag; earlier ones of the same tags that still run are exposed too."""
    a, b = fixed("dp", 1.0), fixed("dp", 2.0)
    rounds = [Start("a", a), Start("b", b), Start("a", a), Start("b", b)]
    result = simulate_step(program([*rounds, Join("a"), kernel(1.0), Join("b")]))
    assert result.step_time == 6.0
    assert states(result, name="start") == {"exposed_dp": 1 + 2 + 1 + 1, "compute": 1.0}


def test_a_join_of_what_is_done_takes_no_time() -> None:
    """No span is left by a join, however often, of a collective that has ended."""
    result = simulate_step(program([Start("g", fixed("dp", 1.0)), kernel(2.0), Join("g"), Join("g"), kernel(1.0)]))
    assert [(span.start, span.end) for span in result.spans] == [(0.0, 2.0), (2.0, 3.0)]


def test_a_call_that_is_started_and_waited_for_keeps_its_rounds() -> None:
    """Rounds are counted in program order: a queued start does not lose its round to a later blocking call."""
    long, both = fixed("dp", 5.0), fixed("dp", 1.0, (0, 1))
    queued = [Start("long", long), Start("x", both), kernel(1.0), Shared(both)]
    plain = [Start("x", both), kernel(1.0), Shared(both)]
    result = simulate_step(program(queued, plain))
    assert result.step_time == 2.0, "the blocking round starts at 1 s on both, while x waits behind 5 s of replica 0's"
    assert states(result, 0) == states(result, 1) == {"compute": 1.0, "exposed_dp": 1.0}


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("kernel"), EIGHTHS, st.booleans()),
            st.tuples(st.just("start"), EIGHTHS, st.sampled_from("ab")),
            st.tuples(st.just("join"), st.just(0.0), st.sampled_from("ab")),
        ),
        min_size=1,
        max_size=12,
    ),
    slowdown=st.sampled_from([1.0, 1.25, 2.0, 3.0]),
)
def test_overlap_is_that_of_an_exact_walk(steps: list[tuple[str, float, object]], slowdown: float) -> None:
    """Kernels, starts and joins of one rank end when exact arithmetic over the stream's busy intervals says so."""
    started: set[object] = set()
    body: list[object] = []
    for kind, seconds, what in steps:
        if kind == "kernel":
            body.append(chain((seconds, "compute" if what else "exposed_tp", bool(what))))
        elif kind == "start":
            body.append(Start(str(what), fixed("dp", seconds)))
            started.add(what)
        elif what in started:
            body.append(Join(str(what)))
    result = simulate_step(program(body, slowdown=slowdown))
    now, exposed = exact_walk(body, Fraction(slowdown))
    assert result.step_time == pytest.approx(float(now), rel=1e-12)
    assert states(result).get("exposed_dp", 0.0) == pytest.approx(float(exposed), rel=1e-9, abs=1e-12)
    if result.spans:
        assert_tiled(result)


def exact_walk(body: Sequence[object], slowdown: Fraction) -> tuple[Fraction, Fraction]:
    """End of a body of one rank, and its time in joins; a stream's busy time is one list of intervals."""
    now = exposed = free = Fraction(0)
    busy: list[tuple[Fraction, Fraction]] = []
    ends: dict[str, Fraction] = {}
    for step in body:
        if isinstance(step, Start):
            begin = max(now, free)
            free = begin + Fraction(step.call.seconds)
            busy.append((begin, free))
            ends[step.tag] = free
        elif isinstance(step, Join):
            exposed += max(Fraction(0), ends[step.tag] - now)
            now = max(now, ends[step.tag])
        else:
            assert isinstance(step, Chain)
            work = Fraction(step.seconds)
            if not step.segments[0].kernel:
                now, work = now + work, Fraction(0)
            for begin, end in busy:
                begin = max(begin, now)
                if begin >= end:
                    continue
                clear = min(work, begin - now)
                now, work = now + clear, work - clear
                if not work:
                    break
                beside = min(work * slowdown, end - now)
                now, work = now + beside, work - beside / slowdown
            now += work
    return now, exposed


# --- laws ------------------------------------------------------------------------------------------------------------


@st.composite
def rendezvous_programs(draw: st.DrawFn) -> StepProgram:
    """Up to three ranks that run the same collectives in the same order, each with kernels of its own in between."""
    ranks = draw(st.integers(1, 3))
    capacity, bodies = [8.0], [[] for _ in range(ranks)]  # type: ignore[var-annotated]
    tags: set[str] = set()
    for _ in range(draw(st.integers(1, 6))):
        everyone = draw(st.booleans())
        call = draw_call(draw, tuple(range(ranks)))
        kind, tag = draw(st.sampled_from(["shared", "start", "join"])), draw(st.sampled_from("ab"))
        for rank in range(ranks):
            if draw(st.booleans()):
                bodies[rank].append(kernel(draw(EIGHTHS)))
            own = call if everyone else draw_call(draw, (rank,))
            if kind == "shared":
                bodies[rank].append(Shared(own))
            elif kind == "start":
                bodies[rank].append(Start(tag, own))
            elif tag in tags:
                bodies[rank].append(Join(tag))
        if kind == "start":
            tags.add(tag)
    bodies[0].append(kernel(1.0))
    return program(
        *bodies,
        same_stage=draw(st.booleans()),
        coflows=[on_link(8.0)] * 3,
        capacity=capacity,
        slowdown=draw(st.sampled_from([1.0, 1.1])),
        counts=[2] * ranks,
    )


def draw_call(draw: st.DrawFn, members: tuple[int, ...]) -> Call:
    """A collective of a fixed time, or of one or two transfers."""
    axis = draw(st.sampled_from(["tp", "dp", "ep", "world"]))
    if draw(st.booleans()):
        return fixed(axis, draw(EIGHTHS), members)
    sizes = draw(st.lists(EIGHTHS, min_size=1, max_size=2))
    return moving(axis, CallPhase(draw(EIGHTHS), tuple(enumerate(sizes))), members=members)


@given(rendezvous_programs())
def test_spans_tile_the_step(plan: StepProgram) -> None:
    """Whatever ranks do, their spans fill the step without gaps or overlaps, and parts fill the spans."""
    assert_tiled(simulate_step(plan))


@given(rendezvous_programs())
def test_the_same_program_gives_the_same_records(plan: StepProgram) -> None:
    """Running a program twice gives equal records, counts of work included."""
    assert simulate_step(plan) == simulate_step(plan)


@given(plan=rendezvous_programs())
def test_transfers_move_all_bytes_and_no_link_is_overfull(plan: StepProgram) -> None:
    """A transfer is recorded at most once, with its size; none beats the link, and together they fit through it."""
    result = simulate_step(plan, keep_transfers=True)
    started = Counter(
        transfer
        for rank, body in enumerate(plan.prologue)
        for step in body
        if isinstance(step, Shared | Start) and step.call.members[0] == rank
        for phase in step.call.phases
        for transfer in phase.transfers
    )
    ended = Counter((transfer.coflow, transfer.size) for transfer in result.transfers)
    assert ended <= started  # nothing waits for a collective beside compute that nobody joins
    assert sum(transfer.size for transfer in result.transfers) <= 8.0 * result.step_time * (1 + 1e-9)
    for transfer in result.transfers:
        assert transfer.end - transfer.start >= transfer.size / 8.0 * (1 - 1e-9)


def test_the_order_of_ranks_does_not_matter() -> None:
    """Listing replicas in another order swaps their spans and changes nothing else."""
    call = moving("dp", CallPhase(0.5, ((0, 8.0),)), members=(0, 1))
    bodies = [[Start("g", call), kernel(3.0), Join("g")], [kernel(1.0), Start("g", call), kernel(1.5), Join("g")]]
    results = []
    for order in ((0, 1), (1, 0)):
        plan = program(*(bodies[rank] for rank in order), coflows=[on_link(8.0)], capacity=[8.0], slowdown=1.1)
        results.append(simulate_step(plan))
    first, second = results
    assert first.step_time == second.step_time
    assert states(first, 0) == states(second, 1)
    assert states(first, 1) == states(second, 0)


def test_what_nobody_disturbs_is_one_event() -> None:
    """A chain of kernels and private collectives, a collective and a message are one event each; in detail, more."""
    call = moving("tp", CallPhase(0.5, ((0, 8.0), (0, 8.0))), CallPhase(0.5, ()))
    plan = program(
        [chain((1.0, "compute", True), (0.5, "recomputation", True), call), Shared(call)],
        coflows=[on_link(8.0)],
        capacity=[8.0],
    )
    lazy, detailed = simulate_step(plan), simulate_step(plan, fuse=False)
    assert lazy.events == 2
    assert detailed.events > 8
    assert lazy.step_time == detailed.step_time == 1.5 + 2 * (0.5 + 2.0 + 0.5)
    table = build_table("gpipe", pp=2, num_microbatches=2)
    assert simulate_step(pipeline(table, lambda action: 1.0, blocking=True, message=0.5)).events == 8 + 4


# --- what cannot run -------------------------------------------------------------------------------------------------


def test_a_collective_that_a_member_never_reaches_is_a_schedule_error() -> None:
    """A stuck step raises and says which ranks wait where; it does not hang."""
    call = fixed("tp", 1.0, (0, 1))
    with pytest.raises(ScheduleError, match=r"stuck.*rank 0 waits in start"):
        simulate_step(program([Shared(call)], [kernel(1.0)]))


def test_a_message_that_nobody_sends_is_a_schedule_error() -> None:
    """Even ranks run the second microbatch first, odd ranks the first: the places are named, at most a few of them."""
    table = build_table("gpipe", pp=12, num_microbatches=2)
    rows = [row if rank % 2 else (row[1], row[0], *row[2:]) for rank, row in enumerate(table)]
    with pytest.raises(ScheduleError, match=r"rank 0 waits in the messages before 0F0, rank 1 .* and 4 more"):
        simulate_step(pipeline(tuple(rows), lambda action: 1.0, blocking=True))


def test_joining_what_was_not_started_is_a_schedule_error() -> None:
    """The rank and the tag are named."""
    with pytest.raises(ScheduleError, match="rank 0 in start joins 'grad:dp:0'"):
        simulate_step(program([Join("grad:dp:0")]))


def test_a_dead_link_is_a_topology_error() -> None:
    """The error of the network comes through the engine as it is."""
    call = moving("dp", CallPhase(0.0, ((0, 1.0),)))
    for body in ([Shared(call)], [Start("g", call), Join("g")]):
        with pytest.raises(TopologyError, match="without capacity"):
            simulate_step(program(body, coflows=[on_link(0.0)], capacity=[0.0]))


def test_an_empty_rank_waits_for_the_others() -> None:
    """A rank without work has one span: waiting from beginning to end."""
    result = simulate_step(program([], [kernel(2.0)]))
    assert result.step_time == 2.0
    assert states(result, 0) == {"waiting": 2.0}
    assert_tiled(result)
