"""Bubbles and activations of every schedule against the closed forms and tables of their papers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.schedules.actions import Action
from simulator.physics.schedules.closed_forms import busy_seconds, ideal_bubble, ideal_bubble_fraction, in_flight_bound
from simulator.physics.schedules.execution import DryRun, dry_run, peak_activations
from simulator.physics.schedules.tables import SCHEDULES, build_table
from simulator.physics.schedules.zero_bubble import KEPT, Times, automatic, weight_share
from simulator.scenario.pipeline import microbatch_rule


def run(kind: str, pp: int, m: int, times: Times = Times(), vpp: int = 1) -> DryRun:  # noqa: B008 (immutable)
    """Run a schedule with these times of a stage; DualPipe's pairs as its code runs them."""
    table = build_table(kind, pp=pp, num_microbatches=m, vpp=vpp, times=times)
    return dry_run(table, seconds(times), message=times.message, pairs=kind.startswith("dualpipe"))


def seconds(times: Times) -> Callable[[Action], float]:
    """Duration of an action."""
    by_kind = times.by_kind
    return lambda action: by_kind[action.kind]


# With equal times -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pp", "m", "own", "together"),
    [
        # 1F1B and GPipe: (p - 1) (F + B) = 3 · 3, of 8 · 3 + 9
        ("gpipe", 4, 8, 9, 9),
        ("1f1b", 4, 8, 9, 9),
        # ZB-H1: (p - 1) (F + I - W) = 3: a third of 1F1B's
        ("zb-h1", 4, 8, 3, 3),
        ("zb-1p", 4, 8, 3, 3),
        # ZB-H2: (p - 1) (F + I - 2W) = 0, but ranks begin (p - 1) F apart
        ("zb-h2", 4, 8, 0, 3),
        ("zb-2p", 4, 8, 0, 3),
        ("zbv", 4, 8, 0, 3),
        # DualPipe: (p / 2 - 1) (F + B + B - 3W) = 1 · 2; DualPipeV 3 · 2 of half-size stages
        ("dualpipe", 4, 8, 2, 2),
        ("dualpipev", 4, 8, 6, 6),
    ],
)
def test_bubbles_with_equal_times(kind: str, pp: int, m: int, own: float, together: float) -> None:
    """Table and closed form agree to the last bit, each rank's own time and all ranks together."""
    found = run(kind, pp, m)
    assert set(found.busy) == {busy_seconds(kind, m)}
    assert (found.longest_rank - found.busy[0], found.makespan - found.busy[0]) == (own, together)
    assert ideal_bubble(kind, pp, m, synchronous=False) == own
    assert ideal_bubble(kind, pp, m) == together


@st.composite
def sizes(draw: st.DrawFn) -> tuple[str, int, int, int]:
    """Kind, pp, microbatches (as many as the closed forms ask for) and vpp."""
    kind = draw(st.sampled_from(sorted(SCHEDULES)))
    pp = draw(st.sampled_from([2, 4, 8])) if kind == "dualpipe" else draw(st.integers(2, 8))
    step, least = microbatch_rule(kind, pp)
    most = max(least, 2 * pp)
    m = step * draw(st.integers(-(-most // step), -(-most // step) + 12))
    return kind, pp, m, draw(st.integers(1, 3)) if kind == "interleaved" else 1


@given(sizes())
def test_every_closed_form_is_exact_with_equal_times(size: tuple[str, int, int, int]) -> None:
    """Any p and m: seconds and fractions to the last bit, for whole seconds."""
    kind, pp, m, vpp = size
    found = run(kind, pp, m, vpp=vpp)
    assert found.longest_rank - found.busy[0] == ideal_bubble(kind, pp, m, vpp, synchronous=False)
    assert found.makespan - found.busy[0] == ideal_bubble(kind, pp, m, vpp)
    assert found.bubble_fraction == ideal_bubble_fraction(kind, pp, m, vpp)
    assert found.own_bubble_fraction == ideal_bubble_fraction(kind, pp, m, vpp, synchronous=False)


# With unequal times -----------------------------------------------------------------------------------------


@given(sizes(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_closed_forms_hold_for_unequal_times(
    size: tuple[str, int, int, int], forward: int, half: int, weight: int
) -> None:
    """Where a form is given for these times, it is what the table takes; whole seconds add up without rounding."""
    kind, pp, m, vpp = size
    times = Times(float(forward), float(half), float(weight))
    for together in (True, False):
        theory = ideal_bubble(kind, pp, m, vpp, times=times, synchronous=together)
        if theory is not None:
            found = run(kind, pp, m, times, vpp)
            assert (found.makespan if together else found.longest_rank) - found.busy[0] == theory


@given(st.integers(2, 8), st.integers(0, 20), st.floats(0.5, 2.0), st.floats(0.5, 2.0), st.floats(0.1, 1.0))
def test_splitting_the_backward_never_costs(pp: int, more: int, forward: float, half: float, weight: float) -> None:
    """The order of the papers: ZB-H2 is no slower than ZB-H1, and that no slower than 1F1B (each rank's own time)."""
    m, times = 2 * pp + more, Times(forward, half, weight)
    whole, first, second = (run(kind, pp, m, times).longest_rank for kind in ("1f1b", "zb-h1", "zb-h2"))
    assert second <= first * (1 + 1e-12)
    assert first <= whole * (1 + 1e-12)


# Published tables --------------------------------------------------------------------------------------------

# The 1.5B model on 8 stages, 24, 32 and 64 microbatches: profiled milliseconds of F, I, W and a message (arXiv
# 2401.10241, appendix, profiled times) and the bubble rates that the authors compute from them (table 5).
PROFILES = {
    24: Times(18.522, 18.086, 9.337, 0.601),
    32: Times(18.513, 18.086, 9.331, 0.626),
    64: Times(18.546, 18.097, 9.321, 0.762),
}
RATES = {
    "1f1b": {24: 0.2431, 32: 0.1985, 64: 0.1240},
    "zb-h1": {24: 0.1585, 32: 0.1242, 64: 0.0674},
    "zb-h2": {24: 0.1083, 32: 0.0837, 64: 0.0444},
    "zb-1p": {24: 0.1585, 32: 0.1242, 64: 0.0674},
    "zb-2p": {24: 0.0433, 32: 0.0039, 64: 0.0026},
}


@pytest.mark.parametrize("m", PROFILES)
@pytest.mark.parametrize("kind", RATES)
def test_bubble_rates_of_the_zero_bubble_paper(kind: str, m: int) -> None:
    """Table 5 of arXiv 2401.10241 to all its digits, from unequal times and slow messages alone."""
    assert round(run(kind, 8, m, PROFILES[m]).own_bubble_fraction, 4) == RATES[kind][m]


def test_what_makes_1f1b_slower_than_its_closed_form() -> None:
    """m = 24: 7/31 = .2258 with free messages, .2431 with 0.601 ms of them.

    In each round of p microbatches a microbatch's way there and back crosses 2 (p - 1) = 14 times, and once in the
    warmup and cooldown: 12 + 24 · 14 / 8 = 54 messages, 32.5 ms more than 31 · 45.945 ms = 1424.3.
    """
    times = PROFILES[24]
    free = run("1f1b", 8, 24, times._replace(message=0.0))
    assert free.own_bubble_fraction == pytest.approx(7 / 31, rel=1e-12)
    assert free.makespan == pytest.approx(31 * 45.945)
    assert run("1f1b", 8, 24, times).makespan == pytest.approx(31 * 45.945 + 54 * 0.601)


# Activations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "peaks"),
    [
        ("1f1b", (8, 7, 6, 5, 4, 3, 2, 1)),
        ("zb-h1", (8,) * 8),  # 1F1B's first rank
        ("zb-h2", (15,) * 8),  # 2p - 1
        ("zbv", (16,) * 8),  # of stages half as large: 1F1B's first rank again
        ("dualpipe", (9,) * 8),  # p + 1
        ("dualpipev", (17,) * 8),
    ],
)
def test_activations_in_flight(kind: str, peaks: tuple[int, ...]) -> None:
    """p = 8, m = 24, counted until W."""
    assert run(kind, 8, 24).peak_in_flight == peaks


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.375])
def test_zb_h1_memory_is_the_papers(kept: float) -> None:
    """Rank r of p keeps p - r microbatches whole and the W part of r: arXiv 2401.10241, section 2.3."""
    table = build_table("zb-h1", pp=4, num_microbatches=12)
    assert [peak_activations(row, kept) for row in table] == [(4 - rank) + rank * kept for rank in range(4)]


@given(
    st.integers(2, 6), st.integers(1, 20), st.sampled_from([1, 2]), st.sampled_from([1.0, 0.5, 0.25]),
    st.floats(0.5, 2.0), st.floats(0.5, 2.0), st.floats(0.2, 2.0), st.floats(0.0, 0.2),
)  # fmt: skip
def test_found_schedules_keep_their_memory(
    pp: int, m: int, share: int, kept: float, forward: float, half: float, weight: float, message: float
) -> None:
    """Whatever the times: complete, no rank above its limit."""
    table = automatic(pp, m, Times(forward, half, weight, message), share * pp, kept)
    assert all(
        sorted(map(str, row)) == sorted(f"{r}{k}{i}" for k in "FIW" for i in range(m)) for r, row in enumerate(table)
    )
    assert max(peak_activations(row, kept) for row in table) <= share * pp + 1e-6
    dry_run(table, lambda action: 1.0)


def test_more_memory_makes_a_found_schedule_faster() -> None:
    """ZB-2p against ZB-1p with the paper's times, in 16 and 8 microbatches' memory."""
    single, double = (run(kind, 8, 24, PROFILES[24]) for kind in ("zb-1p", "zb-2p"))
    assert double.longest_rank < single.longest_rank
    for kind, found in (("zb-1p", single), ("zb-2p", double)):
        bound = in_flight_bound(kind, pp=8, num_microbatches=24, vpp=1, rank=0)
        assert max(peak_activations(row, KEPT) for row in found.table) <= bound


def test_what_stays_for_the_weight_gradients() -> None:
    """The paper's 1.5B: 5 · 24 · 1024 / 2304 = 53.3 of scores, 32 / 87.3 = 0.37; fused attention 32 / 34."""
    shape = {"hidden_size": 2304, "heads": 24, "sequence_length": 1024}
    assert weight_share(**shape, fused=False) == pytest.approx(32 / (34 + 53 + 1 / 3))
    assert weight_share(**shape, fused=True) == 32 / 34
