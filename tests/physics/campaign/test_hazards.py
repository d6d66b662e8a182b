"""Rates, blast radii and lemons of the whole job, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScenarioError
from simulator.physics.campaign.components import Components
from simulator.physics.campaign.hazards import job_failure, job_failures, lemon_share, slow_source
from simulator.physics.campaign.plan import Duration, JobFailure, Window
from simulator.scenario.reliability.failures import FailureClass
from simulator.scenario.reliability.machines import Lemons
from simulator.scenario.reliability.section import Reliability
from simulator.scenario.reliability.slow import SlowSource

DAY = 86400.0
# 100 nodes of 8 GPUs and 4 NICs, below five leaves of 20; two racks, 60 and 40 nodes.
PARTS = Components(
    gpus=800,
    nodes=100,
    nics=400,
    leaves=np.full(5, 20),
    lost_with_leaf=np.full(5, 20),
    racks=np.array([60, 40]),
)


def _failure(parts: Components = PARTS, **fields: Any) -> JobFailure:
    return job_failure(FailureClass.model_validate({"name": "it", **fields}), parts)


@pytest.mark.parametrize(
    ("rate", "per_day"),
    [
        ("4 per 1000 node-days", 0.4),
        ("1 per gpu-year", 800 / 365.25),
        ("1 per nic-day", 400.0),
        ("1 per leaf-day", 5.0),
        ("1 per rack-day", 2.0),
        ("2 per day", 2.0),
    ],
)
def test_rates_add_up_over_the_job(rate: str, per_day: float) -> None:
    """All of the job's components together."""
    assert _failure(rate=rate).hazard.rate * DAY == pytest.approx(per_day)


def test_what_is_hit_is_lost() -> None:
    """A GPU takes its node; a leaf its 20 nodes; a rack 60 or 40, equally often by its own rate, by size by nodes'."""
    assert _failure(rate="1 per gpu-year").machines == ((1, 1.0),)
    assert _failure(rate="1 per leaf-year").machines == ((20, 1.0),)
    assert _failure(rate="1 per rack-year").machines == ((40, 0.5), (60, 0.5))
    assert _failure(rate="1 per node-year", component="rack").machines == ((40, 0.4), (60, 0.6))


def test_software_hits_no_machine() -> None:
    """A rate of the job without machines, and leaves above which every NIC has a second way out."""
    assert _failure(rate="1 per day", component="job").machine_share == 0.0
    assert _failure(rate="1 per day", needs_machine=0.3).machine_share == 0.3
    two_ways = Components(gpus=8, nodes=1, nics=8, leaves=np.ones(16), lost_with_leaf=np.zeros(16), racks=np.empty(0))
    assert _failure(two_ways, rate="1 per leaf-day").machine_share == 0.0


def test_a_rate_needs_its_component() -> None:
    """No leaf, no rate per leaf."""
    bare = Components(gpus=8, nodes=1, nics=0, leaves=np.empty(0), lost_with_leaf=np.empty(0), racks=np.empty(0))
    with pytest.raises(ScenarioError, match="hits a leaf, but the job uses none; write component: node"):
        _failure(bare, rate="1 per leaf-day")
    with pytest.raises(ScenarioError, match="a rack is a scale-up domain"):
        _failure(bare, rate="1 per rack-day")


def test_every_distribution_keeps_its_mean() -> None:
    """Gaps of the whole job for `system`; parts with their own scale, mean life 1/rate, for `batch`."""
    weibull = _failure(rate="2 per day", distribution={"kind": "weibull", "shape": 0.78}).hazard
    assert (weibull.kind, weibull.rate, weibull.shape) == ("renewal", pytest.approx(2 / DAY), 0.78)
    lognormal = _failure(rate="2 per day", distribution={"kind": "lognormal", "sigma": 1.2}).hazard
    assert (lognormal.kind, lognormal.sigma) == ("renewal", 1.2)
    spread = {"kind": "weibull", "shape": 2.64, "scope": "batch", "age": "100 d"}
    batch = _failure(rate="1 per 5 gpu-years", distribution=spread).hazard
    assert (batch.kind, batch.units, batch.age) == ("batch", 800, 100 * DAY)
    assert batch.scale * math.gamma(1 + 1 / 2.64) == pytest.approx(5 * 365.25 * DAY)


def test_a_rate_that_changes() -> None:
    """A week of three times as many, and a burn-in that starts fourfold: three times more than itself."""
    fields = {
        "windows": [{"from": "10 d", "until": "17 d", "factor": 3.0}],
        "burn_in": {"factor": 4.0, "decay": "7 d"},
    }
    hazard = _failure(rate="1 per day", **fields).hazard
    assert hazard.windows == (Window(10 * DAY, 17 * DAY, 3.0),)
    assert hazard.burn_in is not None
    assert tuple(hazard.burn_in) == (3.0, 7 * DAY)


@given(st.floats(0, 1), st.floats(1, 50))
def test_what_lemons_add_is_theirs(share: float, factor: float) -> None:
    """Good machines fail at r, lemons at f r: of N r (1 - s + s f) the part N r s (f - 1) goes with the lemons."""
    mean = 1 - share + share * factor
    assert lemon_share(Lemons(share=share, factor=factor)) == pytest.approx(share * (factor - 1) / mean)
    assert lemon_share(None) == 0.0


def test_lemons_are_in_classes_that_hit_machines_at_a_rate() -> None:
    """1 % at ten times the rate are 0.09/1.09 of node failures, none of software's and none of a renewal's."""
    section = {
        "lemons": {"share": 0.01, "factor": 10.0},
        "failures": [
            {"name": "node", "rate": "4 per 1000 node-days"},
            {"name": "software", "rate": "1 per day", "component": "job"},
            {"name": "aged", "rate": "1 per day", "distribution": {"kind": "weibull", "shape": 0.7}},
        ],
    }
    found = job_failures(Reliability.model_validate(section), PARTS)
    assert [failure.lemon_share for failure in found] == [pytest.approx(0.09 / 1.09), 0.0, 0.0]


def test_loss_spikes_rewind() -> None:
    """0.3 a day go back 100 steps, lose no machine and are seen at once."""
    section = {"loss_spikes": {"rate": "0.3 per day", "rewind": "100 steps", "skip": "300 steps"}}
    (spike,) = job_failures(Reliability.model_validate(section), PARTS)
    assert (spike.name, spike.effect, spike.rewind, spike.machine_share) == ("loss_spikes", "rewind", 100, 0.0)
    assert spike.hazard.rate == pytest.approx(0.3 / DAY)


def test_what_a_class_says_of_people() -> None:
    """Detection, diagnosis, repair, restart and bursts are passed on as they are."""
    fields = {
        "rate": "1 per day", "detection": "10 min", "wrong_diagnosis": 0.05, "restart": "1 h",
        "time_to_repair": {"median": "1 h", "sigma": 1.0}, "burst": {"probability": 0.04, "machines": 5},
    }  # fmt: skip
    found = _failure(**fields)
    assert (found.detection, found.diagnosis) == (Duration(600.0), Duration(0.0))
    assert (found.wrong_diagnosis, found.burst) == (0.05, (0.04, 5))
    assert (found.repair, found.restart) == (Duration(3600.0, 1.0), Duration(3600.0))


def test_a_slow_source() -> None:
    """0.5 % of 100 nodes, found after a day; a job at 0.8 of its speed takes 25 % longer."""
    hosts = SlowSource.model_validate(
        {"name": "hosts", "kind": "slow_node", "share": 0.005, "rate": "1 per 100 node-days", "speed": 0.9,
         "detection": "1 d", "swap": True}
    )  # fmt: skip
    found = slow_source(hosts, PARTS, None)
    assert (found.classes, found.share, found.severity, found.swap) == ((1,), 0.005, (10, 10), True)
    assert found.hazard.rate == pytest.approx(1 / DAY)
    slow_job = SlowSource.model_validate({"name": "network", "kind": "job", "rate": "1 per day", "speed": 0.8})
    assert slow_source(slow_job, PARTS, None).severity == (25, 25)


def test_links_take_nodes_that_have_no_other() -> None:
    """One flap in 6 link-days of 800 links; a dead link takes a node for the quarter that are a NIC's only ones."""
    parts = replace(PARTS, links=800, only_links=200)
    flap = _failure(parts, rate="1 per 6 link-days", effect="pause")
    assert (flap.hazard.rate * DAY, flap.machine_share) == (pytest.approx(800 / 6), 0.0)
    assert _failure(parts, rate="1 per link-year").machine_share == 0.25
    assert _failure(parts, rate="1 per nic-year", component="link").hazard.rate * DAY == pytest.approx(400 / 365.25)


def test_a_slow_source_has_windows_and_a_burn_in() -> None:
    """As a failure class has them."""
    window = {"from": "10 d", "until": "17 d", "factor": 3}
    fields = {"name": "it", "kind": "slow_node", "speed": 0.9, "rate": "1 per 100 node-days"}
    stated = SlowSource.model_validate({**fields, "windows": [window], "burn_in": {"factor": 4, "decay": "7 d"}})
    hazard = slow_source(stated, PARTS, None).hazard
    assert hazard.windows == (Window(10 * DAY, 17 * DAY, 3),)
    assert hazard.burn_in == (3, 7 * DAY)
    assert hazard.rate * DAY == pytest.approx(1.0)


def test_loss_spikes_say_what_they_skip() -> None:
    """300 steps of data each."""
    spikes = {"rate": "0.3 per day", "rewind": "100 steps", "skip": "300 steps"}
    (spike,) = job_failures(Reliability.model_validate({"loss_spikes": spikes}), PARTS)
    assert (spike.rewind, spike.skip) == (100, 300)
