"""Replications: the same whatever the number of processes, stopped when sure enough or asked to, compared in pairs."""

from __future__ import annotations

import json
import math
import multiprocessing
from dataclasses import replace
from typing import Any

import pytest

from simulator.errors import ScenarioError
from simulator.physics.campaign.plan import CampaignPlan, Duration, Hazard, JobFailure, Phase, Tier
from simulator.records import CAMPAIGN_KEYS
from simulator.results.campaign import Fleet
from simulator.studies import replicate as study
from simulator.studies.replicate import BLOCK, Run, read_precision, replicate

PLAN = CampaignPlan(
    phases=(Phase("training", 20_000, 10.0, 5e15, (Tier("storage", 60, None, 20.0, 0.0, 40.0),)),),
    machines=16,
    failures=(
        JobFailure("gpu", Hazard("poisson", rate=1 / 7200), detection=Duration(300.0), machine_share=0.0),
        JobFailure("software", Hazard("poisson", rate=1 / 20000), detection=Duration(60.0), machine_share=0.0),
    ),
    restart=Duration(300.0),
)
FLEET = Fleet(job_gpus=128, spare_gpus=0, gpus_per_node=8, peak=1e15, price_per_gpu_hour=2.0)
RUN = Run("plain", PLAN, FLEET)
SLOWER = Run("slower", replace(PLAN, restart=Duration(600.0)), FLEET)


def text(found: Any) -> str:
    """As the command line prints it: no NaN."""
    return json.dumps(found.figures(), allow_nan=False)


def test_any_number_of_processes_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, or in two processes elsewhere: equal figures and equal rows, in order."""
    here = replicate([RUN, SLOWER], 7, number=30, jobs=1)
    monkeypatch.setattr(study, "_WORTH_PROCESSES", 0.0)
    monkeypatch.setattr(study, "_CHUNK", 0.0)
    elsewhere = replicate([RUN, SLOWER], 7, number=30, jobs=2)
    assert text(elsewhere) == text(here)
    assert elsewhere.csv() == here.csv()
    assert multiprocessing.active_children() == []


def test_each_replication_is_another_and_another_seed_too() -> None:
    """Thirty replications are thirty different runs; fewer are the first of them."""
    found = replicate([RUN], 7, number=30)
    days = found.values(0, "finish_days")
    assert len(set(days)) == 30
    assert replicate([RUN], 7, number=4).values(0, "finish_days") == days[:4]
    assert replicate([RUN], 8, number=4).values(0, "finish_days") != days[:4]


def test_figures_are_those_of_the_rows() -> None:
    """Mean, quantiles in order, least and most by hand; loss by fate and by cause adds up to healthy - effective."""
    found = replicate([RUN], 7, number=41)
    (scenario,) = found.figures()["scenarios"]
    days = sorted(found.values(0, "finish_days"))
    figures = scenario["figures"]["finish_days"]
    assert (figures["least"], figures["p10"], figures["p50"], figures["p90"], figures["most"]) == (
        days[0], days[4], days[20], days[36], days[40]
    )  # fmt: skip
    assert figures["mean"] == pytest.approx(sum(days) / 41, rel=1e-12)
    assert figures["mean_interval"][0] < figures["mean"] < figures["mean_interval"][1]
    assert figures["p50_interval"][0] < figures["p50"] < figures["p50_interval"][1]
    loss = scenario["mfu_loss"]
    healthy = 5e15 / (10.0 * 1e15)
    assert loss["total"] == pytest.approx(healthy - scenario["figures"]["effective_mfu"]["mean"], rel=1e-12)
    assert tuple(loss["parts"]) == CAMPAIGN_KEYS[1:]
    assert math.fsum(loss["parts"].values()) == pytest.approx(loss["total"], rel=1e-12)
    assert math.fsum(loss["by_cause"].values()) == pytest.approx(loss["total"], rel=1e-12)
    assert loss["failure_induced"] == pytest.approx(scenario["figures"]["failure_induced_mfu_loss"]["mean"], rel=1e-12)
    assert scenario["figures"]["energy_kwh"] is None


def test_one_replication_has_no_interval() -> None:
    """Figures, but nothing about how sure they are; and it can be printed."""
    found = replicate([RUN], 7, number=1)
    figures = json.loads(text(found))
    assert figures["scenarios"][0]["figures"]["finish_days"]["mean_interval"] is None
    assert figures["scenarios"][0]["figures"]["finish_days"]["p50_interval"] == [None, None]
    assert figures["precision"] == {"asked": None, "reached": None}


def test_pairs_are_surer_than_their_parts() -> None:
    """A restart of 600 s instead of 300 s: longer in every replication, by about 300 s a failure and a little more.

    The same failures: the difference is known at least twice as well than from independent replications, whose
    variances would add up.
    """
    found = replicate([RUN, SLOWER], 7, number=60)
    first, second = found.values(0, "finish_days"), found.values(1, "finish_days")
    assert all(a < b for a, b in zip(first, second, strict=True))
    difference = found.differences(1)["finish_days"]
    assert difference is not None
    assert difference.half_width is not None
    spread = [found.summaries[position]["finish_days"]["deviation"] for position in (0, 1)]
    assert difference.deviation < math.hypot(*spread) / 2
    failures = found.summaries[1]["failures"]["mean"]
    assert 0.9 < difference.value * 86400 / (300 * failures) < 1.3
    (entry,) = found.figures()["differences"]
    assert (entry["name"], entry["from"]) == ("slower", "plain")
    assert found.differences(1)["energy_kwh"] is None


# --- stopping --------------------------------------------------------------------------------------------------------


def test_a_precision_stops_at_a_whole_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first look at which the interval is short enough; the same with other processes; not before two blocks."""
    exact = replicate([RUN], 7, precision=0.007)
    done = len(exact.rows)
    assert exact.stopped == "precision"
    assert exact.asked == study.MOST_RUNS
    assert exact.reached is not None
    assert exact.reached <= 0.007
    assert done % BLOCK == 0
    assert done > 2 * BLOCK
    before = replicate([RUN], 7, number=done - BLOCK).reached
    assert before is not None
    assert before > 0.007
    assert len(replicate([RUN], 7, precision=0.5).rows) == 2 * BLOCK
    monkeypatch.setattr(study, "_PATIENCE", 0.0)
    assert text(replicate([RUN], 7, precision=0.007, jobs=2)) == text(exact)


def test_a_precision_that_is_not_reached_says_so() -> None:
    """The number is the most that is done."""
    found = replicate([RUN], 7, number=45, precision=1e-6)
    assert (len(found.rows), found.stopped) == (45, "number")
    assert found.figures()["precision"]["reached"] > 1e-6


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupt_keeps_what_was_finished(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the ninth: nine replications, the same as nine that were asked for, and no process is left."""
    if processes > 1:
        monkeypatch.setattr(study, "_WORTH_PROCESSES", 0.0)

    def tell(_what: str, fraction: float) -> None:
        if fraction * 1000 >= 9:
            raise KeyboardInterrupt

    found = replicate([RUN], 7, number=1000, jobs=processes, tell=tell)
    assert (found.stopped, len(found.rows), found.asked) == ("interrupted", 9, 1000)
    assert found.rows == replicate([RUN], 7, number=9).rows
    assert multiprocessing.active_children() == []


def test_an_interrupt_before_anything_is_finished_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to report."""

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "replication", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replicate([RUN], 7, number=3)


def test_progress_counts_replications() -> None:
    """Up to 1."""
    told: list[tuple[str, float]] = []
    replicate([RUN], 7, number=4, tell=lambda what, fraction: told.append((what, fraction)))
    assert told == [("replications", 0.25), ("replications", 0.5), ("replications", 0.75), ("replications", 1.0)]


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, "--runs: 0 replications"),
        ({"number": -3}, "--runs: -3 replications"),
        ({"jobs": 0}, "--jobs: 0 processes"),
        ({"precision": 0.0}, "--precision: a precision of 0"),
        ({"precision": 1.0}, "--precision: a precision of 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    """Each names its option."""
    with pytest.raises(ScenarioError, match=message):
        replicate([RUN], 7, **options)


def test_a_precision_is_a_share() -> None:
    """Percent or a fraction."""
    assert read_precision("0.5%") == read_precision(" 0.5 % ") == read_precision("0.005") == 0.005
    for wrong in ("half", "", "%", "0", "100%", "-1%", "nan"):
        with pytest.raises(ScenarioError, match=r"--precision: .*examples: 0.5%, 0.005"):
            read_precision(wrong)


def test_a_process_that_is_killed_is_told_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, say: one message, not a traceback, and not for ever."""
    monkeypatch.setattr(study, "_WORTH_PROCESSES", 0.0)

    def tell(_what: str, fraction: float) -> None:
        if fraction > 2 / 500:
            for process in multiprocessing.active_children():
                process.kill()

    with pytest.raises(ScenarioError, match="--jobs: a process that replicated was ended"):
        replicate([RUN], 7, number=500, jobs=2, tell=tell)
