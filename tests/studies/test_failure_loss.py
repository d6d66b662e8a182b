"""MFU lost over an axis: the parts add up, more failures lose more, and the axes mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import LayoutError, ScenarioError
from simulator.records import FAILURE_KEYS
from simulator.scenario.scenario import Scenario
from simulator.studies.failure_axes import AXES, Wanted, read_wanted, spread
from simulator.studies.failure_loss import as_good_as_best, best_owned, failure_loss
from simulator.studies.loss_curve import BEST_OWNED, OPTIMUM, OWN, PARTS, Estimate, LossCurve, LossPoint, Marker
from tests.small import load_small

FAILURES = [
    {"name": "node", "rate": "12 per node-day", "time_to_repair": "2 h"},
    {"name": "software", "rate": "6 per node-day", "needs_machine": False, "detection": "10 min"},
]


def failing(folder: Path, **changes: object) -> Scenario:
    """The small scenario for some hours, failing every 40 min, saving every 10."""
    reliability = {"failures": FAILURES, "checkpoint": {"interval": "10 min", "save_time": "20 s"}, "start": "5 min"}
    training = {"tokens": "20e9 tokens"}
    return load_small(folder, training=training, reliability={**reliability, **changes})


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LossCurve]:
    """One curve along each axis."""
    scenario = failing(tmp_path_factory.mktemp("scenario"))
    return {against: failure_loss(scenario, against, runs=6, jobs=1) for against in AXES}


def own_point(curve: LossCurve) -> object:
    """The point of the scenario as it is, without what is said about the axis."""
    (own,) = (marker.value for marker in curve.markers if marker.name == OWN)
    (point,) = (point for point in curve.points if point.value == own)
    return point._replace(value=0.0)


@pytest.mark.parametrize("against", AXES)
def test_the_parts_add_up_to_what_is_lost(curves: dict[str, LossCurve], against: str) -> None:
    """Of every point: healthy less effective MFU, by fate and by cause."""
    for point in curves[against].points:
        lost = point.healthy_mfu - point.effective_mfu
        assert sum(point.parts.values()) == pytest.approx(lost, rel=0, abs=1e-14)
        assert sum(point.causes.values()) == pytest.approx(lost, rel=0, abs=1e-14)
        assert point.loss.mean == pytest.approx(lost, rel=0, abs=1e-14)
        failures = sum(point.parts[key] for key in FAILURE_KEYS)
        assert point.failure_loss.mean == pytest.approx(failures, rel=0, abs=1e-14)
        assert set(point.parts) == set(PARTS)
        assert min(point.parts.values()) >= 0
        assert point.parts["start"] > 0
        assert point.loss.low <= point.loss.mean <= point.loss.high


def test_every_axis_goes_through_the_same_scenario(curves: dict[str, LossCurve]) -> None:
    """The scenario's own value is a point of each axis, and the same point: the same failures, the same figures."""
    assert own_point(curves["gpus"]) == own_point(curves["mtbf"])
    assert own_point(curves["mtbf"]) == own_point(curves["spares"])
    assert own_point(curves["spares"]) == own_point(curves["interval"])


def test_more_failures_lose_more(curves: dict[str, LossCurve]) -> None:
    """With the same random numbers the loss falls as failures get rarer, and so does their number."""
    points = curves["mtbf"].points
    assert [point.value for point in points] == sorted(point.value for point in points)
    losses = [point.failure_loss.mean for point in points]
    assert losses == sorted(losses, reverse=True)
    counts = [point.failures for point in points]
    assert counts == sorted(counts, reverse=True)
    assert [point.healthy_mfu for point in points] == pytest.approx([points[0].healthy_mfu] * len(points), rel=1e-12)


def test_shorter_intervals_lose_less_work_and_save_more(curves: dict[str, LossCurve]) -> None:
    """The two sides of the interval, and the optimum between the ends, near that of the exact renewal form."""
    curve = curves["interval"]
    first, last = curve.points[0], curve.points[-1]
    assert first.parts["checkpoint"] > 4 * last.parts["checkpoint"]
    assert last.parts["lost_work"] > 4 * first.parts["lost_work"]
    markers = {marker.name: marker.value for marker in curve.markers}
    assert set(markers) == {OWN, OPTIMUM, "Young", "Daly", "exact renewal"}
    assert markers[OPTIMUM] == pytest.approx(markers["exact renewal"], rel=0.35)  # some 90 failures: ± 10 % or so
    best = min(curve.points, key=lambda point: point.loss.mean)
    assert 0.4 < best.value / markers["exact renewal"] < 2.5


def test_more_spares_wait_less(curves: dict[str, LossCurve]) -> None:
    """Waiting ends with enough of them; each costs owned GPUs, so that the best number is not the largest."""
    curve = curves["spares"]
    waiting = [point.parts["waiting"] for point in curve.points]
    assert waiting == sorted(waiting, reverse=True)
    assert waiting[0] > 0
    assert waiting[-1] == 0
    assert [point.owned_gpus - point.gpus for point in curve.points] == [8 * point.value for point in curve.points]
    best = max(curve.points, key=lambda point: point.effective_mfu_owned)
    assert best in as_good_as_best(curve.points)
    assert best.value < curve.points[-1].value


def test_a_best_number_of_spares_is_named_only_where_it_is_clear() -> None:
    """45 against 44 %: a mark where the whiskers reach 0.4 points, none where they reach 1.2; over owned GPUs."""

    def points(reach: float) -> list[LossPoint]:
        found = []
        for spares, mfu in ((0.0, 0.44), (1.0, 0.45), (8.0, 0.40)):
            loss = Estimate(0.1, 0.1 - reach, 0.1 + reach)
            found.append(LossPoint(spares, 100, 100, 0.55, 0.45, mfu, loss, loss, {}, {}, 1.0, 1e6))
        return found

    assert best_owned("spares", points(0.004)) == [Marker(BEST_OWNED, 1.0)]
    assert best_owned("spares", points(0.012)) == []
    assert [point.value for point in as_good_as_best(points(0.012))] == [0.0, 1.0]
    assert best_owned("interval", points(0.004)) == []


def test_missing_closed_forms_are_explained(tmp_path: Path) -> None:
    """Where saves hold nothing up there is no Young, no Daly, no exact renewal, and the picture says why."""
    checkpoint = {"interval": "10 min", "save_time": "0 s"}
    curve = failure_loss(failing(tmp_path, checkpoint=checkpoint), "interval", read_wanted(
        "interval", "5 min, 10 min", None, None), runs=2, jobs=1)  # fmt: skip
    assert {marker.name for marker in curve.markers} == {OWN, OPTIMUM}
    assert "Saves hold nothing up: Young, Daly and the exact renewal" in curve.held


def test_larger_jobs_fail_more_often(curves: dict[str, LossCurve]) -> None:
    """Twice the GPUs have twice the nodes that fail, and lose more MFU."""
    points = curves["gpus"].points
    assert [point.gpus for point in points] == [8, 16, 32, 64]
    assert [point.value for point in points] == [8, 16, 32, 64]
    per_hour = [point.failures / point.wall_clock_s for point in points]
    assert per_hour[2] / per_hour[1] == pytest.approx(2.0, rel=0.35)
    assert points[-1].failure_loss.mean > points[0].failure_loss.mean


def test_the_table_has_a_row_per_point(curves: dict[str, LossCurve]) -> None:
    """CSV and JSON hold what the picture shows, with units in the names."""
    curve = curves["interval"]
    lines = curve.csv().splitlines()
    assert len(lines) == 1 + len(curve.points)
    assert lines[0].startswith("interval_s,gpus,")
    figures = curve.figures()
    assert figures["points"][0]["mfu_loss"] == curve.points[0].loss.mean
    assert {f"{key}_mfu_loss" for key in PARTS} <= set(figures["points"][0])
    assert figures["markers"][OWN] == curve.markers[0].value
    assert curves["gpus"].csv().startswith("gpus,owned_gpus,")


def test_the_table_holds_the_stack_that_is_drawn(curves: dict[str, LossCurve]) -> None:
    """By cause: a column for each, which add up to what is lost; no columns by fate."""
    for row in curves["mtbf"].rows("cause"):
        causes = {key: value for key, value in row.items() if key.startswith("by_cause.")}
        assert {"by_cause.node", "by_cause.software", "by_cause.start"} <= set(causes)
        assert sum(causes.values()) == pytest.approx(row["mfu_loss"])
        assert "lost_work_mfu_loss" not in row
    assert "by_cause.node" in curves["mtbf"].csv("cause").splitlines()[0]
    assert "by_cause.node" in curves["mtbf"].figures("cause")["points"][0]


def test_values_that_are_asked_for(tmp_path: Path) -> None:
    """Only they are simulated, in order, once each."""
    wanted = read_wanted("spares", "4, 0,4", None, None)
    curve = failure_loss(failing(tmp_path), "spares", wanted, runs=2, jobs=1)
    assert [point.value for point in curve.points] == [0, 4]
    times = read_wanted("mtbf", "1 h, 30 min", None, None)
    assert [p.value for p in failure_loss(failing(tmp_path), "mtbf", times, runs=2, jobs=1).points] == [1800.0, 3600.0]


def test_a_range_is_filled_evenly_in_its_logarithm() -> None:
    """From 1 to 1024 in equal factors, with the own value among them."""
    values = spread(100.0, (), Wanted((), 1.0, 1024.0), least=0.1, most=1e6)
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(1024.0)
    assert 100.0 in values
    assert len(values) == 13


def test_a_stated_interval_stays_and_a_rule_is_followed(tmp_path: Path) -> None:
    """Against the time between failures: what is held is said, and the saves show it."""
    stated = failure_loss(failing(tmp_path), "mtbf", Wanted((1800.0, 7200.0)), runs=2, jobs=1)
    rule = failure_loss(
        failing(tmp_path, checkpoint={"interval": "optimal", "save_time": "20 s"}),
        "mtbf",
        Wanted((1800.0, 7200.0)),
        runs=2,
        jobs=1,
    )
    assert "interval is held" in stated.held
    assert "follows its rule (optimal)" in rule.held
    spent = [[point.parts["checkpoint"] * point.wall_clock_s for point in curve.points] for curve in (stated, rule)]
    assert 0.7 < spent[0][0] / spent[0][1] < 1.4
    assert 1.7 < spent[1][0] / spent[1][1] < 2.3  # sqrt(7200 / 1800) = 2 times as many saves


def test_an_interval_that_is_to_be_simulated(tmp_path: Path) -> None:
    """The scenario's own interval is the simulated optimum then."""
    scenario = failing(tmp_path, checkpoint={"interval": "simulated", "save_time": "20 s"})
    curve = failure_loss(scenario, "interval", runs=2, jobs=1)
    markers = {marker.name: marker.value for marker in curve.markers}
    assert markers[OWN] == markers[OPTIMUM]


def test_an_interruption_keeps_what_was_finished(tmp_path: Path) -> None:
    """Ctrl-C after the third of fifty replications: a curve of three."""

    def tell(what: str, fraction: float) -> None:
        if what == "replications" and fraction >= 0.06:
            raise KeyboardInterrupt

    wanted = Wanted((0.0, 2.0))
    curve = failure_loss(failing(tmp_path), "spares", wanted, runs=50, jobs=1, tell=tell)
    assert curve.runs == 3
    assert curve.points == failure_loss(failing(tmp_path), "spares", wanted, runs=3, jobs=1).points


def test_values_that_never_end_are_left_out_or_refused(tmp_path: Path) -> None:
    """Of a range with the reason, of those asked for as an error."""
    scenario = failing(tmp_path)
    curve = failure_loss(scenario, "mtbf", Wanted((), 1.0, 3600.0), runs=2, jobs=1)
    assert curve.left_out
    assert "end" in curve.left_out[0].reason
    with pytest.raises(ScenarioError, match="end"):
        failure_loss(scenario, "mtbf", Wanted((1.0,)), runs=2, jobs=1)


@pytest.mark.parametrize(
    ("against", "texts", "says"),
    [
        ("gpus", ("many", None, None), "whole number of GPUs"),
        ("spares", ("-1", None, None), "whole number of machines"),
        ("interval", ("10", None, None), "unit"),
        ("mtbf", ("0 s", None, None), "more than zero"),
        ("mtbf", ("1 h", "1 h", None), "leave --from and --to out"),
    ],
)
def test_values_that_cannot_be_read(against: str, texts: tuple[str | None, ...], says: str) -> None:
    """The text, and what is allowed."""
    with pytest.raises(ScenarioError, match=says):
        read_wanted(against, *texts)


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    """Each says what is missing and how to write it."""
    scenario = failing(tmp_path)
    with pytest.raises(ScenarioError, match="'weather' is nothing to draw against; use gpus, mtbf, interval, spares"):
        failure_loss(scenario, "weather")
    with pytest.raises(ScenarioError, match="2 or more"):
        failure_loss(scenario, "gpus", runs=1)
    with pytest.raises(ScenarioError, match="--from must be the smaller"):
        failure_loss(scenario, "mtbf", Wanted((), 7200.0, 3600.0))
    with pytest.raises(ScenarioError, match="out of range"):
        failure_loss(scenario, "interval", Wanted((1e-6,)))
    with pytest.raises(LayoutError, match=r"no whole number of replicas of 8 GPUs.*use 8 or 16"):
        failure_loss(scenario, "gpus", Wanted((12.0,)))
    with pytest.raises(ScenarioError, match=r"reliability: \{preset: default\}"):
        failure_loss(scenario.model_copy(update={"reliability": None}), "spares")
    quiet = load_small(tmp_path, reliability={"failures": []})
    with pytest.raises(ScenarioError, match="no failure class has a rate"):
        failure_loss(quiet, "mtbf")
