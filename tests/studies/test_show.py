"""What would be simulated: groups by hand, memory, schedule; the schema against every shipped file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.scenario.scenario import load
from simulator.scenario.shipped import find_file, shipped_names
from simulator.scenario.source import read_source
from simulator.studies.show import catalogue, describe_scenario, scenario_schema
from simulator.studies.simulate import simulate
from tests.small import load_small, small
from tests.studies.json_schema import problems


def test_groups_are_those_of_the_split(tmp_path: Path) -> None:
    """tp 4, pp 2, dp 2 on 16 GPUs in nodes of 8: 4 tp groups in a node, 8 pipelines over 2 nodes, 8 dp pairs."""
    description = describe_scenario(load_small(tmp_path))
    assert description.groups == [
        {"axis": "tp", "groups": 4, "size": 4, "domains": 1, "first": [0, 1, 2, 3]},
        {"axis": "pp", "groups": 8, "size": 2, "domains": 2, "first": [0, 8]},
        {"axis": "dp-cp", "groups": 8, "size": 2, "domains": 1, "first": [0, 4]},
    ]


def test_experts_have_groups_of_their_own(tmp_path: Path) -> None:
    """With experts ep, etp and edp groups are listed too; without, they are not, whatever ep says."""
    experts = {"model": {"moe": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 2048}}, "parallelism": {"ep": 2}}
    axes = [row["axis"] for row in describe_scenario(load_small(tmp_path, **experts)).groups]
    assert axes == ["tp", "pp", "dp-cp", "ep", "etp"]


def test_figures_are_json_and_agree_with_the_simulation(tmp_path: Path) -> None:
    """Memory is what `run` shows; the grid has a row per rank with every action; classes are the program's."""
    scenario = load_small(tmp_path)
    figures = json.loads(json.dumps(describe_scenario(scenario).figures(), allow_nan=False))
    simulation = simulate(scenario)
    assert figures["memory"] == simulation.memory_figures()
    grid = figures["schedule"]["grid"]
    assert [len(actions) for actions in grid] == [16, 16]
    assert grid[0][:3] == ["0F0", "0F1", "0B0"]
    assert figures["schedule"]["bubble_fraction_theory"] == pytest.approx(1 / 9)
    assert figures["classes"]["rank_classes"] == len(simulation.program.rank_counts) == 2
    assert figures["model"]["step_flops"] == simulation.step_figures["model_flops"]
    assert figures["scenario"] == scenario.resolved()


def test_a_model_that_does_not_fit_is_shown_with_a_warning(tmp_path: Path) -> None:
    """`run` would refuse it; `show` says by how much."""
    large = {"num_layers": 32, "hidden_size": 16384, "ffn_hidden_size": 65536}
    description = describe_scenario(load_small(tmp_path, model=large))
    assert max(stage.total for stage in description.memory) > description.scenario.accelerator.memory
    assert "GB per GPU and a a100-80gb has 85.0 GB" in description.warnings[0]


def test_without_tokens_there_are_no_steps(tmp_path: Path) -> None:
    """The length of the run is unknown, not zero."""
    assert describe_scenario(load_small(tmp_path, training={"tokens": None})).model["steps"] is None


# --- schema ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_names("scenarios"))
def test_the_schema_accepts_every_shipped_scenario(name: str) -> None:
    """As it stands in its file, and as a result embeds it."""
    schema = scenario_schema()
    content = read_source(find_file(name, "scenarios")).content
    assert problems(content, schema, schema) == []
    assert problems(load(name).resolved(), schema, schema) == []


@pytest.mark.parametrize("name", shipped_names("topologies"))
def test_the_schema_accepts_every_shipped_topology(name: str) -> None:
    """A cluster file is the `cluster:` section."""
    schema = scenario_schema()
    content = read_source(find_file(name, "topologies")).content
    assert problems(content, schema["$defs"]["Cluster"], schema) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 5},
        {"parallelism": {"tp": "4"}},
        {"training": {"tokens": 5}},
        {"training": {"schedule": "interleaved"}},
        {"training": {"schedule": "2f2b"}},
        {"training": {"batch": 5}},
        {"expected": {"speed": {"value": 1, "source": "x"}}},
        {"expected": {"mfu": {"value": "40 %", "source": "x"}}},
        {"expected": {"wall_clock_s": {"value": 90, "source": "x"}}},
        {"expected": {"wall_clock_s": {"between": ["90 d"], "source": "x"}}},
        {"expected": {"mfu": {"value": 0.4}}},
    ],
)
def test_the_schema_refuses_what_loading_refuses(changes: dict[str, Any], tmp_path: Path) -> None:
    """Wrong types, bare numbers where units are due, unknown names: an editor shows what `run` would say."""
    schema = scenario_schema()
    assert problems(small(), schema, schema) == []
    assert problems(small(**changes), schema, schema) != []
    with pytest.raises(ValueError, match=r"small\.yaml"):
        load_small(tmp_path, **changes)


def test_defaults_in_the_schema_are_what_a_file_could_say() -> None:
    """An editor that inserts a default inserts something valid."""
    schema = scenario_schema()

    def visit(part: Any, where: str) -> None:
        if isinstance(part, dict):
            if "default" in part and "properties" not in part:
                assert problems(part["default"], part, schema) == [], where
            for name, each in part.items():
                visit(each, f"{where}.{name}")

    visit(schema["properties"], "")
    for name, definition in schema["$defs"].items():
        visit(definition, name)


# --- catalogue -------------------------------------------------------------------------------------------------------


def test_the_catalogue_names_what_can_be_loaded(tmp_path: Path) -> None:
    """Each listed model and stack is accepted; an accelerator is listed once, under its own name."""
    names = catalogue()
    assert list(names) == ["scenarios", "topologies", "models", "accelerators", "software stacks", "failure presets"]
    assert "a100-80gb" in names["accelerators"]
    assert "a100-80gb-sxm" not in names["accelerators"]
    for model in ("gpt2", names["models"][0]):
        content = load_small(tmp_path, model=model, parallelism={"tp": 1, "pp": 1, "dp": 16}).model
        assert content.name == model
    for stack in names["software stacks"]:
        assert load_small(tmp_path, training={"stack": stack}).stack.name == stack
