"""Conditions of a scenario file: what may be said, what is refused and where the message points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from simulator.errors import ScenarioError
from simulator.scenario.conditions import Background, Condition
from simulator.scenario.scenario import Scenario, load
from tests.small import small

ONE: TypeAdapter[Any] = TypeAdapter(Condition)
RING = {"kind": "background", "nodes": "0-2", "rate": "5 GB/s"}


def read(content: dict[str, Any]) -> Any:
    """Check one condition."""
    return ONE.validate_python(content)


def write(folder: Path, conditions: list[dict[str, Any]]) -> Path:
    """Write the small scenario with conditions; they stand at the end of the file."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(small(conditions=conditions), sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "nodes"), [("0-3", (0, 1, 2, 3)), ("4, 7-8", (4, 7, 8)), (" 1 - 2 ,0", (1, 2, 0)), ([5, 2], (5, 2))]
)
def test_nodes_are_a_list_or_a_text_of_ranges(text: Any, nodes: tuple[int, ...]) -> None:
    """Ranges include both ends, and the order stays: a ring follows it."""
    found = read(RING | {"nodes": text})
    assert isinstance(found, Background)
    assert (found.nodes, found.rate, found.pattern) == (nodes, 5e9, "ring")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"kind": "slow_gpu", "gpu": 1, "speed": 0}, "greater than 0"),
        ({"kind": "slow_gpu", "gpu": 1, "speed": 1.1}, "less than or equal to 1"),
        ({"kind": "slow_gpu", "gpu": -1, "speed": 0.5}, "greater than or equal to 0"),
        ({"kind": "slow_gpu", "node": 1, "speed": 0.5}, "Extra inputs"),
        ({"kind": "slow_nic", "node": 0, "nic": 0, "capacity": -1}, "greater than 0"),
        ({"kind": "degraded_link", "between": ["a", "a"], "capacity": 0.5}, "names one element twice"),
        ({"kind": "removed_link", "between": ["a"]}, "Field required"),
        ({"kind": "lost_link", "between": ["a", "b"]}, "'removed_link'"),
        (RING | {"nodes": "3-1"}, "first <= last"),
        (RING | {"nodes": "0-9999999999"}, "first <= last"),
        (RING | {"nodes": "all"}, "write it like '0-31'"),
        (RING | {"nodes": [1, 1]}, "names 1 twice"),
        (RING | {"nodes": [1]}, "at least 2 items"),
        (RING | {"rate": "0 GB/s"}, "more than zero"),
        (RING | {"rate": 5}, "no unit"),
        (RING | {"pattern": "tree"}, "'ring' or 'all_to_all'"),
    ],
)
def test_impossible_conditions_are_refused(content: dict[str, Any], words: str) -> None:
    """Every message says what is allowed."""
    with pytest.raises(ValidationError) as error:
        read(content)
    assert words in str(error.value)


def test_a_scenario_keeps_its_conditions_when_it_is_written_and_read(tmp_path: Path) -> None:
    """The resolved scenario is again a scenario, conditions included."""
    scenario = load(write(tmp_path, [{"kind": "slow_gpu", "gpu": 3, "speed": 0.9}, RING]))
    again = Scenario.model_validate(scenario.resolved())
    assert again.conditions == scenario.conditions
    assert len(again.conditions) == 2


@pytest.mark.parametrize(
    ("condition", "field", "words"),
    [
        ({"kind": "slow_gpu", "gpu": 24, "speed": 0.9}, "gpu", "gpu 24 is not one of the cluster's 24 gpus, 0 to 23"),
        ({"kind": "slow_node", "node": 3, "speed": 0.9}, "node", "node 3 is not one of the cluster's 3 nodes, 0 to 2"),
        ({"kind": "slow_nic", "node": 9, "nic": 0, "capacity": 0.5}, "node", "node 9 is not one"),
        (RING | {"nodes": "1-3"}, "nodes", "node 3 is not one"),
    ],
)
def test_gpus_and_nodes_that_are_not_there_are_refused_with_their_line(
    tmp_path: Path, condition: dict[str, Any], field: str, words: str
) -> None:
    """The message names file, line and field."""
    path = write(tmp_path, [{"kind": "slow_gpu", "gpu": 0, "speed": 0.5}, condition])
    with pytest.raises(ScenarioError) as error:
        load(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert error.value.field == f"conditions.1.{field}"
    assert error.value.line is not None
    assert f"{field}:" in lines[error.value.line - 1]
    assert words in str(error.value)


def test_a_misspelt_kind_is_answered_with_the_nearest(tmp_path: Path) -> None:
    """As in every other section of the file."""
    with pytest.raises(ScenarioError, match=r"slow_gpo.*did you mean 'slow_gpu'"):
        load(write(tmp_path, [{"kind": "slow_gpo", "gpu": 0, "speed": 0.5}]))
