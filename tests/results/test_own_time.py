"""A step as one of many: the longest rank sets the pace, and each rank's parts add up to it."""

from __future__ import annotations

import pytest

from simulator.records import Span, StepResult
from simulator.results.own_time import own_time


def span(rank: int, name: str, start: float, end: float, state: str) -> Span:
    """A stretch in one state."""
    return Span(rank, "compute", name, start, end, ((state, end - start),))


def test_two_ranks_worked_out() -> None:
    """Rank 0 works from 0 to 6 and waits to 8; rank 1 begins at 1, after a message of 0.5, and ends at 8.

    Rank 1 takes 7, rank 0 only 6, so that a step takes 7 and rank 0 waits 1.
    """
    whole = StepResult(
        step_time=8.0,
        rank_counts=(1, 1),
        pieces=(
            span(1, "1F0", 0.0, 0.5, "waiting"),
            span(1, "1F0", 0.5, 1.0, "exposed_pp"),
            span(0, "0F0", 0.0, 6.0, "compute"),
            span(1, "1F0", 1.0, 4.0, "compute"),
            span(1, "1B0", 4.0, 5.0, "waiting"),
            span(1, "1B0", 5.0, 8.0, "compute"),
            span(0, "wait", 6.0, 8.0, "waiting"),
        ),
    )
    own = own_time(whole)
    assert own.step_time == 7.0
    assert [each for each in own.spans if each.rank == 1] == [
        span(1, "1F0", 1.0, 4.0, "compute"),
        span(1, "1B0", 4.0, 5.0, "waiting"),
        span(1, "1B0", 5.0, 8.0, "compute"),
    ]
    assert [each for each in own.spans if each.rank == 0] == [
        span(0, "0F0", 0.0, 6.0, "compute"),
        span(0, "wait", 6.0, 7.0, "waiting"),
    ]
    for rank in (0, 1):
        times = [sum(dict(each.parts).values()) for each in own.spans if each.rank == rank]
        assert sum(times) == pytest.approx(own.step_time)
