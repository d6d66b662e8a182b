"""Lazy is detailed: what one timer covers ends as if every kernel and every transfer had been simulated."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings

from simulator.engine.iteration import simulate_step
from simulator.physics.program.steps import Call, CallPhase, Coflow, Join, Shared, Start, StepProgram
from tests.engine.programs import chain, kernel, moving, on_link, program
from tests.engine.random_programs import assert_same, pipelines


def tp(*phases: CallPhase, rank: int = 0, capacity: float = 10.0) -> Call:
    """A collective of one rank on link 0."""
    return moving("tp", *phases, members=(rank,), capacity=capacity)


def on_one_link(*bodies: Sequence[object], slowdown: float = 1.0) -> StepProgram:
    """Ranks of different stages that share a link of 10 B/s."""
    coflows = [on_link(10.0)] * 4
    return program(*bodies, same_stage=False, coflows=coflows, capacity=[10.0], slowdown=slowdown)


def parts_of(plan: StepProgram, rank: int, *, fuse: bool = True) -> dict[str, float]:
    """Seconds by state of a rank's first span."""
    span = next(span for span in simulate_step(plan, fuse=fuse).spans if span.rank == rank)
    assert sum(seconds for _, seconds in span.parts) == pytest.approx(span.end - span.start, rel=1e-12)
    return dict(span.parts)


FUSE = pytest.mark.parametrize("fuse", [True, False])


# --- worked examples -------------------------------------------------------------------------------------------------


@FUSE
def test_a_chain_is_interrupted_in_the_middle_of_a_transfer(fuse: bool) -> None:
    """Link of 10 B/s. Rank 0: 1 s of kernel, 60 B, 1 s of kernel. Rank 1: 3 s of kernel, 20 B.

    Rank 0 has moved 20 B by 3 s. Then both have 5 B/s: rank 1 ends at 7 s, when rank 0 has 20 B left, which take 2 s
    more. Its chain ends at 10 s; the transfer takes 8 s instead of 6.
    """
    first, second = tp(CallPhase(0.0, ((0, 60.0),))), tp(CallPhase(0.0, ((1, 20.0),)), rank=1)
    compute = (1.0, "compute", True)
    plan = on_one_link([chain(compute, first, compute)], [chain((3.0, "compute", True), second)])
    assert parts_of(plan, 0, fuse=fuse) == pytest.approx({"compute": 2.0, "exposed_tp": 8.0})
    assert parts_of(plan, 1, fuse=fuse) == pytest.approx({"compute": 3.0, "exposed_tp": 4.0})


@FUSE
def test_a_chain_is_interrupted_during_a_latency(fuse: bool) -> None:
    """Rank 0: 2 s of latency, 10 B. Rank 1: 30 B from 1 s on.

    Alone rank 1 moves 10 B until 2 s, then half the link: rank 0 needs 2 s for its 10 B, until 4 s, when rank 1 has
    10 B left: 5 s.
    """
    plan = on_one_link(
        [chain(tp(CallPhase(2.0, ((0, 10.0),))))],
        [chain((1.0, "compute", True), tp(CallPhase(0.0, ((1, 30.0),)), rank=1))],
    )
    assert parts_of(plan, 0, fuse=fuse) == pytest.approx({"exposed_tp": 4.0})
    assert parts_of(plan, 1, fuse=fuse) == pytest.approx({"compute": 1.0, "exposed_tp": 4.0})


@FUSE
def test_a_chain_is_interrupted_in_its_second_phase(fuse: bool) -> None:
    """Two transfers of 10 and 30 B that share the link, then, 1 s later, 20 B; rank 1 sends 20 B from 3 s on.

    Both have 5 B/s until 2 s, when 20 B of the second are left; by 3 s 10 are. With rank 1 the second ends at 5 s (10
    B of rank 1 left); 1 s of latency, in which rank 1 ends; 20 B until 8 s.
    """
    call = tp(CallPhase(0.0, ((0, 10.0), (1, 30.0))), CallPhase(1.0, ((0, 20.0),)))
    assert call.seconds == 7.0
    other = chain((3.0, "compute", True), tp(CallPhase(0.0, ((2, 20.0),)), rank=1))
    plan = on_one_link([chain(call)], [other])
    assert parts_of(plan, 0, fuse=fuse) == pytest.approx({"exposed_tp": 8.0})
    assert parts_of(plan, 1, fuse=fuse) == pytest.approx({"compute": 3.0, "exposed_tp": 3.0})


@FUSE
def test_a_chain_that_slows_down_is_interrupted_where_it_is(fuse: bool) -> None:
    """Slowdown 2 beside a dp collective of 4 s (link 0, 40 B). Rank 0: 1 s kernel, 10 B, 3 s kernel.

    The kernel takes 2 s. Then the transfers share: 2 s for the 10 B, while dp, 20 B left, moves 10: it ends at 5 s. Of
    the second kernel half a second is done by then; 2.5 s more: 7.5 s, of which 1 + 0.5 s are slowdown and 1 s is
    sharing.
    """
    beside = moving("dp", CallPhase(0.0, ((0, 40.0),)), capacity=10.0)
    body = [Start("g", beside), chain((1.0, "compute", True), tp(CallPhase(0.0, ((1, 10.0),))), (3.0, "compute", True))]
    plan = on_one_link(body, slowdown=2.0)
    assert parts_of(plan, 0, fuse=fuse) == pytest.approx({"compute": 4.0, "exposed_tp": 2.0, "overlap_slowdown": 1.5})


@FUSE
def test_calls_hold_their_links_too(fuse: bool) -> None:
    """A shared collective, one beside compute and a chain's, of three stages, all 20 B from 0 s: 6 s each."""
    calls = [moving(axis, CallPhase(0.0, ((r, 20.0),)), members=(r,)) for r, axis in enumerate(["ep", "dp", "tp"])]
    bodies: list[Sequence[object]] = [[Shared(calls[0])], [Start("g", calls[1]), Join("g")], [chain(calls[2])]]
    result = simulate_step(on_one_link(*bodies), fuse=fuse)
    assert result.step_time == pytest.approx(6.0)
    assert [span.end for span in result.spans] == pytest.approx([6.0] * 3)


def test_links_that_one_lane_uses_are_not_watched() -> None:
    """Two collectives of a chain on the same link, and a thousand kernels, are one event; beside dp on another, two."""
    own = Coflow("own", (1,), (1.0,), 1.0, float("inf"), 10.0)
    kernels = [(0.5, "compute", True)] * 1000
    call = tp(CallPhase(0.5, ((0, 10.0),)))
    body = chain(call, *kernels, call)
    plan = program([body], coflows=[on_link(10.0), own], capacity=[10.0, 10.0])
    assert simulate_step(plan).events == 1
    beside = moving("dp", CallPhase(0.0, ((1, 10.0),)), coflows=[on_link(10.0), own], capacity=10.0)
    plan = program([Start("g", beside), body], coflows=[on_link(10.0), own], capacity=[10.0, 10.0])
    assert simulate_step(plan).events == 2


def test_one_interruption_costs_a_few_events() -> None:
    """A chain of a hundred transfers that another rank disturbs once is lazy again after it."""
    compute, call = (1.0, "compute", True), tp(CallPhase(0.0, ((0, 10.0),)))
    other = chain((20.5, "compute", True), tp(CallPhase(0.0, ((1, 1.0),)), rank=1))
    plan = on_one_link([chain(*(each for _ in range(100) for each in (compute, call)))], [other])
    lazy, detailed = simulate_step(plan), simulate_step(plan, fuse=False)
    assert lazy.step_time == pytest.approx(detailed.step_time, rel=1e-12)
    assert lazy.events < 12
    assert detailed.events > 200


# --- law -------------------------------------------------------------------------------------------------------------


@settings(max_examples=35)
@given(pipelines())
def test_lazy_is_detailed(plan: StepProgram) -> None:
    """Random pipelines whose chains, messages and collectives beside compute contend: every span is the same."""
    assert_same(simulate_step(plan, skip=False), simulate_step(plan, skip=False, fuse=False))


def test_records_of_transfers_are_complete() -> None:
    """With `keep_transfers` nothing is lazy: all bytes of a chain's collectives are delivered and listed."""
    call = tp(CallPhase(0.5, ((0, 10.0), (1, 0.0))), CallPhase(0.0, ((0, 30.0),)))
    result = simulate_step(on_one_link([chain(call, call), kernel(1.0)]), keep_transfers=True)
    assert [(each.coflow, each.size) for each in result.transfers] == [(1, 0.0), (0, 10.0), (0, 30.0)] * 2
    assert result.transfers[-1].end == 2 * (0.5 + 1.0 + 3.0)
