"""What holds a healthy run up."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from simulator.scenario.reliability.durations import LogNormal
from simulator.scenario.reliability.section import Reliability

FULL: dict[str, Any] = {
    "diurnal": {"amplitude": 0.015},
    "garbage_collection": {"every": "100 steps", "pause": "1 s"},
    "sequence_imbalance": 0.02,
    "maintenance": {"rate": "0.87 per day", "duration": "1 h"},
    "evaluation": {"every": "1000 steps", "duration": "5 min"},
    "data_stalls": {"rate": "1 per week", "duration": {"median": "10 min", "sigma": 1}},
    "loss_spikes": {"rate": "0.3 per day", "rewind": "100 steps", "skip": "300 steps"},
}


def test_every_stop_is_read() -> None:
    """In seconds, steps and events per second."""
    section = Reliability.model_validate(FULL)
    assert section.diurnal is not None
    assert (section.diurnal.amplitude, section.diurnal.period) == (0.015, 86400.0)
    assert section.garbage_collection is not None
    assert (section.garbage_collection.every, section.garbage_collection.pause) == (100, 1.0)
    assert section.maintenance is not None
    assert section.maintenance.rate is not None
    assert section.maintenance.rate.per_second * 86400 == pytest.approx(0.87)
    assert section.evaluation is not None
    assert (section.evaluation.every, section.evaluation.duration) == (1000, 300.0)
    assert section.data_stalls is not None
    assert section.data_stalls.duration == LogNormal(600.0, 1.0)
    assert section.loss_spikes is not None
    assert (section.loss_spikes.rewind, section.loss_spikes.skip) == (100, 300)
    assert Reliability.model_validate_json(section.model_dump_json(exclude_none=True)) == section


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("diurnal", {"amplitude": 1}),
        ("diurnal", {"amplitude": 0.01, "period": "0 s"}),
        ("garbage_collection", {"every": 100, "pause": "1 s"}),
        ("maintenance", {"duration": "1 h"}),
        ("maintenance", {"duration": "1 h", "rate": "1 per day", "every": "7 d"}),
        ("evaluation", {"every": "0 steps", "duration": "5 min"}),
        ("evaluation", {"every": "10 min", "duration": "5 min"}),
        ("data_stalls", {"rate": "often", "duration": "5 min"}),
        ("loss_spikes", {"rate": "1 per day"}),
        ("sequence_imbalance", -0.1),
    ],
)
def test_impossible_stops_are_refused(name: str, change: Any) -> None:
    """Each names its section."""
    with pytest.raises(ValidationError, match=name):
        Reliability.model_validate({name: change})
