"""The `reliability:` section: what it reads, what it refuses, and that it writes what it reads."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.errors import ScenarioError
from simulator.scenario.reliability import Checkpoint, FailureClass, Interval, Reliability
from simulator.scenario.reliability.checkpoint import OPTIMAL
from simulator.scenario.reliability.durations import LogNormal
from simulator.scenario.reliability.presets import read_presets
from simulator.scenario.scenario import load
from simulator.scenario.source import parse_source
from simulator.scenario.units import Rate
from simulator.studies.show import scenario_schema
from tests.small import load_small, small
from tests.studies.json_schema import problems

SECTION: dict[str, Any] = {
    "failures": [
        {"name": "node", "rate": "4 per 1000 node-days", "detection": "10 min", "time_to_repair": "2 days"},
        {"name": "crash", "rate": "2 per week", "needs_machine": False, "detection": "30 s"},
    ],
    "failures_during_restart": False,
    "checkpoint": {"interval": "30 min", "mode": "async", "stall": "0.6 s", "save_time": "50 s", "load_time": "130 s"},
    "restart": "5 min",
    "restart_per_gpu": "0.5 s",
    "spares": 4,
}
FULL: dict[str, Any] = {
    **SECTION,
    "preset": "rsc-1",
    "rate_scale": 0.5,
    "failures": [
        *SECTION["failures"],
        {"name": "wear", "rate": "1 per gpu-year",
         "distribution": {"kind": "weibull", "shape": 2.6, "scope": "batch", "age": "100 d"}},
        {"name": "firmware", "rate": "1 per nic-month", "effect": "pause", "detection": {"median": "10 s", "sigma": 1},
         "windows": [{"from": "10 d", "until": "17 d", "factor": 3}], "burn_in": {"factor": 4, "decay": "7 d"}},
    ],
    "lemons": {"share": 0.1, "factor": 5, "retire_after": 3},
    "checkpoint": {
        "interval": "renewal", "incremental": {"share": 0.2, "full_every": 10},
        "tiers": [{"to": "peer", "interval": "1 step", "copies": 1, "stall": "0.04 s"}],
    },
    "restart": {"scheduling": "2 min", "container": {"mean": "3 min", "sigma": 0.5}, "per_gpu": "0.5 ms"},
    "restart_in_place": "1 min",
    "start": "20 min",
    "recovery": {"policy": "elastic", "fewest_replicas": 2},
    "spares": {"warm": 1, "preempted": 20},
    "repair": {"automatic": {"median": "2 h", "sigma": 1}, "escalation": 0.5},
    "slow": [{"name": "hosts", "kind": "slow_node", "share": 0.005, "speed": {"between": [0.5, 0.9]},
              "detection": "1 d", "swap": True}],
    "diurnal": {"amplitude": 0.015},
    "maintenance": {"every": "7 d", "duration": "1 h"},
    "evaluation": {"every": "1000 steps", "duration": "5 min"},
}  # fmt: skip


def test_a_full_section_is_read_in_seconds() -> None:
    """Every field arrives as an SI float: 4 per 1000 node-days is 0.004/86,400 per node and second."""
    section = Reliability.model_validate(SECTION)
    node, crash = section.failures
    assert node.rate.per == "node"
    assert node.rate.per_second == pytest.approx(0.004 / 86400, rel=1e-12)
    assert (node.detection, node.time_to_repair, node.needs_machine) == (LogNormal(600.0), LogNormal(172800.0), True)
    assert crash.rate == Rate(2 / 604800, "job")
    assert not crash.needs_machine
    assert section.checkpoint.interval == Interval(seconds=1800.0)
    assert (section.checkpoint.blocking_stall, section.checkpoint.save_time) == (0.6, 50.0)
    assert section.restart_time(8) == LogNormal(304.0)
    assert section.spares.hot == 4


def test_an_empty_section_has_sourced_defaults() -> None:
    """Nothing fails, saves are synchronous at the optimum, a restart takes 10 min; a crash is dealt with after 5."""
    section = Reliability()
    assert section.all_failures == ()
    assert section.failures_during_restart
    assert section.checkpoint == Checkpoint()
    assert section.checkpoint.interval == OPTIMAL
    assert section.restart_time(1024) == LogNormal(600.0)
    assert section.spares.hot is None
    failure = FailureClass.model_validate({"name": "node", "rate": "2 per day"})
    assert failure.detection.mean + failure.diagnosis.mean == 300.0
    assert failure.time_to_repair is None


@pytest.mark.parametrize("content", [SECTION, FULL, {}, {"preset": "llama-3"}])
def test_what_is_written_is_read_back(content: dict[str, Any]) -> None:
    """A resolved section in JSON gives the same section again."""
    section = Reliability.model_validate(content)
    assert Reliability.model_validate_json(section.model_dump_json(exclude_none=True, by_alias=True)) == section


def test_a_preset_is_added_to_and_changed() -> None:
    """An entry of a name that the preset has takes its place, another joins; all rates are scaled."""
    own = [{"name": "NIC", "rate": "1 per nic-year"}, {"name": "rack", "rate": "1 per rack-year"}]
    section = Reliability.model_validate({"preset": "llama-3", "failures": own, "rate_scale": 2})
    names = [failure.name for failure in section.all_failures]
    assert len(names) == 19
    assert names[-1] == "rack"
    by_name = {failure.name: failure for failure in section.all_failures}
    year = 31557600.0
    assert by_name["NIC"].rate == Rate(2 / year, "nic")
    preset = {failure.name: failure for failure in read_presets()["llama-3"].failures}
    assert by_name["SSD"].rate.per_second == 2 * preset["SSD"].rate.per_second
    expanded = section.expanded
    assert (expanded.preset, expanded.rate_scale, expanded.failures) == (None, 1.0, section.all_failures)
    assert expanded.expanded == expanded


def test_lemons_of_a_preset_can_be_left_out() -> None:
    """The section's own come first, and a share of nothing is none."""
    section = Reliability.model_validate({"preset": "rsc-1", "lemons": {"share": 0, "factor": 1}})
    assert section.all_lemons is not None
    assert section.all_lemons.share == 0


@given(st.floats(0, 100), st.sampled_from(sorted(read_presets())))
def test_rate_scale_scales_the_sum(scale: float, preset: str) -> None:
    """Law: the summed rate is proportional to rate_scale."""
    section = Reliability.model_validate({"preset": preset, "rate_scale": scale})
    plain = sum(failure.rate.per_second for failure in read_presets()[preset].failures)
    assert sum(failure.rate.per_second for failure in section.all_failures) == pytest.approx(scale * plain)


def test_a_resolved_scenario_says_all_and_is_read_back(tmp_path: Path) -> None:
    """The preset is replaced by what it names; the dump loads, means the same, and an editor accepts it."""
    scenario = load_small(tmp_path, reliability={**FULL, "failures": [FULL["failures"][2]]})
    resolved = scenario.resolved()
    assert "preset" not in resolved["reliability"]
    again = load_small(tmp_path, **resolved)
    assert again.resolved() == resolved
    assert scenario.reliability is not None
    assert again.reliability == scenario.reliability.expanded
    schema = scenario_schema()
    assert problems(resolved, schema, schema) == []


def test_an_editor_accepts_what_loading_accepts() -> None:
    """Short forms and long forms are in the JSON Schema."""
    schema = scenario_schema()
    for section in (SECTION, FULL, {"recovery": "wait", "restart": {"median": "3 min", "sigma": 1}}):
        assert problems(small(reliability=section), schema, schema) == []
    for section in ({"restart": 600}, {"recovery": "pray"}, {"spares": -1}, {"slow": [{"name": "x"}]}, {"preset": "x"}):
        assert problems(small(reliability=section), schema, schema) != []


def test_the_documented_sections_load(tmp_path: Path) -> None:
    """The examples of docs/scenario-file.md are read as they stand, on a cluster that is large enough."""
    text = (Path(__file__).parents[3] / "docs" / "scenario-file.md").read_text(encoding="utf-8")
    blocks = [block for block in text.split("\n\n") if block.lstrip().startswith(("reliability:", "phases:"))]
    assert len(blocks) == 2
    phases, reliability = (parse_source(textwrap.dedent(block.strip("\n"))).content for block in blocks)
    section = Reliability.model_validate(reliability["reliability"])
    assert len(section.all_failures) == 21
    training = {**small()["training"], **phases, "global_batch_size": 2048, "tokens": None}
    schema = scenario_schema()
    assert problems(small(training=training, **reliability), schema, schema) == []
    assert load_small(tmp_path, training={**training, "phases": phases["phases"][:1]}).phases[-1][1].steps


def test_shipped_scenarios_mean_what_they_meant() -> None:
    """12 hot spares, a restart of 10 min, 7 of 10 failures without a machine, 5 min until each is dealt with."""
    section = load("llama-65b-2048").reliability
    assert section is not None
    assert section.spares.standing_by(99) == (12, 0)
    assert section.restart_time(2048) == LogNormal(600.0)
    hardware, transient = section.all_failures
    assert (hardware.machine_share, transient.machine_share) == (1.0, 0.0)
    assert all(failure.detection.mean + failure.diagnosis.mean == 300.0 for failure in section.all_failures)
    assert section.checkpoint.interval == OPTIMAL


def test_two_classes_of_one_name_are_refused() -> None:
    """Counts and random streams are keyed by name."""
    twice = [{"name": "node", "rate": "2 per day"}, {"name": "node", "rate": "1 per day"}]
    with pytest.raises(ValidationError, match="'node' is the name of 2 classes"):
        Reliability.model_validate({"failures": twice})
    slow = [{"name": "NIC", "kind": "slow_nic", "share": 0.1, "capacity": 0.5}]
    with pytest.raises(ValidationError, match="'NIC' names something else"):
        Reliability.model_validate({"preset": "llama-3", "slow": slow})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"preset": "llama3"}, r"small\.yaml:\d+: reliability\.preset: 'llama3' .*did you mean 'llama-3'"),
        ({"rate_scale": -1}, r"reliability\.rate_scale: -1 must be at least 0"),
        ({"spares": 2}, r"reliability\.spares: 2 nodes are more than the 1 of the cluster's 3"),
        ({"spares": {"hot": 1, "warm": 1}}, r"hot 1 \+ warm 1 nodes are more than the 1"),
        ({"restart": 600}, r"reliability\.restart: 600 has no unit"),
        ({"recovery": "foo"}, r"reliability\.recovery: 'foo' must be 'restart'"),
        ({"spares": "many"}, r"reliability\.spares: 'many' must be a whole number"),
        ({"slow": [{"name": "s", "kind": "slow_gpu", "share": 0.1, "speed": 2}]}, r"slow\.0\.speed: 2 must be at most"),
        ({"recovery": "elstic"}, r"reliability\.recovery.*did you mean 'elastic'"),
        (
            {"failures": [{"name": "a", "rate": "1 per day", "distribution": {"kind": "weibull", "shape": -1}}]},
            r"reliability\.failures\.0\.distribution: shape -1",
        ),
        ({"failures": [{"name": "a", "rate": "1 per day", "efect": "hang"}]}, r"failures\.0.*did you mean 'effect'"),
        ({"failures": [{"name": "a", "rate": "1 per day", "windows": [{"form": "1 d", "until": "2 d", "factor": 1}]}]},
         r"windows\.0\.form: unknown key 'form'; did you mean 'from'"),
    ],
)  # fmt: skip
def test_errors_say_where_what_and_how(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    """File, line, field, value, what is allowed or the nearest name."""
    with pytest.raises(ScenarioError, match=message):
        load_small(tmp_path, reliability=section)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("restart_per_gpu", "nan s"),
        ("restart_in_place", "-1 s"),
        ("start", 5),
        ("failures", [{"name": "node", "rate": "1e999 per day"}]),
        ("failures", [{"name": "node", "rate": 2}]),
        ("rate_scale", float("inf")),
        ("mtbf", "3 h"),
    ],
)
def test_impossible_values_are_refused(field: str, value: object) -> None:
    """Negative, infinite, dimensionless and unknown fields name the field."""
    with pytest.raises(ValidationError, match=field):
        Reliability.model_validate({field: value})
