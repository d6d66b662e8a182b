"""When steps, saves and evaluations are: the closed form against counting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.campaign.timetable import Saves, Timetable


@st.composite
def tables(draw: st.DrawFn) -> Timetable:
    """Up to three tiers and an evaluation, in whole seconds."""
    saves = []
    for _ in range(draw(st.integers(0, 3))):
        every = draw(st.integers(1, 12))
        saves.append(Saves(draw(st.integers(1, every)), every, float(draw(st.integers(0, 40))), 0.0))
    every = draw(st.integers(1, 12))
    evaluation = draw(st.none() | st.tuples(st.integers(1, every), st.just(every), st.integers(0, 30).map(float)))
    return Timetable(float(draw(st.integers(1, 9))), tuple(saves), evaluation)


def _starts(table: Timetable, steps: int) -> list[float]:
    times, now = [0.0], 0.0
    for step in range(1, steps + 1):
        now += table.step
        due = [*table.saves, *([Saves(*table.evaluation, 0.0)] if table.evaluation else [])]
        now += sum(each.blocking for each in due if step >= each.first and (step - each.first) % each.every == 0)
        times.append(now)
    return times


@given(tables(), st.integers(0, 30))
def test_starts_are_counted(table: Timetable, most: int) -> None:
    """`at` is the sum of all before; `started` and `boundary` are its inverse at every quarter of a second."""
    starts = _starts(table, most)
    assert [table.at(steps) for steps in range(most + 1)] == starts
    for quarter in range(int(starts[-1]) * 4 + 5):
        passed = quarter / 4
        assert table.started(passed, most) == max(n for n, start in enumerate(starts) if start <= passed)
        assert table.boundary(passed, most) == min(
            (n for n, start in enumerate(starts) if start >= passed), default=most
        )


def test_many_steps_cost_as_much_as_few() -> None:
    """A thousand billion steps of 1 s saved every 1,000 in 1 s, 0.1 s of it in another tier."""
    table = Timetable(1.0, (Saves(10, 10, 0.1, 0.0), Saves(1000, 1000, 0.9, 0.0)), None)
    assert table.at(10**12) == 10**12 + 10**10 + 0.9 * 10**9
    assert table.started(table.at(123_456_789_012) + 0.5, 10**12) == 123_456_789_012
    assert round(table.save_end(1, 2000), 6) == 2000 + 20.0 + 0.9 * 2
