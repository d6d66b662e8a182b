"""Checkpoints: intervals and rules, tiers in order, incremental saves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.scenario.reliability.checkpoint import OPTIMAL, RULES, Checkpoint, Interval


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("100 steps", Interval(steps=100)),
        ("1 step", Interval(steps=1)),
        ("0.5 h", Interval(seconds=1800.0)),
        *((rule, Interval(rule=rule)) for rule in RULES),
    ],
)
def test_an_interval_is_a_time_a_count_or_a_rule(text: str, interval: Interval) -> None:
    """The spellings are told apart and written back so that they are read the same."""
    checkpoint = Checkpoint.model_validate({"interval": text})
    assert checkpoint.interval == interval
    assert Checkpoint.model_validate_json(checkpoint.model_dump_json()) == checkpoint


@given(st.one_of(st.floats(1e-6, 1e9).map(lambda s: f"{s!r} s"), st.integers(1, 10**9).map(lambda n: f"{n} steps")))
def test_any_interval_survives_printing(text: str) -> None:
    """Times and counts are read back as the same numbers."""
    checkpoint = Checkpoint.model_validate({"interval": text})
    assert Checkpoint.model_validate_json(checkpoint.model_dump_json()) == checkpoint


@pytest.mark.parametrize(
    "value", [100, 1800.0, "0 steps", "0 s", "-5 min", "nan s", "often", "2.5 steps", None, ["optimal"]]
)
def test_other_intervals_are_refused(value: object) -> None:
    """A bare number could be steps or seconds; zero, negative and unknown intervals mean nothing."""
    with pytest.raises(ValidationError, match="interval"):
        Checkpoint.model_validate({"interval": value})


def test_a_bare_interval_is_told_how_to_write_it() -> None:
    """The message names every spelling, and the rule that was likely meant."""
    with pytest.raises(ValidationError, match=r"'30 min'.*'100 steps' or 'optimal'"):
        Checkpoint.model_validate({"interval": 100})
    with pytest.raises(ValidationError, match="did you mean 'optimal'"):
        Checkpoint.model_validate({"interval": "optimum"})


def test_by_default_saves_are_synchronous_at_the_optimum() -> None:
    """14 bytes a parameter, and no nearer tier."""
    checkpoint = Checkpoint()
    assert (checkpoint.interval, checkpoint.mode, checkpoint.bytes_per_parameter) == (OPTIMAL, "sync", 14.0)
    assert checkpoint.tiers == ()
    assert checkpoint.blocking_stall == 2.0


def test_tiers_and_deltas_are_read() -> None:
    """Host memory survives no lost machine, peers as many as there are copies."""
    checkpoint = Checkpoint.model_validate(
        {
            "interval": "1000 steps",
            "incremental": {"share": 0.2, "full_every": 10},
            "tiers": [
                {"to": "host", "interval": "1 step", "stall": "0.04 s"},
                {"to": "peer", "interval": "10 steps", "copies": 2, "bandwidth": "50 GB/s"},
            ],
        }
    )
    host, peer = checkpoint.tiers
    assert (host.survives, peer.survives) == (0, 2)
    assert (host.interval.steps, peer.interval.steps) == (1, 10)
    assert (host.stall, peer.stall, peer.bandwidth) == (0.04, 0.0, 50e9)
    assert checkpoint.incremental is not None
    assert (checkpoint.incremental.share, checkpoint.incremental.full_every) == (0.2, 10)
    assert Checkpoint.model_validate_json(checkpoint.model_dump_json(exclude_none=True)) == checkpoint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stall": "2 s"}, "write mode: async or leave stall out"),
        ({"bytes_per_parameter": 0}, "bytes_per_parameter"),
        ({"bytes_per_parameter": float("nan")}, "bytes_per_parameter"),
        ({"save_time": "-2 s"}, "save_time"),
        ({"mode": "sometimes"}, "mode"),
        ({"interval": "30 s", "save_time": "1 min"}, "interval 30 s is shorter than the save_time of 60 s"),
        ({"incremental": {"share": 1.2, "full_every": 10}}, "share"),
        ({"incremental": {"share": 0.2, "full_every": 0}}, "full_every"),
        ({"tiers": [{"to": "tape", "interval": "1 step"}]}, "to"),
        ({"tiers": [{"to": "host", "interval": "10 s"}]}, "saves by steps"),
        ({"tiers": [{"to": "host", "interval": "optimal"}]}, "saves by steps"),
        ({"tiers": [{"to": "host", "interval": "1 step", "copies": 2}]}, "kept by peers"),
        ({"tiers": [{"to": "peer", "interval": "1 step"}, {"to": "host", "interval": "1 step"}]}, "nearest first"),
        ({"tiers": [{"to": "host", "interval": "1 step"}] * 2}, "at most once"),
        (
            {"tiers": [{"to": "host", "interval": "10 steps"}, {"to": "peer", "interval": "15 steps"}]},
            "no multiple of the 10 of host, which is nearer; write 20 steps",
        ),
        ({"interval": "55 steps", "tiers": [{"to": "host", "interval": "10 steps"}]}, "write 60 steps"),
    ],
)
def test_impossible_saves_are_refused(fields: dict[str, Any], message: str) -> None:
    """Each names the field and the fix."""
    with pytest.raises(ValidationError, match=message):
        Checkpoint.model_validate(fields)


def test_readers_change_the_derived_load_time_only() -> None:
    """With a stated load time there is nothing for them to change."""
    assert Checkpoint.model_validate({"readers": "every"}).readers == "every"
    with pytest.raises(ValidationError, match="changes nothing about a load_time of 60 s"):
        Checkpoint.model_validate({"readers": "every", "load_time": "60 s"})
