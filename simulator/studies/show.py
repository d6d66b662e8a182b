"""What would be simulated, without simulating it: cluster, model, groups, memory, schedule; and what is shipped.

Pinned by tests/studies/test_show.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.physics.cluster import describe
from simulator.physics.flops import forward_flops_per_token, step_flops
from simulator.physics.memory import StageMemory, check_capacity
from simulator.physics.program.build import build_program, schedule_table
from simulator.physics.program.layout import GROUP_AXES
from simulator.physics.program.placement import place
from simulator.physics.schedules.closed_forms import ideal_bubble_fraction
from simulator.physics.schedules.tables import SCHEDULES, Table
from simulator.scenario.expected import FIGURES
from simulator.scenario.hardware import read_accelerators
from simulator.scenario.pipeline import stage_layers
from simulator.scenario.reliability.presets import read_presets
from simulator.scenario.scenario import Scenario, model_names
from simulator.scenario.shipped import shipped_names
from simulator.scenario.stacks import read_stacks
from simulator.scenario.units import EXAMPLES
from simulator.studies.simulate import build, plan_memory, recipe_warnings

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Description:
    """A scenario's parts, as label and value."""

    scenario: Scenario
    cluster: Rows
    model: dict[str, Any]
    groups: list[dict[str, Any]]
    memory: tuple[StageMemory, ...]
    table: Table
    classes: dict[str, int]
    warnings: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "cluster": dict(self.cluster),
            "model": self.model,
            "groups": self.groups,
            "memory": {
                "capacity_bytes": self.scenario.accelerator.memory,
                "stages": [{"stage": s.rank, "total_bytes": s.total, "parts_bytes": s.parts} for s in self.memory],
            },
            "schedule": {
                "kind": self.scenario.training.schedule.kind,
                "vpp": self.scenario.training.schedule.vpp,
                "num_microbatches": self.scenario.num_microbatches,
                "bubble_fraction_theory": _theory(self.scenario),
                "stage_layers": list(_stage_layers(self.scenario)),
                "grid": [[str(action) for action in actions] for actions in self.table],
            },
            "classes": self.classes,
            "warnings": list(self.warnings),
            "scenario": self.scenario.resolved(),
        }


def _theory(scenario: Scenario) -> float | None:
    schedule, pp = scenario.training.schedule, scenario.parallelism.pp or 1
    shape = schedule.kind, pp, scenario.num_microbatches, schedule.vpp
    return ideal_bubble_fraction(*shape, synchronous=schedule.synchronous)


def _stage_layers(scenario: Scenario) -> tuple[int, ...]:
    return stage_layers(scenario.training.schedule, scenario.model.num_layers, scenario.parallelism.pp or 1)


def describe_scenario(scenario: Scenario) -> Description:
    """Describe a scenario; a model that does not fit is shown so, not refused."""
    cluster = build(scenario)
    program = build_program(scenario, cluster)
    memory = plan_memory(scenario)
    problem = check_capacity(scenario.accelerator, memory)
    classes = {
        "rank_classes": len(program.rank_counts),
        "coflow_classes": len(program.coflows),
        "link_classes": program.link_classes,
        "constraints": len(program.capacity),
    }
    return Description(
        scenario,
        describe(cluster),
        _model(scenario),
        _groups(scenario, cluster.domain[place(scenario, cluster)]),
        memory,
        schedule_table(scenario),
        classes,
        tuple([problem] if problem else []) + tuple(recipe_warnings(scenario)),
    )


def _model(scenario: Scenario) -> dict[str, Any]:
    model, training = scenario.model, scenario.training
    return {
        "name": model.name,
        "attention": model.attention_kind,
        "total_parameters": model.total_parameters,
        "active_parameters": model.active_parameters,
        "forward_flops_per_token": forward_flops_per_token(model, training.sequence_length),
        "step_flops": step_flops(model, training),
        "tokens_per_step": training.tokens_per_step,
        "steps": scenario.steps,
    }


def _groups(scenario: Scenario, domain: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Groups of every axis with more than one member: how many, how large, over how many scale-up domains at most."""
    rows = []
    for axis in ("tp", "cp", "pp", "dp", "ep", "etp", "edp"):
        groups = scenario.parallelism.groups(GROUP_AXES.get(axis, axis))
        if groups.shape[1] == 1 or (axis in ("ep", "etp", "edp") and scenario.model.moe is None):
            continue
        domains = np.sort(domain[groups], axis=1)
        spanned = 1 + int((np.diff(domains, axis=1) != 0).sum(axis=1).max())
        first = groups[0].tolist()
        rows.append(
            {"axis": GROUP_AXES.get(axis, axis), "groups": len(groups), "size": len(first), "domains": spanned,
             "first": first}
        )  # fmt: skip
    return rows


def scenario_schema() -> dict[str, Any]:
    """JSON Schema of the scenario file: what names may stand for and how numbers carry units is said here."""
    schema = Scenario.model_json_schema(mode="validation")
    _drop_foreign_defaults(schema)
    for name, meaning in (("cluster", "a cluster file"), ("model", "a catalogue model, a YAML or a config.json")):
        inline = schema["properties"][name]
        schema["properties"][name] = {"anyOf": [{"type": "string", "description": meaning}, inline]}
    kinds = {"type": "string", "enum": [kind for kind in SCHEDULES if kind != "interleaved"]}  # that one needs its vpp
    training = schema["$defs"]["Training"]["properties"]
    training["schedule"] = {"anyOf": [kinds, training["schedule"]]}
    phase = schema["$defs"]["Phase"]["properties"]
    phase["model"] = {"anyOf": [{"type": "string", "description": "as `model` of the scenario"}, phase["model"]]}
    schema["properties"]["expected"] = _expected_schema(schema["$defs"])
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "trainsim scenario"
    return schema


def _expected_schema(definitions: dict[str, Any]) -> dict[str, Any]:
    """Figures by name: those with a dimension are written with its unit, the others are plain numbers."""
    plain = definitions["Expected"]
    for dimension in sorted(filter(None, FIGURES.values())):
        written = {"type": "string", "description": f"with its unit: {dimension}", "examples": [EXAMPLES[dimension]]}
        forms: dict[str, Any] = {form: written for form in ("value", "at_least", "at_most")}
        forms["between"] = {"type": "array", "prefixItems": [written, written], "minItems": 2, "maxItems": 2}
        definitions[f"Expected {dimension}"] = {**plain, "properties": {**plain["properties"], **forms}}
    properties = {
        name: {"$ref": f"#/$defs/{f'Expected {dimension}' if dimension else 'Expected'}"}
        for name, dimension in FIGURES.items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _drop_foreign_defaults(schema: Any) -> None:
    """Drop defaults that the field itself would refuse: pydantic writes SI numbers where files need unit strings."""
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for part in parts:
        _drop_foreign_defaults(part)
    if isinstance(schema, dict) and _is_quantity(schema) and not isinstance(schema.get("default", ""), str):
        del schema["default"]


def _is_quantity(schema: dict[str, Any]) -> bool:
    """A unit string, or a duration: pydantic writes a default (median, sigma) as a list."""
    return schema.get("type") == "string" or ("anyOf" in schema and isinstance(schema.get("default"), list))


def catalogue() -> dict[str, list[str]]:
    """Names that a scenario or a command can use."""
    return {
        "scenarios": shipped_names("scenarios"),
        "topologies": shipped_names("topologies"),
        "models": model_names(),
        "accelerators": sorted({accelerator.name for accelerator in read_accelerators().values()}),
        "software stacks": list(read_stacks()),
        "failure presets": list(read_presets()),
    }
