"""What a run warns of: little goodput, long saves, spares that nobody asked for, bursts beyond the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator.studies.simulate import simulate
from tests.small import load_small


def said(folder: Path, reliability: dict[str, Any], word: str) -> list[str]:
    """Warnings of the small run with the word."""
    return [text for text in simulate(load_small(folder, reliability=reliability)).warnings if word in text]


def test_a_run_that_keeps_little_says_where_its_time_goes(tmp_path: Path) -> None:
    """Up for 20 min in the mean, down for an hour after each: less than half is kept, and why is said."""
    failing = {
        "failures": [{"name": "gpu", "mtbf": "20 min", "needs_machine": False, "detection": "0 s"}],
        "failures_during_restart": False,
        "restart": "1 h",
    }
    (warning,) = said(tmp_path, failing, "of its time")
    assert "% restart" in warning
    assert "down for 6" in warning or "down for 1" in warning
    assert not said(tmp_path, {}, "of its time")


@pytest.mark.parametrize(("interval", "warns"), [("1 steps", True), ("100 steps", False)])
def test_saves_longer_than_the_work_between_them(interval: str, warns: bool, tmp_path: Path) -> None:
    """A step of 18 ms is shorter than the 100 ms that a save stops it for; 100 steps are not."""
    checkpoint = {"interval": interval, "save_time": "100 ms", "load_time": "1 s"}
    told = said(tmp_path, {"checkpoint": checkpoint}, "saves take")
    assert bool(told) == warns


@pytest.mark.parametrize(("spares", "warns"), [(None, True), (2, False)])
def test_spares_that_nobody_asked_for(spares: int | None, warns: bool, tmp_path: Path) -> None:
    """Two nodes left over beside one of the job: a word, unless they are stated."""
    section = {} if spares is None else {"spares": spares}
    scenario = load_small(tmp_path, parallelism={"tp": 2, "pp": 2, "dp": 2}, job_gpus=8, reliability=section)
    told = [text for text in simulate(scenario).warnings if "hot spares" in text]
    assert bool(told) == warns
    assert not told or told[0].startswith("all 2 nodes (16 GPUs)")


def test_a_burst_of_more_machines_than_the_job_has(tmp_path: Path) -> None:
    """500 further machines of a job of two."""
    burst = {"failures": [{"name": "pdu", "rate": "1 per week", "component": "node", "needs_machine": True,
                           "burst": {"probability": 0.5, "machines": 500}}]}  # fmt: skip
    (warning,) = said(tmp_path, burst, "burst")
    assert "'pdu' takes 500 further machines, but the job has 2" in warning
