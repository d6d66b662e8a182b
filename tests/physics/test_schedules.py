"""Pipeline schedules: published orders and bubbles, laws of every table, and what an illegal table is told."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScheduleError
from simulator.physics.schedules.actions import Action, Homes, Table, parse_action
from simulator.physics.schedules.closed_forms import ideal_bubble_fraction, ideal_bubble_overhead, in_flight_bound
from simulator.physics.schedules.execution import check_table, dry_run, predecessors
from simulator.physics.schedules.grids import format_grid
from simulator.physics.schedules.tables import AUTOMATIC, SCHEDULES, build_table, home
from simulator.physics.schedules.zero_bubble import KEPT
from simulator.scenario.pipeline import chunks_per_rank, microbatch_rule, num_stages


def table_of(*rows: str) -> Table:
    """Read a table written as PyTorch prints it."""
    return tuple(tuple(parse_action(text) for text in row.split()) for row in rows)


def words(table: Table) -> list[str]:
    """Print a table, a string per rank."""
    return [" ".join(map(str, row)) for row in table]


def times(**seconds: float) -> Callable[[Action], float]:
    """Give each kind of action a duration of its own."""
    return lambda action: seconds[action.kind]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, object]:
    """Keyword arguments of `build_table` that are possible."""
    kind = draw(st.sampled_from(sorted(SCHEDULES)))
    pp = draw(st.sampled_from([2, 4, 6, 8])) if kind == "dualpipe" else draw(st.integers(1, 8))
    vpp = draw(st.integers(1, 4)) if kind == "interleaved" and pp > 1 else 1
    step, least = microbatch_rule(kind, pp)
    microbatches = step * draw(st.integers(-(-least // step), -(-least // step) + 20 // step))
    return {"kind": kind, "pp": pp, "num_microbatches": microbatches, "vpp": vpp}


# Actions --------------------------------------------------------------------------------------------------


@given(st.builds(Action, st.integers(0, 999), st.sampled_from("FBIW"), st.integers(0, 9999)))
def test_actions_are_read_as_they_are_printed(action: Action) -> None:
    """Text and action are one to one, in PyTorch's form."""
    assert parse_action(str(action)) == action


def test_action_prints_stage_kind_microbatch() -> None:
    """Stage 2, forward, microbatch 0 is 2F0."""
    assert str(Action(stage=2, kind="F", microbatch=0)) == "2F0"


@pytest.mark.parametrize("text", ["", "F0", "2X0", "2F", "-1F0", "2F0 3F0", "2f0"])
def test_other_text_is_no_action(text: str) -> None:
    """The message shows the right form."""
    with pytest.raises(ScheduleError, match="'2F0' is stage 2, forward"):
        parse_action(text)


def test_predecessors() -> None:
    """Forwards come from the stage before, gradients from the stage behind, W from its own I."""
    texts = ["0F5", "1F5", "2B5", "1B5", "2I5", "0I5", "1W5"]
    needs = {text: [str(a) for a in predecessors(parse_action(text), 3)] for text in texts}
    assert needs == {
        "0F5": [],
        "1F5": ["0F5"],
        "2B5": ["2F5"],
        "1B5": ["2B5", "1F5"],
        "2I5": ["2F5"],
        "0I5": ["1I5", "0F5"],
        "1W5": ["1I5"],
    }


# Orders ---------------------------------------------------------------------------------------------------


def test_gpipe_runs_all_forwards_then_all_backwards() -> None:
    """Two ranks, three microbatches."""
    assert words(build_table("gpipe", pp=2, num_microbatches=3)) == [
        "0F0 0F1 0F2 0B0 0B1 0B2",
        "1F0 1F1 1F2 1B0 1B1 1B2",
    ]


def test_1f1b_order_of_four_ranks() -> None:
    """Figure 4 (top) of arXiv 2104.04473: warmups of 3, 2, 1 and 0 forwards."""
    assert words(build_table("1f1b", pp=4, num_microbatches=5)) == [
        "0F0 0F1 0F2 0F3 0B0 0F4 0B1 0B2 0B3 0B4",
        "1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1B3 1B4",
        "2F0 2F1 2B0 2F2 2B1 2F3 2B2 2F4 2B3 2B4",
        "3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4",
    ]


def test_interleaved_order_of_four_ranks() -> None:
    """Figure 4 (bottom) of arXiv 2104.04473: 4 ranks, 8 microbatches, 2 chunks; the first and the last rank.

    The figure counts microbatches from 1 and shades the second chunk (stages 4 to 7). Rank 0 warms up with
    2 * 3 + 4 = 10 forwards, rank 3 with 0 + 4.
    """
    table = build_table("interleaved", pp=4, num_microbatches=8, vpp=2)
    assert words(table)[0] == (
        "0F0 0F1 0F2 0F3 4F0 4F1 4F2 4F3 0F4 0F5 "
        "0F6 4B0 0F7 4B1 4F4 4B2 4F5 4B3 4F6 0B0 4F7 0B1 "
        "0B2 0B3 4B4 4B5 4B6 4B7 0B4 0B5 0B6 0B7"
    )
    assert words(table)[3] == (
        "3F0 3F1 3F2 3F3 "
        "7F0 7B0 7F1 7B1 7F2 7B2 7F3 7B3 3F4 3B0 3F5 3B1 3F6 3B2 3F7 3B3 7F4 7B4 7F5 7B5 7F6 7B6 7F7 7B7 "
        "3B4 3B5 3B6 3B7"
    )


@pytest.mark.parametrize(("pp", "vpp", "num_microbatches"), [(2, 2, 2), (2, 3, 6), (4, 2, 8), (4, 4, 4), (8, 3, 24)])
def test_interleaved_order_is_megatrons(pp: int, vpp: int, num_microbatches: int) -> None:
    """An oracle in Megatron's own arithmetic, on the running number k of a microbatch of any chunk.

    k mod (pp vpp), divided by pp, is the chunk (counted from the last for backwards); the microbatch is
    (k div (pp vpp)) pp + k mod pp; warmup is 2 (pp - rank - 1) + (vpp - 1) pp, at most everything.
    """
    table = build_table("interleaved", pp=pp, num_microbatches=num_microbatches, vpp=vpp)
    total = num_microbatches * vpp

    def action(rank: int, kind: str, k: int) -> Action:
        chunk = k % (pp * vpp) // pp
        chunk = chunk if kind == "F" else vpp - 1 - chunk
        return Action(chunk * pp + rank, kind, k // (pp * vpp) * pp + k % pp)

    for rank in range(pp):
        warmup = min(2 * (pp - rank - 1) + (vpp - 1) * pp, total)
        row = [action(rank, "F", k) for k in range(warmup)]
        for k in range(total - warmup):
            row += [action(rank, "F", k + warmup), action(rank, "B", k)]
        row += [action(rank, "B", k) for k in range(total - warmup, total)]
        assert list(table[rank]) == row


def test_interleaved_with_one_chunk_is_1f1b() -> None:
    """Megatron falls back to the plain schedule when there is one chunk."""
    one_chunk = build_table("interleaved", pp=4, num_microbatches=8, vpp=1)
    assert one_chunk == build_table("1f1b", pp=4, num_microbatches=8)


@pytest.mark.parametrize(
    ("kind", "pp", "num_microbatches", "vpp", "message"),
    [
        ("zigzag", 4, 8, 1, "no schedule 'zigzag'; the schedules are gpipe, 1f1b, interleaved, zb-h1"),
        ("zb1p", 4, 8, 1, "no schedule 'zb1p'.*did you mean 'zb-1p'"),
        ("zbv", 4, 8, 3, "vpp is 3, but a rank always has 2 chunks; leave it out"),
        ("zb-h1", 4, 8, 2, "vpp is 2, but here a rank has one chunk"),
        ("dualpipe", 3, 8, 1, "pp is 3; it must be even, for two directions: use 2 or 4"),
        ("dualpipe", 4, 9, 1, "needs an even number of microbatches, 2 × pp = 8 of them or more, not 9; use 8 or 10"),
        ("dualpipe", 4, 6, 1, "2 × pp = 8 of them or more, not 6; use 8 microbatches"),
        ("dualpipev", 4, 7, 1, "needs 2 × pp = 8 microbatches or more, not 7"),
        ("1f1b", 0, 8, 1, "pp is 0; it must be 1 or more"),
        ("gpipe", 4, 0, 1, "num_microbatches is 0"),
        ("interleaved", 4, 8, -1, "vpp is -1"),
        ("1f1b", 4, 8, 2, "vpp is 2, but here a rank has one chunk; use vpp 1 or the schedule interleaved"),
        ("gpipe", 4, 8, 2, "vpp is 2, but here a rank has one chunk"),
        ("interleaved", 1, 8, 2, "with pp 1 nothing interleaves"),
        ("interleaved", 4, 10, 2, "10 microbatches do not split into groups of pp = 4; use 8 or 12"),
        ("interleaved", 4, 3, 2, "3 microbatches do not split into groups of pp = 4; use 4 microbatches"),
    ],
)
def test_impossible_asks_are_refused(kind: str, pp: int, num_microbatches: int, vpp: int, message: str) -> None:
    """Tables, bounds and closed forms refuse the same sizes in the same words."""
    for ask in (
        lambda: build_table(kind, pp=pp, num_microbatches=num_microbatches, vpp=vpp),
        lambda: in_flight_bound(kind, pp=pp, num_microbatches=num_microbatches, vpp=vpp, rank=0),
        lambda: ideal_bubble_overhead(kind, pp, num_microbatches, vpp),
        lambda: ideal_bubble_fraction(kind, pp, num_microbatches, vpp),
    ):
        with pytest.raises(ScheduleError, match=message):
            ask()


@pytest.mark.parametrize("kind", ["gpipe", "1f1b", "interleaved"])
def test_builders_check_for_themselves(kind: str) -> None:
    """A builder called by its own name is as strict as `build_table`."""
    with pytest.raises(ScheduleError, match="pp is 0"):
        SCHEDULES[kind](0, 4, 1)


# Laws of every table --------------------------------------------------------------------------------------


@given(shapes())
def test_every_table_is_legal(shape: dict[str, object]) -> None:
    """Everything once, on its rank, without deadlock, within the bound; enough microbatches reach an exact one."""
    sizes: dict[str, int] = {name: value for name, value in shape.items() if isinstance(value, int)}
    kind, pp, microbatches = str(shape["kind"]), sizes["pp"], sizes["num_microbatches"]
    table = build_table(kind, pp=pp, num_microbatches=microbatches, vpp=sizes["vpp"])
    bounds = [in_flight_bound(kind, **sizes, rank=rank) for rank in range(pp)]
    stages, place = num_stages(kind, pp, sizes["vpp"]), home(kind, pp, microbatches)
    kept = KEPT if kind in AUTOMATIC else 1.0
    check_table(table, pp=pp, vpp=stages // pp, num_microbatches=microbatches, bounds=bounds, kept=kept, home=place)
    if kind in ("gpipe", "1f1b", "interleaved") or (kind not in AUTOMATIC and microbatches >= 2 * pp):
        assert list(dry_run(table, times(F=1.0, B=2.0, I=1.0, W=1.0)).peak_in_flight) == bounds


@given(shapes())
def test_homes_are_what_the_table_says(shape: dict[str, object]) -> None:
    """Ranks read off a table are those of the schedule; every rank has its chunks, DualPipe's stages have two ranks."""
    table = build_table(**shape)  # type: ignore[arg-type]
    kind, pp, vpp, microbatches = (shape[name] for name in ("kind", "pp", "vpp", "num_microbatches"))
    homes, place = Homes(table), home(kind, pp, microbatches)  # type: ignore[arg-type]
    assert all(homes.rank(a.stage, a.microbatch) == place(a.stage, a.microbatch) for row in table for a in row)
    assert homes.num_stages == num_stages(kind, pp, vpp)  # type: ignore[arg-type]
    assert {len(stages) for stages in homes.stages_of_rank} == {chunks_per_rank(kind, vpp)}  # type: ignore[arg-type]
    assert homes.copied == (kind == "dualpipe")


@given(shapes(), st.integers(0, 2**32))
def test_actions_start_as_soon_as_they_can(shape: dict[str, object], seed: int) -> None:
    """With any durations: a start is the latest end of the action before it on its rank and of its predecessors."""
    table = build_table(**shape)  # type: ignore[arg-type]
    rng = random.Random(seed)
    seconds = {action: rng.choice([0.0, 0.1, 1.0, rng.random()]) for row in table for action in row}
    run = dry_run(table, seconds.__getitem__)
    ends = {action: end for rank in range(len(table)) for action, _, end in run.timeline(rank)}
    last = 1 + max(action.stage for action in ends)

    def done(need: Action) -> float:  # the gradient of a B and of an I are one thing
        return ends[need] if need in ends else ends[need._replace(kind={"B": "I", "I": "B"}[need.kind])]

    for rank in range(len(table)):
        free = 0.0
        for action, start, end in run.timeline(rank):
            assert start == max([free, *(done(need) for need in predecessors(action, last))])
            assert end == start + seconds[action]
            free = end
        busy = sum(seconds[action] for action in table[rank])
        assert run.busy[rank] == pytest.approx(busy, rel=1e-12, abs=1e-12)  # rounding of some hundred terms
    assert run.makespan == max(ends.values())


# Bubbles --------------------------------------------------------------------------------------------------

SIZES = [(1, 1), (1, 7), (2, 1), (2, 5), (4, 3), (4, 4), (4, 8), (7, 20), (16, 16), (64, 512)]


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("pp", "m"), SIZES)
def test_step_takes_m_plus_p_minus_1_times_both_passes(kind: str, pp: int, m: int) -> None:
    """Exactly (m + p - 1) (tF + tB), with times that floats add without rounding; also where m < p."""
    run = dry_run(build_table(kind, pp=pp, num_microbatches=m), times(F=1.25, B=2.5))
    assert run.makespan == (m + pp - 1) * 3.75
    assert run.busy == (m * 3.75,) * pp


@pytest.mark.parametrize(("pp", "m", "vpp"), [(2, 2, 2), (2, 8, 3), (4, 4, 2), (4, 8, 2), (8, 32, 4), (16, 64, 3)])
def test_interleaving_divides_the_bubble_by_the_chunks(pp: int, m: int, vpp: int) -> None:
    """Overhead (p - 1) / (v m): arXiv 2104.04473, section 2.2.2. A chunk takes tF and tB, a rank v of them."""
    run = dry_run(build_table("interleaved", pp=pp, num_microbatches=m, vpp=vpp), times(F=1.25, B=2.5))
    assert run.makespan == (m * vpp + pp - 1) * 3.75
    assert run.busy == (m * vpp * 3.75,) * pp


@given(shapes())
def test_dry_run_has_the_ideal_bubble(shape: dict[str, object]) -> None:
    """The closed forms are idle over busy and idle over total time of the dry run."""
    kind, pp, m, vpp = (shape[name] for name in ("kind", "pp", "num_microbatches", "vpp"))
    pairs = str(kind).startswith("dualpipe")
    run = dry_run(build_table(**shape), times(F=1.0, B=2.0, I=1.0, W=1.0), pairs=pairs)  # type: ignore[arg-type]
    idle = run.makespan - run.busy[0]
    overhead = ideal_bubble_overhead(kind, pp, m, vpp)  # type: ignore[arg-type]
    fraction = ideal_bubble_fraction(kind, pp, m, vpp)  # type: ignore[arg-type]
    if overhead is not None:  # too few microbatches for the schedule's own form
        assert overhead == idle / run.busy[0]
        assert fraction == idle / run.makespan == run.bubble_fraction


def test_ideal_bubbles_of_one_shape() -> None:
    """p = 8, m = 32: 7/32 and 7/39 without chunks; with 4 chunks 7/128 and 7/135."""
    assert ideal_bubble_overhead("1f1b", 8, 32) == ideal_bubble_overhead("gpipe", 8, 32) == 7 / 32
    assert ideal_bubble_fraction("1f1b", 8, 32) == 7 / 39
    assert ideal_bubble_overhead("interleaved", 8, 32, 4) == 7 / 128
    assert ideal_bubble_fraction("interleaved", 8, 32, 4) == 7 / 135


def test_slowest_stage_sets_the_pace() -> None:
    """1F1B, p = 2, m = 4, a pass of (1, 2) on stage 0 and (2, 4) on stage 1.

    Stage 1 waits 1 for its first forward, works 4 * 6 = 24 without a gap, then stage 0 runs its last backward, 2:
    1 + 24 + 2 = 27.
    """
    table = build_table("1f1b", pp=2, num_microbatches=4)
    run = dry_run(table, lambda action: (1 + action.stage) * (1.0 if action.kind == "F" else 2.0))
    assert run.makespan == 27.0
    assert run.busy == (12.0, 24.0)


def test_in_flight_bounds_written_out() -> None:
    """GPipe m; 1F1B min(m, p - rank); interleaved 2 (p - rank - 1) + (v - 1) p + 1, at most m v."""

    def bounds(kind: str, num_microbatches: int, vpp: int) -> list[int]:
        sizes = {"pp": 4, "num_microbatches": num_microbatches, "vpp": vpp}
        return [in_flight_bound(kind, **sizes, rank=rank) for rank in range(4)]

    assert bounds("gpipe", 8, 1) == [8, 8, 8, 8]
    assert bounds("1f1b", 8, 1) == [4, 3, 2, 1]
    assert bounds("1f1b", 2, 1) == [2, 2, 2, 1]
    assert bounds("interleaved", 8, 2) == [11, 9, 7, 5]
    assert bounds("interleaved", 4, 2) == [8, 8, 7, 5]


# Split backwards ------------------------------------------------------------------------------------------

SPLIT = ("0F0 0F1 0I0 0W0 0I1 0W1", "1F0 1I0 1F1 1I1 1W0 1W1")


def test_split_backwards_fill_the_bubble() -> None:
    """Two ranks, two microbatches, every action 1 second.

    Rank 1: F0 at 1, I0 2, F1 3, I1 4, W0 5, W1 6, ends at 7. Rank 0: F0 0, F1 1, waits for 1I0 (ends at 3), I0 3, W0 4,
    1I1 ended at 5, so I1 5, W1 6, ends at 7. An activation is held until its W: two on both ranks.
    """
    table = table_of(*SPLIT)
    check_table(table, pp=2, vpp=1, num_microbatches=2, bounds=[2, 2])
    run = dry_run(table, times(F=1.0, I=1.0, W=1.0))
    assert run.starts == ((0.0, 1.0, 3.0, 4.0, 5.0, 6.0), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert (run.makespan, run.busy, run.peak_in_flight) == (7.0, (6.0, 6.0), (2, 2))


@pytest.mark.parametrize("last", ["1F0 1I0 1W0", "1F0 1B0"])
@pytest.mark.parametrize("first", ["0F0 0I0 0W0", "0F0 0B0"])
def test_whole_and_split_backwards_understand_each_other(first: str, last: str) -> None:
    """The gradient of a B and of an I are the same thing to the stage before."""
    table = table_of(first, last)
    check_table(table, pp=2, vpp=1, num_microbatches=1)
    assert dry_run(table, times(F=1.0, I=1.0, W=1.0, B=2.0)).starts[0][1] == (3.0 if "I" in last else 4.0)


# Illegal tables -------------------------------------------------------------------------------------------

GOOD = ("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")


@pytest.mark.parametrize(
    ("rows", "message", "place"),
    [
        (("0F0 0F1 0B0", GOOD[1]), "0B1 is missing", "rank 0 |0F0 0F1 0B0 >?<"),
        ((GOOD[0], "1F0 1B0 1B1"), "1F1 is missing", "rank 1 |1F0 1B0 1B1 >?<"),
        ((SPLIT[0][:-4], SPLIT[1]), "0W1 is missing", "0I0 0W0 0I1 >?<"),
        ((SPLIT[0], "1F0 1I0 1F1 1W1 1W0"), "1I1 is missing", "1F1 1W1 1W0 >?<"),
        (("0F0 0F0 0B0 0B1", GOOD[1]), "a second time", "rank 0 |0F0 >0F0< 0B0 0B1"),
        (("0F0 0F1 0B0 0W0 0B1", GOOD[1]), "either B, or I and W", "0B0 >0W0< 0B1"),
        (("0F0 0F1 0I0 0B0 0B1", GOOD[1]), "either B, or I and W", "0I0 >0B0< 0B1"),
        (("1F0 0F1 0B0 0B1", GOOD[1]), "stage 1 lives on rank 1", "rank 0 |>1F0< 0F1 0B0 0B1"),
        (("0F0 0F2 0B0 0B1", GOOD[1]), "microbatches 0 to 1", ">0F2<"),
        (("0F0 2F1 0B0 0B1", GOOD[1]), "stages 0 to 1", ">2F1<"),
    ],
)
def test_illegal_table_is_shown_with_the_place_marked(rows: tuple[str, str], message: str, place: str) -> None:
    """Missing, doubled and misplaced actions are named, and marked in the grid."""
    with pytest.raises(ScheduleError, match=message) as caught:
        check_table(table_of(*rows), pp=2, vpp=1, num_microbatches=2)
    assert place in str(caught.value)
    assert "rank 0 |" in str(caught.value)
    assert "rank 1 |" in str(caught.value)


def test_unknown_kind_and_wrong_number_of_ranks_are_refused() -> None:
    """Tables that were not built here may hold anything."""
    good = table_of(*GOOD)
    with pytest.raises(ScheduleError, match="kind 'X' is none of F B I W") as caught:
        check_table((good[0], (Action(1, "X", 0), *good[1][1:])), pp=2, vpp=1, num_microbatches=2)
    assert "rank 1 |>1X0< 1B0 1F1 1B1" in str(caught.value)
    with pytest.raises(ScheduleError, match="the table has 1 ranks, but pp is 2"):
        check_table(good[:1], pp=2, vpp=1, num_microbatches=2)


def test_deadlock_shows_who_waits_for_whom() -> None:
    """Rank 0 wants the gradient of microbatch 0 before it runs 1; rank 1 wants to run 1 before it goes backward."""
    table = table_of("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1")
    with pytest.raises(ScheduleError) as caught:
        check_table(table, pp=2, vpp=1, num_microbatches=2)
    assert str(caught.value).splitlines() == [
        "stuck schedule: 2 of 2 ranks wait",
        "rank 0 |0F0 >0B0< 0F1 0B1   waits for 1B0, on rank 1",
        "rank 1 |1F0 >1F1< 1B0 1B1   waits for 0F1, on rank 0",
    ]


def test_dry_run_says_when_nobody_runs_what_is_waited_for() -> None:
    """A row cut short strands its neighbours; ranks that are done are shown without a mark."""
    with pytest.raises(ScheduleError) as caught:
        dry_run(table_of("0F0 0F1 0I0 0W0", "1F0 1F1", "2F0"), times(F=1.0))
    assert str(caught.value).splitlines() == [
        "stuck schedule: 1 of 3 ranks wait",
        "rank 0 |0F0 0F1 >0I0< 0W0   waits for 1I0, which nobody runs",
        "rank 1 |1F0 1F1",
        "rank 2 |2F0",
    ]


def test_stuck_grid_of_many_ranks_shows_the_root() -> None:
    """Of 64 ranks that wait, the message shows the one that waits for what nobody runs, or the ring of a deadlock."""
    table = build_table("1f1b", pp=64, num_microbatches=512)
    lost = (*table[:40], tuple(action for action in table[40] if str(action) != "40F300"), *table[41:])
    with pytest.raises(ScheduleError) as caught:
        dry_run(lost, times(F=1.0, B=1.0))
    assert str(caught.value).splitlines() == [
        "stuck schedule: 64 of 64 ranks wait",
        "rank 41 |… 41F297 41B275 41F298 41B276 41F299 41B277 >41F300< 41B278 41F301 41B279 …"
        "   waits for 40F300, which nobody runs",
        "(63 more ranks)",
    ]
    ring = (*table[:62], (*table[62][2:], *table[62][:2]), table[63])
    with pytest.raises(ScheduleError) as caught:
        dry_run(ring, times(F=1.0, B=1.0))
    assert str(caught.value).splitlines() == [
        "stuck schedule: 64 of 64 ranks wait",
        "rank 62 |>62B0< 62F2 62B1 62F3 …   waits for 63B0, on rank 63",
        "rank 63 |>63F0< 63B0 63F1 63B1 …   waits for 62F0, on rank 62",
        "(62 more ranks)",
    ]


def test_too_many_activations_in_flight_are_marked() -> None:
    """GPipe held to the bounds of 1F1B fails where rank 0 starts a fifth forward."""
    bounds = [in_flight_bound("1f1b", pp=4, num_microbatches=8, vpp=1, rank=rank) for rank in range(4)]
    with pytest.raises(ScheduleError, match="forwards in flight: 5, allowed are 4") as caught:
        check_table(build_table("gpipe", pp=4, num_microbatches=8), pp=4, vpp=1, num_microbatches=8, bounds=bounds)
    assert "rank 0 |0F0 0F1 0F2 0F3 >0F4< 0F5 0F6 0F7 …" in str(caught.value)


# Grids ----------------------------------------------------------------------------------------------------


def test_grid_of_1f1b() -> None:
    """Three columns a second: labels at their start, dashes while they last, dots for idle time."""
    assert format_grid(build_table("1f1b", pp=3, num_microbatches=3)).splitlines() == [
        "rank 0 |F0 F1 F2 ........... B0--- .. B1--- .. B2---",
        "rank 1 |.. F0 F1 ..... B0--- F2 B1--- .. B2--- .....",
        "rank 2 |..... F0 B0--- F1 B1--- F2 B2--- ...........",
    ]


def test_grid_of_a_dry_run_is_to_scale() -> None:
    """The times of the dry run, not nominal ones: here a backward is as long as a forward."""
    run = dry_run(build_table("gpipe", pp=2, num_microbatches=2), times(F=0.5, B=0.5))
    assert format_grid(run).splitlines() == ["rank 0 |F0 F1 ..... B0 B1", "rank 1 |.. F0 F1 B0 B1 .."]


def test_grid_with_chunks_names_the_stage() -> None:
    """Where a rank holds several stages the microbatch alone would not say which."""
    first = format_grid(build_table("interleaved", pp=2, num_microbatches=2, vpp=2)).splitlines()[0]
    assert first == "rank 0 |0F0 0F1 2F0 2F1 ....... 2B0---- ... 2B1---- 0B0---- 0B1----"


def test_grid_is_cut_with_an_ellipsis() -> None:
    """No line is longer than asked; lines that fit are left alone."""
    table = build_table("1f1b", pp=12, num_microbatches=64)
    for width in (30, 120):
        lines = format_grid(table, width=width).splitlines()
        assert [len(line) for line in lines] == [width] * 12
        assert all(line.endswith("…") for line in lines)
    assert "…" not in format_grid(table, width=10_000)
    assert format_grid(table, width=30).splitlines()[0] == "rank  0 |F0- F1- F2- F3- F4- …"


@given(shapes(), st.floats(0.5, 3.0))
def test_grid_names_every_action_in_order(shape: dict[str, object], backward: float) -> None:
    """Whatever the times, no label is lost or cut."""
    table = build_table(**shape)  # type: ignore[arg-type]
    lines = format_grid(dry_run(table, times(F=1.0, B=backward, I=0.5 * backward, W=1.0)), width=100_000).splitlines()
    several = any(len({action.stage for action in row}) > 1 for row in table)
    for line, row in zip(lines, table, strict=True):
        found = [word.rstrip("-") for word in line.split("|")[1].split() if not word.startswith(".")]
        assert found == [str(action) if several else f"{action.kind}{action.microbatch}" for action in row]
