"""Failure classes: rates, what follows from what, distributions, and combinations that mean nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.scenario.reliability.distributions import BurnIn, Distribution
from simulator.scenario.reliability.durations import NONE, LogNormal
from simulator.scenario.reliability.failures import FailureClass
from simulator.scenario.units import Rate


def failure(**fields: Any) -> FailureClass:
    """A class of 4 per 1000 node-days, or what `fields` say."""
    return FailureClass.model_validate({"name": "node", "rate": "4 per 1000 node-days", **fields})


def test_every_field_is_read() -> None:
    """A batch that wears out, found late, with a burst: in seconds and counts."""
    read = failure(
        rate="2 per 1000 gpu-months",
        component="rack",
        distribution={"kind": "weibull", "shape": 2.6, "scope": "batch", "age": "100 d"},
        effect="silent",
        detection="1 h",
        diagnosis={"median": "5 min", "sigma": 1},
        wrong_diagnosis=0.05,
        needs_machine=0.3,
        time_to_repair="2 d",
        restart="3 min",
        burst={"probability": 0.04, "machines": 5},
    )
    assert read.rate.per == "gpu"
    assert read.rate.per_second == pytest.approx(0.002 / (30.4375 * 86400))
    assert read.distribution == Distribution(kind="weibull", shape=2.6, scope="batch", age="100 d")
    assert (read.component, read.effect, read.machine_share, read.wrong_diagnosis) == ("rack", "silent", 0.3, 0.05)
    assert (read.detection, read.diagnosis) == (LogNormal(3600.0), LogNormal(300.0, 1.0))
    assert (read.time_to_repair, read.restart) == (LogNormal(172800.0), LogNormal(180.0))
    assert read.burst is not None
    assert (read.burst.probability, read.burst.machines) == (0.04, 5)


def test_a_mean_time_between_failures_is_a_rate_of_the_job() -> None:
    """Every 3.1 h: 1/11,160 per second, wherever the job runs; written out it is both, and read back."""
    read = FailureClass.model_validate({"name": "any", "mtbf": "3.1 h"})
    assert read.rate == Rate(1 / 11160, "job")
    assert read.component == "node"
    assert FailureClass.model_validate_json(read.model_dump_json(exclude_none=True)) == read


@pytest.mark.parametrize(
    ("effect", "detection", "diagnosis"),
    [
        ("crash", 30.0, 270.0),
        ("hang", 600.0, 270.0),
        ("silent", 86400.0, 270.0),
        ("pause", 30.0, 0.0),
    ],
)
def test_how_it_shows_says_how_long_it_takes_to_see(effect: str, detection: float, diagnosis: float) -> None:
    """Transport timeout, watchdog, next validation; a crash is known and its machine named after 5 min."""
    read = failure(effect=effect)
    assert (read.detection, read.diagnosis) == (LogNormal(detection), LogNormal(diagnosis))


def test_a_stated_detection_is_all_of_it() -> None:
    """`detection: 10 min` includes naming the machine, unless `diagnosis` is stated too."""
    assert failure(detection="10 min").diagnosis == NONE
    assert failure(detection="30 s", diagnosis="5 min").diagnosis == LogNormal(300.0)


@pytest.mark.parametrize(
    ("fields", "component", "share"),
    [
        ({}, "node", 1.0),
        ({"rate": "1 per gpu-year"}, "gpu", 1.0),
        ({"rate": "1 per leaf-year"}, "leaf", 1.0),
        ({"rate": "1 per rack-year", "needs_machine": 0.5}, "rack", 0.5),
        ({"rate": "2 per day"}, "node", 1.0),
        ({"rate": "2 per day", "needs_machine": False}, "job", 0.0),
        ({"rate": "2 per day", "component": "job"}, "job", 0.0),
        ({"needs_machine": False}, "node", 0.0),
        ({"rate": "1 per nic-month", "effect": "pause"}, "nic", 0.0),
        ({"rate": "1 per week", "effect": "rewind", "rewind": "100 steps"}, "job", 0.0),
    ],
)
def test_what_is_hit_follows_from_the_rate(fields: dict[str, Any], component: str, share: float) -> None:
    """A part's failure hits what holds the part; one of the job hits a node if it needs a machine."""
    read = failure(**fields)
    assert (read.component, read.machine_share) == (component, share)


def test_a_bad_firmware_week_and_a_burn_in() -> None:
    """Windows are from and until; `from` is written as it was read."""
    read = failure(windows=[{"from": "10 d", "until": "17 d", "factor": 3}], burn_in={"factor": 4, "decay": "7 d"})
    (window,) = read.windows
    assert (window.from_, window.until, window.factor) == (864000.0, 1468800.0, 3.0)
    assert read.burn_in == BurnIn(factor=4, decay="7 d")
    assert read.model_dump(mode="json", by_alias=True)["windows"][0]["from"] == "864000.0 s"


def test_a_weibull_scale_gives_the_mean_life() -> None:
    """Shape 1 is exponential: scale = mean life. Shape 2: Γ(1.5) = sqrt(π)/2, so scale = life · 2/sqrt(π)."""
    assert Distribution(kind="weibull", shape=1.0).scale(0.01) == pytest.approx(100.0)
    assert Distribution(kind="weibull", shape=2.0).scale(0.01) == pytest.approx(200 / math.sqrt(math.pi))


def test_scaling_changes_the_rate_and_nothing_else() -> None:
    """An mtbf would say something else afterwards: it goes."""
    read = FailureClass.model_validate({"name": "any", "mtbf": "1 h"})
    twice = read.scaled(2.0)
    assert twice.rate == Rate(2 / 3600, "job")
    assert twice.mtbf is None
    assert FailureClass.model_validate_json(twice.model_dump_json(exclude_none=True)) == twice
    assert read.scaled(1.0) == read


DISTRIBUTIONS = st.one_of(
    st.just("exponential"),
    st.fixed_dictionaries({"kind": st.just("weibull"), "shape": st.floats(0.1, 20)}),
    st.fixed_dictionaries({"kind": st.just("lognormal"), "sigma": st.floats(0.01, 6)}),
)


@given(
    st.sampled_from(["gpu", "node", "nic", "leaf", "rack", "job"]),
    st.floats(0, 1e3),
    DISTRIBUTIONS,
    st.sampled_from(["crash", "hang", "silent"]),
    st.one_of(st.booleans(), st.floats(0, 1)),
    st.floats(0, 1),
)
def test_what_is_written_is_read_back(
    per: str, rate: float, distribution: Any, effect: str, needs: bool | float, wrong: float
) -> None:
    """Law: a class in JSON gives the same class again, whatever its fields."""
    written = failure(
        rate=f"{rate!r} per {'day' if per == 'job' else f'{per}-day'}",
        distribution=distribution,
        effect=effect,
        needs_machine=needs,
        wrong_diagnosis=wrong,
    )
    assert FailureClass.model_validate_json(written.model_dump_json(exclude_none=True, by_alias=True)) == written


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": "-2 per day"}, "is negative"),
        ({"rate": "2 per server-day"}, "is not a rate of events"),
        ({"rate": "1.2.3 per day"}, "is not a number"),
        ({"rate": "1 per 0 days"}, "divides by 0"),
        ({"rate": None}, "has no rate; write rate"),
        ({"mtbf": "3 h"}, "a rate and an mtbf that disagree"),
        ({"rate": None, "mtbf": "0 s"}, "must be more than zero"),
        ({"distribution": "weibull"}, "need their shape"),
        ({"distribution": {"kind": "weibull", "shape": 0}}, "shape 0.0 must be from 0.1 to 20"),
        ({"distribution": {"kind": "weibull", "shape": -0.7}}, "shape -0.7 must be from 0.1 to 20"),
        ({"distribution": {"kind": "weibull", "shape": 50}}, "from 0.1 to 20"),
        ({"distribution": {"kind": "weibull", "shape": float("nan")}}, "finite"),
        ({"distribution": {"kind": "lognormal"}}, "need their sigma"),
        ({"distribution": {"kind": "lognormal", "sigma": 0}}, "sigma 0.0 must be from 0.01 to 6"),
        ({"distribution": {"kind": "exponential", "shape": 1}}, "belongs to weibull failures"),
        ({"distribution": {"kind": "exponential", "scope": "system"}}, "no memory"),
        ({"distribution": {"kind": "lognormal", "sigma": 1, "scope": "batch"}}, "needs kind: weibull"),
        ({"distribution": {"kind": "weibull", "shape": 1, "age": "3 d"}}, "write scope: batch"),
        (
            {"rate": "2 per day", "distribution": {"kind": "weibull", "shape": 2, "scope": "batch"}},
            "its rate is of the job",
        ),
        (
            {"distribution": {"kind": "weibull", "shape": 2}, "burn_in": {"factor": 2, "decay": "1 d"}},
            "exponential failures only",
        ),
        ({"windows": [{"from": "3 d", "until": "1 d", "factor": 2}]}, "swap from and until"),
        ({"windows": [{"from": "0 d", "until": "1 d", "factor": -2}]}, "greater than or equal to 0"),
        ({"burn_in": {"factor": 0.5, "decay": "7 d"}}, "greater than or equal to 1"),
        ({"burn_in": {"factor": 2, "decay": "0 d"}}, "more than zero"),
        ({"needs_machine": 1.5}, "needs_machine 1.5 must be true, false, or a probability"),
        ({"needs_machine": -0.1}, "needs_machine -0.1"),
        ({"needs_machine": "yes"}, "needs_machine 'yes'"),
        ({"wrong_diagnosis": 1.01}, "less than or equal to 1"),
        ({"component": "job", "needs_machine": True}, "hits the job and no machine"),
        ({"effect": "pause", "needs_machine": True}, "is a pause, which loses no machine"),
        ({"effect": "rewind"}, "does not say how far"),
        ({"rewind": "3 steps"}, "rewinds 3 steps but is a crash"),
        ({"effect": "rewind", "rewind": 100}, "'100 steps'"),
        ({"burst": {"probability": 1.5, "machines": 2}}, "less than or equal to 1"),
        ({"burst": {"probability": 0.5, "machines": 0}}, "greater than 0"),
        ({"burst": {"probability": 0.5, "machines": 2}, "needs_machine": False}, "leave burst out"),
        ({"detection": "inf s"}, "detection"),
        ({"component": "switch"}, "component"),
        ({"name": ""}, "name"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    """Each names what is wrong and what to write."""
    with pytest.raises(ValidationError, match=message):
        failure(**fields)
