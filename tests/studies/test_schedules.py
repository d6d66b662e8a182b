"""One schedule by itself: its figures, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import ScheduleError
from simulator.physics.schedules.tables import SCHEDULES
from simulator.physics.schedules.zero_bubble import Times
from simulator.studies.schedules import times_of, view_schedule


def test_figures_of_1f1b() -> None:
    """p = 4, m = 8: 3 / 11 of 33 seconds, 4 to 1 microbatches in flight."""
    figures = view_schedule("1f1b", pp=4, num_microbatches=8).figures()
    assert figures["bubble_fraction"] == figures["bubble_fraction_theory"] == 3 / 11
    assert figures["synchronous_bubble_fraction"] == figures["synchronous_bubble_fraction_theory"] == 3 / 11
    assert (figures["makespan_s"], figures["busy_s"]) == (33.0, [24.0] * 4)
    assert figures["peak_in_flight"] == figures["in_flight_bound"] == [4, 3, 2, 1]
    assert figures["ranks"][3][:2] == [
        {"action": "3F0", "start_s": 3.0, "end_s": 4.0},
        {"action": "3B0", "start_s": 4.0, "end_s": 6.0},
    ]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_agrees_with_its_closed_form(kind: str) -> None:
    """With equal times, printed side by side."""
    figures = view_schedule(kind, pp=4, num_microbatches=8, vpp=2 if kind == "interleaved" else None).figures()
    for measure in ("bubble_fraction", "synchronous_bubble_fraction"):
        assert figures[measure] == pytest.approx(figures[f"{measure}_theory"], rel=1e-15, abs=1e-15)
    assert all(peak <= bound for peak, bound in zip(figures["peak_in_flight"], figures["in_flight_bound"], strict=True))


def test_v_shape_is_told() -> None:
    """ZB-V has stage r and 2p - 1 - r on rank r; DualPipe r and p - 1 - r."""
    ask: dict[str, Any] = {"pp": 4, "num_microbatches": 8}
    assert view_schedule("zbv", **ask).figures()["stages_of_rank"] == [[0, 7], [1, 6], [2, 5], [3, 4]]
    assert view_schedule("dualpipe", **ask).figures()["stages_of_rank"] == [[0, 3], [1, 2], [1, 2], [0, 3]]


def test_names_are_forgiven_their_form() -> None:
    """Capitals and underscores."""
    assert view_schedule("ZB_H1", pp=2, num_microbatches=4).kind == "zb-h1"


def test_times() -> None:
    """A whole backward is halved where a schedule splits it."""
    assert times_of(1.0, 3.0, None, None, 0.0) == Times(1.0, 1.5, 1.5)
    assert times_of(2.0, None, 3.0, None, 0.5) == Times(2.0, 3.0, 1.0, 0.5)
    with pytest.raises(ScheduleError, match="give --backward, or --input and --weight, not both"):
        times_of(1.0, 2.0, 1.0, None, 0.0)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"kind": "zbh1"}, "no schedule 'zbh1'.*did you mean 'zb-h1'"),
        ({"kind": "interleaved"}, "needs vpp of 2 or more"),
        ({"kind": "interleaved", "vpp": 2, "num_microbatches": 9}, "9 microbatches do not split into groups of pp = 4"),
        ({"kind": "1f1b", "pp": 1}, "pp is 1: with one pipeline rank there is nothing to schedule"),
        ({"kind": "1f1b", "num_microbatches": 0}, "num_microbatches is 0"),
        ({"kind": "1f1b", "times": Times(forward=0.0)}, "forward is 0; a time must be positive"),
        ({"kind": "1f1b", "times": Times(weight=float("inf"))}, "weight is inf"),
        ({"kind": "1f1b", "times": Times(message=-1.0)}, "message is -1; a time must be 0 or positive"),
        ({"kind": "1f1b", "num_microbatches": 100_000}, "more than the 200,000 actions that are drawn"),
    ],
)
def test_impossible_asks_are_refused(ask: dict[str, Any], message: str) -> None:
    """One message with the fix."""
    with pytest.raises(ScheduleError, match=message):
        view_schedule(**{"pp": 4, "num_microbatches": 8, **ask})
