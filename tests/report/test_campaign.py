"""The run as people read it: the figures of the JSON output, in a waterfall that ends where it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.report.campaign import campaign_report
from simulator.report.layout import render
from simulator.results.campaign import campaign_figures
from tests.report.test_tables import assert_fits, row
from tests.results.test_campaign_figures import FLEET, PLAN, RESULT


def shown(**changes: Any) -> str:
    """Text of the hand-made campaign."""
    return render(campaign_report({**campaign_figures(FLEET, PLAN, RESULT), **changes}, 13e12))


def test_the_summary_by_hand() -> None:
    """The numbers of test_campaign_figures."""
    text = shown()
    assert text.startswith("Run of 50 steps, 13 T tokens\n")
    assert row(text, "wall-clock") == ["16.7 min"]
    assert row(text, "effective MFU") == ["32.0 %", "(over all 24 GPUs 21.3 %)"]
    assert row(text, "healthy MFU") == ["53.3 %", "(21.33 points lost, 13.87 of them to failures)"]
    assert row(text, "goodput") == ["60.0 %"]
    assert row(text, "failures") == ["45", "(5 stopped the job: 2.8 min up between them, 30.0 s down for each)"]
    assert row(text, "spares") == ["2 hot machines drawn, 0.3 in repair in the mean, 1 waits for one"]
    assert row(text, "GPU-hours") == ["6.7", "(16 + 8 spare GPUs)"]
    assert row(text, "energy") == ["2.911 kWh", "(0.2911 USD)"]
    assert row(text, "cost") == ["13.33 USD", "(3.467 USD of it in the time that failures took)"]


def test_the_waterfall_goes_from_healthy_to_effective() -> None:
    """Points that were taken are negative and add up; fates of nothing have no row; shares are of wall-clock."""
    text = shown()
    waterfall = text.split("Where the run goes (MFU in points)\n")[1].split("\n\n")[0].splitlines()[1:]
    names = [line[:10].strip() for line in waterfall]
    assert names == ["healthy", "lost work", "checkpoint", "detection", "restart", "waiting", "degraded", "straggling",
                     "evaluation", "data stall", "effective"]  # fmt: skip
    taken = [float(row("\n".join(waterfall), name)[2]) for name in names]
    assert taken[0] + sum(taken[1:-1]) == pytest.approx(taken[-1], abs=0.06)
    assert row(text, "lost work")[:3] == ["100.0 s", "10.0 %", "-5.33"]
    assert row(text, "effective")[:3] == ["16.7 min", "100.0 %", "32.00"]
    ends = [len(line.rstrip()) for line in waterfall[:-1]]
    assert ends == sorted(ends, reverse=True), "each bar begins where the one before it ended"


def test_causes_come_the_costliest_first() -> None:
    """How often each struck, and what it took in time, MFU and money; without a price there is no column of costs."""
    text = shown()
    assert row(text, "gpu") == ["2", "3.5 min", "105.0 s", "21.0 %", "-11.20", "2.8 USD"]
    assert row(text, "slow-hosts") == ["20.0 s", "2.0 %", "-1.07", "0.2667 USD"]
    causes = text.split("What took it\n")[1].splitlines()
    assert [line.split()[0] for line in causes[1:4]] == ["gpu", "checkpoint", "software"]
    unpriced = shown(cost_usd=None, failure_cost_usd=None)
    assert row(unpriced, "gpu")[-1] == "-11.20"
    assert row(unpriced, "cost") == ["no price given"]


def test_many_causes_are_one_row() -> None:
    """Twenty classes: twelve rows and the rest together, nothing lost."""
    names = [f"class-{number:02}" for number in range(20)]
    causes = {name: {"lost_work": 100.0 / 20} for name in names} | {"checkpoint": {"checkpoint": 60.0}}
    record = replace(RESULT, by_cause=causes, failures=dict.fromkeys(names, 1))
    text = render(campaign_report(campaign_figures(FLEET, PLAN, record), 1e12))
    others = next(line for line in text.splitlines() if " others  " in line)
    assert others.split()[:2] == ["10", "others"]
    # 20 causes of 5 s, a checkpoint of 60 s and 240 s that nobody answers for: 10 of the first are in 12 rows
    assert others.split()[2:5] == ["10", "50.0", "s"]


def test_a_quiet_run_says_little() -> None:
    """No failures, no losses: no causes, no spares, no brackets."""
    quiet = replace(
        RESULT,
        time_s=dict.fromkeys(RESULT.time_s, 0.0) | {"productive": 600.0},
        wall_clock=600.0, failures={}, by_cause={}, draws={}, machine_s={},
    )  # fmt: skip
    text = render(campaign_report(campaign_figures(replace(FLEET, spare_gpus=0), PLAN, quiet), 1e12))
    assert "What took it" not in text
    assert row(text, "failures") == ["0"]
    assert row(text, "healthy MFU") == row(text, "effective MFU") == ["53.3 %"]
    assert "spares" not in text


def test_phases_have_a_table_where_there_are_several() -> None:
    """Steps, pace and both MFUs of each."""
    assert row(shown(), "short") == ["40", "10.000 s", "11.7 min", "40.0 %", "22.9 %"]
    one = replace(PLAN, phases=PLAN.phases[:1])
    record = replace(RESULT, steps=40, phases=(1000.0,))
    assert "Phases" not in render(campaign_report(campaign_figures(FLEET, one, record), 1e12))


def test_hours_show_where_they_are_known() -> None:
    """Worst hour, tenth percentile and median."""
    text = shown(sliding_ettr={"worst": 0.0, "p10": 0.5, "median": 0.875, "hours": 4})
    assert row(text, "goodput") == ["60.0 %", "(by the hour: worst 0.0 %, P10 50.0 %, median 87.5 %)"]


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_overflows(width: int) -> None:
    """Tables keep to the width; numbers stay whole."""
    text = render(campaign_report(campaign_figures(FLEET, PLAN, RESULT), 13e12), width=width)
    assert_fits(text, width)
    assert "…" not in text
