"""Restarts by their parts, and policies by name or in full."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from simulator.scenario.reliability.durations import LogNormal
from simulator.scenario.reliability.recovery import Recovery, Restart


def test_a_restart_grows_with_its_ranks() -> None:
    """2 min + 3 min + 30 s + 1,024 GPUs · 0.5 ms = 330.512 s."""
    parts = {"scheduling": "2 min", "container": "3 min", "communicators": "30 s", "per_gpu": "0.5 ms"}
    assert Restart.model_validate(parts).time(1024).median == pytest.approx(330.512)


@pytest.mark.parametrize(
    ("written", "time"),
    [
        ("10 min", LogNormal(600.0)),
        ({"median": "3.7 min", "sigma": 2.2}, LogNormal(222.0, 2.2)),
        ({"communicators": "30 s"}, LogNormal(30.0)),
        ({}, LogNormal(0.0)),
    ],
)
def test_a_restart_may_be_one_time(written: Any, time: LogNormal) -> None:
    """One time stands for all of it; in parts, what is left out takes none."""
    restart = Restart.model_validate(written)
    assert restart.time(4096) == time
    assert Restart.model_validate_json(restart.model_dump_json()) == restart


def test_a_policy_is_a_name_or_a_section() -> None:
    """`elastic` has pauses of its own; the others need nothing else."""
    assert Recovery.model_validate("wait").policy == "wait"
    elastic = Recovery.model_validate({"policy": "elastic", "rejoin": "2 min", "fewest_replicas": 60})
    assert (elastic.reconfigure, elastic.rejoin) == (LogNormal(30.0), LogNormal(120.0))
    assert elastic.fewest_replicas == 60
    assert Recovery.model_validate_json(elastic.model_dump_json()) == elastic


@pytest.mark.parametrize(
    ("model", "value", "message"),
    [
        (Restart, 600, "600 has no unit"),
        (Restart, "-1 min", "not negative"),
        (Restart, {"schedulin": "1 min"}, "schedulin"),
        (Restart, {"median": "1 min"}, "here is median"),
        (Restart, {"per_gpu": "nan s"}, "per_gpu"),
        (Recovery, "pray", "policy"),
        (Recovery, {"policy": "elastic", "fewest_replicas": 0}, "fewest_replicas"),
        (Recovery, 3, "valid dictionary"),
    ],
)
def test_other_forms_are_refused(model: type[Restart | Recovery], value: Any, message: str) -> None:
    """Negative, dimensionless and unknown ones."""
    with pytest.raises(ValidationError, match=message):
        model.model_validate(value)


def test_a_restart_is_that_of_a_machine_and_of_all() -> None:
    """Scheduling 120 s and container 180 s of each; communicators 30 s and 1 ms for each of 2,000 GPUs of all."""
    restart = Restart.model_validate(
        {"scheduling": "2 min", "container": "3 min", "communicators": "30 s", "per_gpu": "1 ms"}
    )
    assert (restart.machine.mean, restart.together(2000).mean) == (300.0, 32.0)
    assert restart.time(2000).mean == 332.0
