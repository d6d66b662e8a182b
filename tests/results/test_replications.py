"""Quantiles, differences and mean losses of replications, by hand on three of them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from math import fsum

import pytest

from simulator.results.campaign import campaign_figures
from simulator.results.replications import FIGURES, Replications, Row, reached_precision, row_of
from simulator.results.statistics import student_quantile
from tests.results.test_campaign_figures import FLEET, PLAN, RESULT

DAY = 86400.0


def a_row(lost_days: float, causes: dict[str, float]) -> Row:
    """A run of 7 productive days that loses so many to its causes."""
    time = dict.fromkeys(RESULT.time_s, 0.0) | {"productive": 7 * DAY, "lost_work": lost_days * DAY}
    record = replace(
        RESULT, wall_clock=(7 + lost_days) * DAY, time_s=time, failures={"gpu": round(lost_days)},
        by_cause={cause: {"lost_work": days * DAY} for cause, days in causes.items()},
    )  # fmt: skip
    return row_of(campaign_figures(replace(FLEET, power=None), PLAN, record))


ROWS = (
    (a_row(1, {"gpu": 1}), a_row(2, {"gpu": 2})),
    (a_row(2, {"gpu": 1, "nic": 1}), a_row(4, {"gpu": 3, "nic": 1})),
    (a_row(3, {"gpu": 3}), a_row(3, {"gpu": 3})),
)
FOUND = Replications(("a", "b"), 5, 3, None, "number", ROWS)


def test_figures_by_hand() -> None:
    """8, 9 and 10 days: mean 9, deviation 1, P10 8.2; all of a figure that is not known is None."""
    days = FOUND.summaries[0]["finish_days"]
    assert (days["mean"], days["p50"], days["least"], days["most"]) == (9.0, 9.0, 8.0, 10.0)
    assert days["deviation"] == pytest.approx(1.0)
    assert days["p10"] == pytest.approx(8.2)
    half = student_quantile(2) / 3**0.5
    assert days["mean_interval"] == pytest.approx([9 - half, 9 + half])
    assert (days["p10_interval"], days["p50_interval"], days["p90_interval"]) == (
        [None, 10.0],
        [None, None],
        [8.0, None],
    )
    assert FOUND.summaries[0]["energy_kwh"] is None
    assert tuple(FOUND.summaries[0]) == FIGURES


def test_losses_by_hand() -> None:
    """Points lost are healthy MFU times lost share: 1/8, 2/9 and 3/10; a cause that did not strike cost nothing."""
    loss, healthy = FOUND.mfu_loss(0), 320e15 / (1e15 * 7 * DAY)
    assert loss["total"] == pytest.approx(healthy * (1 / 8 + 2 / 9 + 3 / 10) / 3)
    assert loss["failure_induced"] == pytest.approx(loss["total"])
    assert loss["by_cause"]["nic"] == pytest.approx(healthy * (1 / 9) / 3)
    assert list(loss["by_cause"]) == ["gpu", "nic"], "the costliest first"
    assert fsum(loss["by_cause"].values()) == pytest.approx(loss["total"], rel=1e-14)
    assert fsum(loss["parts"].values()) == pytest.approx(loss["total"], rel=1e-14)


def test_differences_are_in_pairs() -> None:
    """+1, +2 and 0 days: mean 1, deviation 1."""
    difference = FOUND.differences(1)["finish_days"]
    assert difference is not None
    assert (difference.value, difference.deviation) == pytest.approx((1.0, 1.0))
    assert FOUND.differences(1)["energy_kwh"] is None
    assert FOUND.differences(0)["finish_days"] == (0.0, 0.0, 0.0)


def test_the_least_certain_run_sets_the_precision() -> None:
    """Half-width over mean: of a, t / sqrt(3) over 9, of b (9, 11, 10 days) the same over 10."""
    assert reached_precision(ROWS) == pytest.approx(student_quantile(2) / 3**0.5 / 9)
    assert reached_precision(ROWS[:1]) is None


def test_the_table_has_a_line_for_each() -> None:
    """Six lines that Python's reader understands, full precision, blanks for what is not known, names quoted."""
    named = replace(FOUND, names=('a, "b"', "c"))
    lines = list(csv.DictReader(io.StringIO(named.csv())))
    assert len(lines) == 6
    assert [(line["replication"], line["scenario"]) for line in lines[:3]] == [
        ("0", 'a, "b"'),
        ("0", "c"),
        ("1", 'a, "b"'),
    ]
    assert float(lines[5]["finish_days"]) == ROWS[2][1]["finish_days"]
    assert lines[0]["energy_kwh"] == ""
    assert {"mfu_loss", "mfu_loss.lost_work", "failure_induced_mfu_loss", "cost_usd"} <= set(lines[0])


def test_the_json_is_whole() -> None:
    """No NaN; scenarios, if they are known."""
    figures = json.loads(json.dumps(FOUND.figures(), allow_nan=False))
    assert (figures["replications"], figures["asked"], figures["stopped"], figures["seed"]) == (3, 3, "number", 5)
    assert figures["scenarios"][0]["scenario"] is None
    assert replace(FOUND, scenarios=({"name": "x"}, {})).figures()["scenarios"][0]["scenario"] == {"name": "x"}
