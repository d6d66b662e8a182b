"""The picture of MFU lost: drawn for every axis, the same bytes every time, labels that do not meet."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from simulator.records import FAILURE_KEYS
from simulator.report.failure_loss import (
    FATES,
    marker_rows,
    markers_outside,
    plot_failure_loss,
    short_time,
    time_ticks,
)
from simulator.studies.loss_curve import OPTIMUM, OWN, PARTS, Estimate, LossCurve, LossPoint, Marker

AXES = {
    "gpus": (1_024.0, 2_048.0, 4_096.0, 8_192.0),
    "mtbf": (900.0, 3_600.0, 14_400.0, 86_400.0),
    "interval": (61.0, 300.0, 1_200.0, 7_000.0),
    "spares": (0.0, 1.0, 4.0, 64.0),
}


def a_point(value: float, share: float) -> LossPoint:
    """A point that loses some of everything."""
    parts = {key: share * (0.01 + 0.002 * place) for place, key in enumerate(PARTS)}
    lost = sum(parts.values())
    failures = sum(parts[key] for key in FAILURE_KEYS)
    causes = {f"class {number}": lost / 14 for number in range(14)}
    near = Estimate(lost, 0.9 * lost, 1.1 * lost), Estimate(failures, 0.9 * failures, 1.1 * failures)
    return LossPoint(value, 8, 16, 0.45, 0.45 - lost, (0.45 - lost) / 2, *near, parts, causes, 12.0, 1e6)


def a_curve(against: str, *markers: Marker) -> LossCurve:
    """Four points along an axis."""
    values = AXES[against]
    points = tuple(a_point(value, 1 + 0.3 * place) for place, value in enumerate(values))
    return LossCurve("a run", against, 3, 20, points, (Marker(OWN, values[1]), *markers), "All else is held.")


@pytest.mark.parametrize(
    ("against", "by", "suffix"),
    [("gpus", "fate", "png"), ("mtbf", "cause", "svg"), ("interval", "fate", "pdf"), ("spares", "cause", "png")],
)
def test_every_axis_is_drawn(tmp_path: Path, against: str, by: str, suffix: str) -> None:
    """Every axis, every format, stacked by fate and by cause."""
    path = tmp_path / f"a.{suffix}"
    plot_failure_loss(a_curve(against), path, by)
    assert path.stat().st_size > 5_000


def test_the_same_picture_twice(tmp_path: Path) -> None:
    """A PNG depends on the curve alone."""
    for name in ("a.png", "b.png"):
        plot_failure_loss(a_curve("interval"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_picture_says_what_it_shows(tmp_path: Path) -> None:
    """Names of the parts, the markers with their values, what is held, how many replications: as text in the SVG."""
    curve = a_curve("interval", Marker(OPTIMUM, 240.0), Marker("Young", 250.0), Marker("Daly", 250.4))
    plot_failure_loss(curve, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for name, _ in FATES.values():
        assert f"<!-- {name} -->" in text
    for words in ("simulated optimum: 4 min", "this scenario: 5 min", "All else is held", "20 replications"):
        assert words in text
    assert "Young, Daly: 4.17 min" in text  # the same to the digits that are shown: one label


def test_markers_outside_the_axis_are_not_drawn() -> None:
    """And those that are shown come in the order of the axis."""
    curve = a_curve("interval", Marker("Daly", 1e6), Marker("Young", 100.0))
    assert [[marker.name for marker in row] for row in marker_rows(curve)] == [["Young"], [OWN]]


def test_an_optimum_outside_the_axis_is_told_at_its_end(tmp_path: Path) -> None:
    """With an arrow; closed forms outside are left out."""
    curve = a_curve("interval", Marker(OPTIMUM, 24.0), Marker("Young", 10.0))
    assert markers_outside(curve) == [Marker(OPTIMUM, 24.0)]
    plot_failure_loss(curve, tmp_path / "a.svg")
    assert "← simulated optimum: 24 s, beyond this end" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_the_title_says_what_is_stacked(tmp_path: Path) -> None:
    """Fates and causes look alike."""
    for by in ("fate", "cause"):
        plot_failure_loss(a_curve("mtbf"), tmp_path / f"{by}.svg", by)
        assert f"in the course of the run, by {by}" in (tmp_path / f"{by}.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("low", "high"), [(636.0, 20_400.0), (60.0, 120.0), (3_600.0, 5e6), (70.0, 75.0), (9.0, 700.0)]
)
def test_ticks_reach_both_ends(low: float, high: float) -> None:
    """No more than an eighth of the axis lies outside them, and their labels do not meet."""
    ticks = time_ticks(low, high)
    room = (high / low) ** (1 / 8)
    assert low <= ticks[0] <= low * room
    assert high / room <= ticks[-1] <= high
    assert all(b / a >= (high / low) ** (1 / 15) for a, b in pairwise(ticks))


def test_a_single_point_can_be_drawn(tmp_path: Path) -> None:
    """One value is a picture too, if a dull one."""
    for against in ("interval", "spares"):
        values = AXES[against]
        curve = LossCurve("a run", against, 0, 2, (a_point(values[1], 1.0),), (), "")
        plot_failure_loss(curve, tmp_path / f"{against}.png")


def test_a_run_that_loses_nothing_can_be_drawn(tmp_path: Path) -> None:
    """Zero points are no reason to divide by them."""
    points = tuple(a_point(value, 0.0) for value in AXES["mtbf"])
    plot_failure_loss(LossCurve("a run", "mtbf", 0, 2, points, (), ""), tmp_path / "a.png")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(30.0, "30 s"), (60.0, "1 min"), (90.0, "1.5 min"), (7_200.0, "2 h"), (86_400.0, "1 d"), (1e7, "116 d")],
)
def test_times_are_short(seconds: float, text: str) -> None:
    """Three digits, and the largest unit of which there is one."""
    assert short_time(seconds) == text
