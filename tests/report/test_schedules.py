"""A schedule in the terminal: figures, grid, narrow terminals."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.schedules.execution import dry_run
from simulator.physics.schedules.grids import wrap_grid
from simulator.physics.schedules.tables import SCHEDULES, build_table
from simulator.report.schedules import schedule_report
from simulator.report.tables import render
from simulator.studies.schedules import view_schedule


def test_report_of_zb_h2() -> None:
    """Both bubbles, activations and the grid: a row per rank, letters, dots."""
    text = render(schedule_report(view_schedule("zb-h2", pp=2, num_microbatches=4)), plain=True)
    assert text.splitlines() == [
        "zb-h2: 2 pipeline ranks, 4 microbatches",
        "bubble          0.0 %  (theory 0.0 %), each rank's own time",
        "                7.7 %  (theory 7.7 %), where ranks begin and end together",
        "time            13, 12 on the longest rank",
        "most in flight  3  (promised 3)",
        "",
        "F forward 1   I backward for the input 1   W backward for the weights 1   with the microbatch",
        "rank 0 |F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3 ..",
        "rank 1 |.. F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3",
    ]


def test_no_closed_form_is_said_so() -> None:
    """ZB-1p with unequal times is found, not written down."""
    from simulator.physics.schedules.zero_bubble import Times

    view = view_schedule("zb-1p", pp=4, num_microbatches=8, times=Times(1.0, 1.3, 0.7))
    assert "(no closed form)" in render(schedule_report(view), plain=True)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("width", [40, 60, 100])
def test_no_line_is_wider_than_the_terminal(kind: str, width: int) -> None:
    """Whatever the schedule; all of it is there."""
    view = view_schedule(kind, pp=4, num_microbatches=8, vpp=2 if kind == "interleaved" else None)
    lines = render(schedule_report(view), plain=True, width=width).splitlines()
    assert all(len(line) <= width for line in lines)
    drawn = " ".join(line.split("|")[1] for line in lines if line.startswith("rank 0 |"))
    letters = re.findall(r"[FBIW]\d+", drawn)
    assert letters == [f"{action.kind}{action.microbatch}" for action in view.run.table[0]]


@given(st.integers(30, 200), st.floats(0.3, 3.0), st.floats(0.3, 3.0))
def test_wrapping_cuts_no_label(width: int, half: float, weight: float) -> None:
    """With any times and width: the pieces of a row are the row."""
    table = build_table("zb-h1", pp=3, num_microbatches=12)
    seconds = {"F": 1.0, "I": half, "W": weight}
    run = dry_run(table, lambda action: seconds[action.kind])
    pieces = wrap_grid(run, width=width).splitlines()
    for rank in range(3):
        row = " ".join(line.split("|")[1] for line in pieces if line.startswith(f"rank {rank} |"))
        found = [word.rstrip("-") for word in row.split() if word.strip(".-")]
        assert found == [f"{action.kind}{action.microbatch}" for action in table[rank]]
    assert all(len(line) <= width for line in pieces)
