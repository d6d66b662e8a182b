"""Figures of a campaign: worked out by hand on 60 steps, and what must add up whatever the record says."""

from __future__ import annotations

from dataclasses import replace
from math import fsum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.campaign.plan import ZERO, CampaignPlan, Hazard, JobFailure, Phase, Pool
from simulator.records import CAMPAIGN_KEYS, FAILURE_KEYS, CampaignResult
from simulator.results.campaign import (
    BADPUT_TYPES,
    Draw,
    Fleet,
    badput,
    campaign_figures,
    fleet_of,
    gpu_hour_fates,
    kept_flops,
    mfu_loss,
    sliding_ettr,
)
from tests.small import load_small

NEVER = Hazard("times")
PLAN = CampaignPlan(
    phases=(Phase("short", 40, 10.0, 4e15, ()), Phase("long", 10, 20.0, 16e15, ())),
    machines=2,
    failures=(
        JobFailure("gpu", NEVER),
        JobFailure("software", NEVER, machine_share=0.0),
        JobFailure("flap", NEVER, effect="pause"),
    ),
)
FLEET = Fleet(
    job_gpus=16,
    spare_gpus=8,
    gpus_per_node=8,
    peak=1e15,
    price_per_gpu_hour=2.0,
    power=Draw(busy=700.0, idle=200.0, price=0.1),
)
TIME = dict.fromkeys(CAMPAIGN_KEYS, 0.0) | {
    "productive": 600.0, "lost_work": 100.0, "checkpoint": 60.0, "detection": 40.0, "restart": 70.0, "waiting": 50.0,
    "degraded": 10.0, "straggling": 20.0, "evaluation": 30.0, "data_stall": 20.0,
}  # fmt: skip
CAUSES = {
    "gpu": {"lost_work": 80.0, "detection": 30.0, "restart": 50.0, "waiting": 50.0},
    "software": {"lost_work": 20.0, "detection": 10.0, "restart": 10.0},
    "flap": {"degraded": 10.0},
    "start": {"restart": 10.0},
    "checkpoint": {"checkpoint": 60.0},
    "slow-hosts": {"straggling": 20.0},
    "evaluation": {"evaluation": 30.0},
    "loader": {"data_stall": 20.0},
}
RESULT = CampaignResult(
    1000.0,
    50,
    TIME,
    {"gpu": 2, "software": 3, "flap": 40},
    by_cause=CAUSES,
    phases=(700.0, 300.0),
    saves={"storage": 9},
    recoveries={"storage": 5},
    machine_s={"repair": 300.0, "idle": 750.0, "borrowed": 0.0},
    draws={"hot": 2, "waits": 1},
)


def test_mfu_by_hand() -> None:
    """40 steps of 4 PFLOP in 10 s and 10 of 16 in 20 s: 320 PFLOP in 600 s of 1 PFLOP/s are 53.3 %, in 1000 s 32 %.

    1000 s of loss-free training would have been 53.3 %: each second that is not productive costs 0.0533 points.
    """
    figures = campaign_figures(FLEET, PLAN, RESULT)
    assert figures["kept_model_flops"] == 320e15
    assert figures["healthy_mfu"] == pytest.approx(320 / 600, rel=1e-15)
    assert figures["effective_mfu"] == pytest.approx(0.32, rel=1e-15)
    assert figures["effective_mfu_owned"] == pytest.approx(0.32 * 16 / 24, rel=1e-15)
    loss, second = figures["mfu_loss"], 320 / 600 / 1000
    assert loss["total"] == pytest.approx(320 / 600 - 0.32, rel=1e-15)
    assert loss["parts"] == pytest.approx({key: second * TIME[key] for key in CAMPAIGN_KEYS[1:]})
    assert loss["by_cause"] == pytest.approx(
        {"gpu": 210 * second, "software": 40 * second, "flap": 10 * second, "start": 10 * second,
         "checkpoint": 60 * second, "slow-hosts": 20 * second, "evaluation": 30 * second, "loader": 20 * second}
    )  # fmt: skip
    induced = 100 + 40 + 60 + 50 + 10  # without the 10 s of the first start
    assert loss["failure_induced"] == figures["failure_induced_mfu_loss"] == pytest.approx(induced * second)


def test_goodput_by_hand() -> None:
    """600 of 1000 s are productive; the others have names of ml-goodput-measurement."""
    figures = campaign_figures(FLEET, PLAN, RESULT)
    assert figures["goodput"] == figures["ettr"] == 0.6
    assert figures["badput_s"] == {
        "WASTED_PROGRESS_FROM_DISRUPTION": 100.0,
        "UNPRODUCTIVE_CHECKPOINT_SAVE_TIME": 60.0,
        "INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION": 150.0,
        "OTHER": 30.0,
        "CUSTOM_BADPUT_EVENTS": 30.0,
        "DATA_LOADING_SYNC": 20.0,
        "PROGRAM_STARTUP": 10.0,
        "ELASTIC_SLICE_DOWN": 0.0,
    }
    elastic = badput(TIME, {"elastic": {"degraded": 4.0}})
    assert (elastic["ELASTIC_SLICE_DOWN"], elastic["OTHER"]) == (4.0, 26.0)


def test_interruptions_by_hand() -> None:
    """Five failures stopped the job for 150 s; 10 s of start are neither up nor down. Pauses stop nothing."""
    figures = campaign_figures(FLEET, PLAN, RESULT)
    assert (figures["failures"], figures["interruptions"]) == (45, 5)
    assert figures["interruptions_by_class"] == {"gpu": 2, "software": 3}
    assert figures["mttr_s"] == pytest.approx(150 / 5)
    assert figures["mttf_s"] == pytest.approx((1000 - 150 - 10) / 5)
    assert figures["saves"] == {"storage": 9}
    assert figures["recoveries"] == {"storage": 5}
    assert figures["spares"] == {"hot": 2, "waits": 1, "repair_mean": 0.3, "idle_mean": 0.75, "borrowed_mean": 0.0}
    first, second = figures["phases"]
    assert (first["name"], first["wall_clock_s"], first["healthy_mfu"]) == ("short", 700.0, pytest.approx(0.4))
    assert second["effective_mfu"] == pytest.approx(160 / 300)


def test_loss_spikes_skip_data_and_are_no_interruptions() -> None:
    """Three spikes of 4 steps: 12 of 50 steps of 100 tokens, 40 of them, and 350, 10 of them: 150 in the mean."""
    spike = JobFailure("spike", NEVER, effect="rewind", machine_share=0.0, rewind=5, skip=4)
    phases = tuple(phase._replace(tokens=tokens) for phase, tokens in zip(PLAN.phases, (100.0, 350.0), strict=True))
    plan = replace(PLAN, failures=(*PLAN.failures, spike), phases=phases)
    figures = campaign_figures(FLEET, plan, replace(RESULT, failures={**RESULT.failures, "spike": 3}))
    assert (figures["failures"], figures["interruptions"], figures["mttr_s"]) == (48, 5, 30.0)
    assert (figures["skipped_batches"], figures["skipped_tokens"]) == (12, pytest.approx(12 * 150))


def test_machines_that_an_elastic_job_misses_are_in_repair() -> None:
    """Of 300 s in repair 250 s are the spare's place; for 50 s the job had 8 GPUs less, first while it was degraded.

    10 s of degraded time are 160 GPU-s of the 400; the other 240 are of the 800 GPU-s of waiting. They draw no power.
    """
    figures = campaign_figures(FLEET, replace(PLAN, policy="elastic"), RESULT)
    hours = figures["gpu_hour_fates"]
    assert fsum(hours.values()) == pytest.approx(figures["gpu_hours"])
    assert hours["in_repair"] * 3600 == pytest.approx(8 * 300)
    assert (hours["degraded"], hours["waiting"] * 3600) == (0.0, pytest.approx(16 * 50 - 240))
    assert hours["productive"] * 3600 == pytest.approx(16 * 600)
    joule = (16 * 760 - 160) * 700 + (16 * 240 - 240 + 8 * 750) * 200
    assert figures["energy_kwh"] == pytest.approx(joule / 3.6e6)
    longer = gpu_hour_fates(FLEET, TIME, {**RESULT.machine_s, "repair": 450.0}, "elastic")
    left = 8 * 200 - 16 * 60
    assert longer["productive"] * 3600 == pytest.approx(16 * 600 * (1 - left / (16 * 940)))
    assert fsum(longer.values()) == pytest.approx(figures["gpu_hours"])


def test_gpu_hours_and_costs_by_hand() -> None:
    """24 GPUs for 1000 s are 6.667 GPU-hours and 13.33 USD, 26 % of it in the time that failures took.

    Energy: the job's 16 GPUs work for 760 s at 700 W and rest for 240 s at 200 W, the spare machine's 8 rest for 750 s
    and are in repair for 250 s.
    """
    figures = campaign_figures(FLEET, PLAN, RESULT)
    hours = figures["gpu_hour_fates"]
    assert figures["gpu_hours"] == pytest.approx(24 * 1000 / 3600)
    assert figures["job_gpu_hours"] == pytest.approx(16 * 1000 / 3600)
    assert hours["productive"] == pytest.approx(16 * 600 / 3600)
    assert (hours["idle_spare"], hours["in_repair"]) == pytest.approx((8 * 750 / 3600, 8 * 250 / 3600))
    assert figures["cost_usd"] == pytest.approx(48 * 1000 / 3600)
    assert figures["failure_cost_usd"] == pytest.approx(48 * 260 / 3600)
    joule = 16 * 760 * 700 + (16 * 240 + 8 * 750) * 200
    assert figures["energy_kwh"] == pytest.approx(joule / 3.6e6)
    assert figures["energy_cost_usd"] == pytest.approx(0.1 * joule / 3.6e6)


def test_what_is_not_known_is_null() -> None:
    """No price, no power, no records, nothing that failed: null, not zero."""
    quiet = CampaignResult(10.0, 1, {**dict.fromkeys(CAMPAIGN_KEYS, 0.0), "productive": 10.0}, {})
    fleet = replace(FLEET, price_per_gpu_hour=None, power=None, spare_gpus=0)
    figures = campaign_figures(fleet, replace(PLAN, phases=PLAN.phases[:1]), quiet)
    for key in ("cost_usd", "failure_cost_usd", "energy_kwh", "energy_cost_usd", "mttf_s", "mttr_s", "sliding_ettr"):
        assert figures[key] is None, key
    assert figures["effective_mfu_owned"] == figures["effective_mfu"] == figures["healthy_mfu"]
    assert figures["mfu_loss"] == {
        "total": 0.0, "failure_induced": 0.0, "parts": dict.fromkeys(CAMPAIGN_KEYS[1:], 0.0), "by_cause": {}
    }  # fmt: skip
    (phase,) = figures["phases"]
    assert phase["wall_clock_s"] == 10.0, "a single phase takes the whole run"
    unpriced = replace(FLEET, power=Draw(500.0, 100.0))
    assert campaign_figures(unpriced, PLAN, RESULT)["energy_cost_usd"] is None


def test_a_record_without_causes_says_so() -> None:
    """Time that no cause answers for is `other`, all of it."""
    figures = campaign_figures(FLEET, PLAN, replace(RESULT, by_cause={"gpu": {"lost_work": 25.0}}))
    assert figures["time_by_cause_s"]["gpu"] == {"lost_work": 25.0}
    assert figures["time_by_cause_s"]["other"]["lost_work"] == 75.0
    assert fsum(figures["mfu_loss"]["by_cause"].values()) == pytest.approx(figures["mfu_loss"]["total"], rel=1e-14)


def test_every_figure_is_defined() -> None:
    """Each key of the `campaign` object stands in docs/definitions.md, each fate and each type of badput too."""
    text = (Path(__file__).parents[2] / "docs" / "definitions.md").read_text(encoding="utf-8")
    figures = campaign_figures(FLEET, PLAN, RESULT)
    fates = {f"{key}_s" for key in CAMPAIGN_KEYS}
    names = {*figures, *CAMPAIGN_KEYS, *figures["badput_s"], *figures["gpu_hour_fates"]} - fates
    plain = {"steps", "job_gpus", "spare_gpus"}
    assert [name for name in sorted(names - plain) if f"`{name}`" not in text] == []


def test_every_fate_has_one_name() -> None:
    """Each fate but `productive` is one type of badput."""
    assert tuple(BADPUT_TYPES) == CAMPAIGN_KEYS[1:]


def test_hours_slide_by_hand() -> None:
    """Three whole hours of 100 %, 50 % and 0 %, and half an hour that does not count; a run of half an hour does."""
    assert sliding_ettr((3600.0, 1800.0, 0.0, 1800.0), 3.5 * 3600) == {
        "worst": 0.0, "p10": pytest.approx(0.1), "median": 0.5, "hours": 3
    }  # fmt: skip
    assert sliding_ettr((900.0,), 1800.0) == {"worst": 0.5, "p10": 0.5, "median": 0.5, "hours": 1}
    assert sliding_ettr((), 1800.0) is None


def test_steps_that_were_kept_count_from_the_first() -> None:
    """45 of 50 steps: all of the first phase, five of the second."""
    assert kept_flops(PLAN.phases, 45) == 40 * 4e15 + 5 * 16e15


def test_the_fleet_is_that_of_the_scenario(tmp_path: Path) -> None:
    """16 A100 of 312 TFLOP/s and 400 W for the job, three machines of 8 beside them, at 2 USD an hour."""
    pools = {"hot": Pool(1, ZERO), "warm": Pool(2, ZERO), "preempted": Pool(7, ZERO)}
    fleet = fleet_of(load_small(tmp_path), replace(PLAN, **pools))
    assert (fleet.job_gpus, fleet.owned, fleet.gpus_per_node, fleet.peak) == (16, 40, 8, 16 * 312e12)
    assert fleet.price_per_gpu_hour == pytest.approx(2.0)
    assert fleet.power is not None
    power = load_small(tmp_path).cluster.power
    assert fleet.power.busy == pytest.approx((400.0 + power.host_per_gpu) * power.pue)
    assert fleet.power.idle == pytest.approx(fleet.power.busy * power.idle)


# --- laws ------------------------------------------------------------------------------------------------------------

spans = st.floats(0.0, 1e7)
times = st.fixed_dictionaries({key: spans for key in CAMPAIGN_KEYS}).map(
    lambda t: {**t, "productive": t["productive"] + 1}
)


@st.composite
def records(draw: Any) -> CampaignResult:
    """Fates, each split among three causes in random shares, whose sums round."""
    time = draw(times)
    causes: dict[str, dict[str, float]] = {"gpu": {}, "start": {}, "elastic": {}}
    for key in CAMPAIGN_KEYS[1:]:
        left = time[key]
        for cause in ("gpu", "start"):
            causes[cause][key] = part = left * draw(st.floats(0.0, 1.0))
            left -= part
        causes["elastic"][key] = max(0.0, left) * (1 + 1e-12)
    return CampaignResult(fsum(time.values()) * (1 + 1e-12), 50, time, {"gpu": 3}, by_cause=causes)


@given(records(), st.floats(1e10, 1e18))
def test_losses_add_up_to_the_last_bits(record: CampaignResult, peak: float) -> None:
    """Healthy - effective = total = parts = causes, to 1e-15 of the healthy MFU, and failures are a part of it."""
    figures = campaign_figures(replace(FLEET, peak=peak), PLAN, record)
    loss, hair = figures["mfu_loss"], 1e-15 * figures["healthy_mfu"]
    assert figures["effective_mfu"] <= figures["healthy_mfu"]
    assert loss["total"] == pytest.approx(figures["healthy_mfu"] - figures["effective_mfu"], rel=0, abs=hair)
    assert fsum(loss["parts"].values()) == pytest.approx(loss["total"], rel=0, abs=hair)
    assert fsum(loss["by_cause"].values()) == pytest.approx(loss["total"], rel=0, abs=hair)
    assert 0 <= loss["failure_induced"] <= fsum(loss["parts"][key] for key in FAILURE_KEYS) * (1 + 1e-14)


@given(records())
def test_badput_adds_up(record: CampaignResult) -> None:
    """Productive seconds and badput are the wall-clock."""
    figures = campaign_figures(FLEET, PLAN, record)
    total = fsum([record.time_s["productive"], *figures["badput_s"].values()])
    assert total == pytest.approx(figures["wall_clock_s"], rel=1e-14)
    assert min(figures["badput_s"].values()) >= 0


@given(times, st.floats(0.0, 1.0), st.floats(0.0, 3.0))
def test_gpu_hours_add_up(time: dict[str, float], standing_by: float, borrowed: float) -> None:
    """Fates of owned GPUs are owned GPUs times wall-clock, with borrowed machines and without."""
    wall = fsum(time.values())
    fates = gpu_hour_fates(FLEET, time, {"idle": standing_by * wall, "borrowed": borrowed * wall, "repair": wall})
    assert fsum(fates.values()) == pytest.approx(24 * wall / 3600, rel=2e-15 * (1 + borrowed))
    assert min(value for fate, value in fates.items() if fate != "borrowed") >= 0


@given(times, st.floats(0.0, 1.0))
def test_less_of_any_loss_is_more_mfu(time: dict[str, float], share: float) -> None:
    """Taking away a part of the time that was lost lowers the total by it and leaves no other second's price lower."""
    causes = {"all": {key: time[key] for key in CAMPAIGN_KEYS[1:]}}
    before = mfu_loss(0.5, time, causes)["total"]
    less = {**time, "restart": time["restart"] * share}
    after = mfu_loss(0.5, less, {"all": {key: less[key] for key in CAMPAIGN_KEYS[1:]}})["total"]
    assert after <= before * (1 + 1e-12)
