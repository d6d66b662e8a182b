"""One scenario from file to figures: what is printed, that it can be run again, and laws over many recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from simulator.errors import CapacityError, ScenarioError
from simulator.records import BREAKDOWN_KEYS
from simulator.scenario.expected import FIGURES
from simulator.scenario.parallelism import Parallelism
from simulator.scenario.scenario import Scenario, load
from simulator.scenario.shipped import shipped_names
from simulator.scenario.training import Training
from simulator.studies.simulate import simulate, spare_gpus
from tests.small import load_small, write_small

EXPERTS = {
    "name": "tiny-moe",
    "num_layers": 4,
    "hidden_size": 1024,
    "ffn_hidden_size": 4096,
    "num_attention_heads": 16,
    "vocab_size": 32000,
    "tied_embeddings": False,
    "moe": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 2048},
}

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no pipeline": {"parallelism": {"pp": 1, "dp": 4}},
    "no tensor parallelism": {"parallelism": {"tp": 1, "pp": 1, "dp": 16}},
    "deep pipeline": {"parallelism": {"tp": 1, "pp": 4, "dp": 4}},
    "gpipe": {"training": {"schedule": "gpipe"}},
    "interleaved": {"training": {"schedule": {"kind": "interleaved", "vpp": 2}}},
    "context parallel": {"parallelism": {"tp": 2, "cp": 2}},
    "experts": {"model": EXPERTS, "parallelism": {"ep": 2}},
    "tied embeddings": {"model": {"tied_embeddings": True}},
    "full recomputation": {"training": {"recompute": "full"}},
    "gradients after backward": {"training": {"optimizer": {"zero_stage": 0, "overlap_grad_reduce": False}}},
    "zero 1, gathers ahead": {"training": {"optimizer": {"zero_stage": 1, "overlap_param_gather": True}}},
    "zero 2": {"training": {"optimizer": {"zero_stage": 2}}},
    "zero 3": {"training": {"optimizer": {"zero_stage": 3}}, "parallelism": {"pp": 1, "dp": 4}},
}


def dumped(figures: dict[str, Any]) -> str:
    """JSON as the command line prints it: no NaN, no infinity."""
    return json.dumps(figures, indent=2, allow_nan=False, ensure_ascii=False)


# --- what is printed -------------------------------------------------------------------------------------------------


def test_figures_have_the_documented_names(tmp_path: Path) -> None:
    """Sections and keys that scripts rely on; more may be there, none may be missing."""
    figures = simulate(load_small(tmp_path, expected={"mfu": {"at_most": 1.0, "source": "a law"}})).figures()
    assert list(figures) == [
        "step", "memory", "campaign", "expected", "warnings", "scenario", "version", "seed",
    ]  # fmt: skip
    assert {
        "step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "mfu_causal", "mfu_6nd", "hfu", "bubble_fraction",
        "bubble_overhead", "breakdown_s",
    } <= set(figures["step"])  # fmt: skip
    assert tuple(figures["step"]["breakdown_s"]) == BREAKDOWN_KEYS
    assert set(figures["memory"]) == {"capacity_bytes", "stages"}
    assert [stage["stage"] for stage in figures["memory"]["stages"]] == [0, 1]
    for stage in figures["memory"]["stages"]:
        assert stage["total_bytes"] == sum(stage["parts_bytes"].values())
    assert {
        "wall_clock_s", "effective_mfu", "effective_mfu_owned", "goodput", "failures", "lost_work_s", "checkpoint_s",
        "restart_s", "gpu_hours", "cost_usd",
    } <= set(figures["campaign"])  # fmt: skip
    (entry,) = figures["expected"]
    assert {"name", "simulated", "published", "source"} <= set(entry)
    assert figures["seed"] == 3


def test_every_figure_that_can_be_expected_is_simulated(tmp_path: Path) -> None:
    """Each name of `expected:` finds its simulated value."""
    example = {
        "time": "1 s", "throughput": "1 tokens/s", "bytes": "1 GB", "money": "1 USD", "gpu-hours": "1 GPU-h", None: 1.0,
    }  # fmt: skip
    expected = {name: {"value": example[dimension], "source": "none"} for name, dimension in FIGURES.items()}
    entries = simulate(load_small(tmp_path, expected=expected)).figures()["expected"]
    assert [entry["name"] for entry in entries] == list(FIGURES)
    assert [entry["name"] for entry in entries if entry["simulated"] is None] == []
    memory = simulate(load_small(tmp_path)).memory
    assert entries[list(FIGURES).index("memory_bytes")]["simulated"] == max(stage.total for stage in memory)


def test_published_figures_stand_beside_simulated_ones(tmp_path: Path) -> None:
    """A value has an error, a range and a bound a verdict; a figure of a run that is not simulated has neither."""
    expected = {
        "total_parameters": {"value": 1e8, "source": "a paper", "note": "rounded"},
        "mfu": {"between": [0.0, 1.0], "source": "a law"},
        "hfu": {"at_least": 0.99, "source": "a dream"},
        "wall_clock_s": {"value": "1 d", "source": "a plan"},
    }
    scenario = load_small(tmp_path, training={"tokens": None}, reliability=None, expected=expected)
    total, mfu, hfu, wall = simulate(scenario).expected_figures()
    parameters = scenario.model.total_parameters
    assert total == {
        "name": "total_parameters", "simulated": parameters, "published": 1e8, "agrees": None,
        "error": parameters / 1e8 - 1, "source": "a paper", "note": "rounded",
    }  # fmt: skip
    assert (mfu["published"], mfu["agrees"], mfu["error"]) == ([0.0, 1.0], True, None)
    assert (hfu["published"], hfu["agrees"]) == ({"at_least": 0.99}, False)
    assert (wall["simulated"], wall["agrees"], wall["error"]) == (None, None, None)


# --- running a result again ------------------------------------------------------------------------------------------


VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {
        "expected": {
            "wall_clock_s": {"between": ["90 d", "100.1 d"], "source": "x"},
            "cost_usd": {"value": "63e6 USD", "source": "x"},
            "mfu": {"at_most": 1, "source": "x"},
        },
        "job_gpus": 16,
        "description": "ümlauts – and 'quotes': # no comment",
    },
    "no run": {"training": {"tokens": None}, "reliability": None},
    "no spares, no price": {"cluster": {"price_per_gpu_hour": None}, "reliability": {"spares": 0}},
    "nothing fails": {"reliability": {"failures": []}},
    "a box without network": {
        "cluster": {
            "topology": {"kind": "nvlink_box", "gpus_per_node": 16, "scale_up": {"bandwidth": "450 GB/s"}},
        },
    },
    "asynchronous checkpoints": {
        "reliability": {
            "checkpoint": {"interval": "100 steps", "mode": "async", "save_time": "1 s", "load_time": "9 s"}
        }
    },
    "experts": RECIPES["experts"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_embedded_scenario_runs_again_with_the_same_bytes(variant: str, tmp_path: Path) -> None:
    """What a result embeds is a scenario file: dumped, written as YAML, loaded and simulated it gives equal bytes."""
    first = dumped(simulate(load_small(tmp_path, **VARIANTS[variant])).figures())
    again = tmp_path / "again.yaml"
    scenario = json.loads(first)["scenario"]
    again.write_text(yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True), encoding="utf-8")
    assert dumped(simulate(load(again)).figures()) == first
    again.write_text(dumped(scenario), encoding="utf-8")  # JSON is YAML too
    assert dumped(simulate(load(again)).figures()) == first


@pytest.mark.parametrize("name", shipped_names("scenarios"))
def test_every_shipped_scenario_can_be_embedded(name: str, tmp_path: Path) -> None:
    """Resolving, writing and loading a shipped scenario changes nothing that resolving shows."""
    resolved = load(name).resolved()
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(json.loads(dumped(resolved)), sort_keys=False), encoding="utf-8")
    assert load(again).resolved() == resolved


def test_leaving_nulls_out_loses_nothing() -> None:
    """A result leaves out what is null, so no field may allow null and default to something else."""
    seen: set[type[BaseModel]] = set()

    def visit(model: type[BaseModel]) -> None:
        if model in seen:
            return
        seen.add(model)
        for name, field in model.model_fields.items():
            # a degree may be null in a file, but loading derives it; so it does the tokens of phases
            derived = model is Parallelism or (model is Training and name == "tokens")
            if type(None) in get_args(field.annotation) and not derived:
                assert field.default is None, f"{model.__name__}.{name}"
            for part in models_in(field.annotation):
                visit(part)

    visit(Scenario)
    assert len(seen) > 15


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Nothing depends on how Python happens to hash strings; another seed gives other failures."""
    path = write_small(tmp_path, **RECIPES["experts"])
    command = [sys.executable, "-m", "simulator.cli", "run", str(path), "--json"]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONUTF8": "1"}
    elsewhere = subprocess.run(command, capture_output=True, check=True, env=environment).stdout.decode("utf-8")
    here = simulate(load(path)).figures()
    assert elsewhere.rstrip("\n") == dumped(here)
    other = simulate(load(path, ["seed=4"])).figures()["campaign"]
    assert other["lost_work_s"] != here["campaign"]["lost_work_s"]


# --- laws over recipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_step_adds_up_whatever_the_recipe(recipe: str, tmp_path: Path) -> None:
    """Parts add up to the last bit and none is negative; ideal compute is mfu_causal of the step; spans tile it."""
    simulation = simulate(load_small(tmp_path, **RECIPES[recipe]))
    step = simulation.step_figures
    parts, step_time = step["breakdown_s"], step["step_time_s"]
    assert sum(parts.values()) == step_time
    assert min(parts.values()) >= 0.0
    assert parts["ideal_compute"] == pytest.approx(step["mfu_causal"] * step_time, rel=1e-12)
    assert 0 < step["mfu_causal"] <= step["mfu"] <= step["hfu"] * (1 + 1e-12) <= 1 + 1e-12
    assert step["bubble_fraction"] <= step["bubble_fraction_theory"] + 1e-12
    for rank in range(simulation.scenario.parallelism.pp):
        spans = [span for span in simulation.step.spans if span.rank == rank]
        assert [span.start for span in spans] == [0.0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == step_time


def test_each_recipe_shows_its_own_part(tmp_path: Path) -> None:
    """What a recipe adds appears under its key, and is zero without it."""
    shown = {
        "plain": {"exposed_tp", "exposed_pp", "exposed_dp", "bubble", "imbalance"},
        "no tensor parallelism": {"exposed_dp"},
        "context parallel": {"exposed_cp"},
        "experts": {"exposed_ep"},
        "full recomputation": {"recomputation"},
        "zero 3": {"exposed_dp", "overlap_slowdown"},
    }
    absent = {
        "plain": {"exposed_cp", "exposed_ep", "recomputation"},
        "no pipeline": {"bubble", "imbalance", "exposed_pp"},
        "no tensor parallelism": {"exposed_tp", "bubble", "imbalance", "exposed_pp"},
    }
    for recipe in {*shown, *absent}:
        parts = simulate(load_small(tmp_path, **RECIPES[recipe])).step_figures["breakdown_s"]
        assert {key for key in shown.get(recipe, ()) if parts[key] <= 0} == set(), recipe
        assert {key for key in absent.get(recipe, ()) if parts[key] != 0} == set(), recipe


# --- memory, campaign, warnings --------------------------------------------------------------------------------------


def said(scenario: Scenario) -> list[str]:
    """Warnings, but for the one that no measured run is like this tiny one."""
    return [text for text in simulate(scenario).warnings if not text.startswith("outside validated ground")]


def test_a_model_that_does_not_fit_is_refused_or_warned_about(tmp_path: Path) -> None:
    """The message quotes need, capacity, the largest parts and ways out; `enforce: false` makes it a warning."""
    large: dict[str, Any] = {"model": {"num_layers": 32, "hidden_size": 16384, "ffn_hidden_size": 65536}}
    message = r"pipeline stage \d needs .* GB per GPU and a a100-80gb has 85.0 GB; the largest parts: .*"
    with pytest.raises(CapacityError, match=message + r"enforce: false"):
        simulate(load_small(tmp_path, **large))
    simulation = simulate(load_small(tmp_path, **large, memory={"enforce": False}))
    assert "GB per GPU and a a100-80gb has" in simulation.warnings[0]


def test_without_tokens_there_is_no_campaign(tmp_path: Path) -> None:
    """The length of the run is not guessed, even if the scenario says how things break."""
    simulation = simulate(load_small(tmp_path, training={"tokens": None}))
    assert simulation.campaign is None
    assert "campaign" not in simulation.figures()


def test_without_reliability_every_second_is_productive(tmp_path: Path) -> None:
    """Nothing fails and nothing is saved: effective MFU is MFU, and only the job's GPUs are paid for."""
    simulation = simulate(load_small(tmp_path, reliability=None))
    run, step = simulation.campaign_figures, simulation.step_figures
    assert run is not None
    steps = -(-10e12 // (16 * 1024))
    assert run["wall_clock_s"] == pytest.approx(steps * step["step_time_s"])
    assert run["goodput"] == 1.0
    assert run["failures"] == 0
    assert run["checkpoint_s"] == run["lost_work_s"] == run["restart_s"] == 0.0
    assert run["effective_mfu"] == run["effective_mfu_owned"] == pytest.approx(step["mfu"])
    assert run["gpu_hours"] == pytest.approx(16 * run["wall_clock_s"] / 3600)
    assert run["cost_usd"] == pytest.approx(2 * run["gpu_hours"])


@pytest.mark.parametrize(("spares", "gpus"), [(None, 8), (0, 0), (1, 8)])
def test_spares_are_the_nodes_left_over_unless_stated(spares: int | None, gpus: int, tmp_path: Path) -> None:
    """Three nodes, two for the job: one spare, or as many as the scenario says; all are paid for."""
    change = {} if spares is None else {"spares": spares}
    run = simulate(load_small(tmp_path, reliability=change)).campaign_figures
    assert run is not None
    assert (run["job_gpus"], run["spare_gpus"]) == (16, gpus)
    assert run["gpu_hours"] == pytest.approx((16 + gpus) * run["wall_clock_s"] / 3600)
    assert run["failures"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"tokens": None}}, "uses 16 of 24 GPUs; 8 stay idle"),
        ({"reliability": {"spares": 0}}, "uses 16 of 24 GPUs; 8 stay idle"),
        ({"training": {"optimizer": {"zero_stage": 3}}}, "zero_stage 3 with pp 2 communicates in every microbatch"),
        ({"training": {"recompute": "selective"}}, "flash attention keeps no scores"),
        ({"cluster": {"accelerator": "mi300x"}}, "kernel times of mi300x are a prior"),
    ],
)
def test_warnings_say_what_is_rarely_meant(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A warning for each, and none for the plain scenario, whose spare node is counted as a spare."""
    assert said(load_small(tmp_path)) == []
    (warning,) = said(load_small(tmp_path, **changes))
    assert message in warning


def test_sharded_parameters_without_a_pipeline_are_no_reason_to_warn(tmp_path: Path) -> None:
    """ZeRO-3 is only rare beside a pipeline."""
    assert said(load_small(tmp_path, **RECIPES["zero 3"])) == []


def test_a_node_that_is_used_in_part_is_no_spare(tmp_path: Path) -> None:
    """Four GPUs need one of three nodes: two are spares."""
    scenario = load_small(tmp_path, parallelism={"pp": 1, "dp": 1})
    assert spare_gpus(scenario) == 16
    assert simulate(scenario).plan.hot.size == 2  # type: ignore[union-attr]


def test_the_interval_may_be_found_by_simulation(tmp_path: Path) -> None:
    """`simulated` saves as often as the study finds best, within a fifth of the exact optimum."""
    changes = {"checkpoint": {"interval": "simulated", "save_time": "60 s", "load_time": "60 s"}}
    failing = {"failures": [{"name": "node", "mtbf": "4 h", "needs_machine": False}], **changes}
    fields: dict[str, Any] = {"training": {"tokens": "4e10 tokens"}, "reliability": failing}
    found, exact = (
        simulate(load_small(tmp_path, f"reliability.checkpoint.interval={rule}", **fields)).plan
        for rule in ("simulated", "optimal")
    )
    assert found is not None
    assert exact is not None
    steps = [plan.phases[0].tiers[-1].every for plan in (found, exact)]
    assert steps[0] == pytest.approx(steps[1], rel=0.2)


def test_saves_need_a_storage_or_a_time(tmp_path: Path) -> None:
    """Neither storage nor save_time: the message names the field and an example."""
    with pytest.raises(ScenarioError, match=r"reliability.checkpoint.save_time.*save_time: 60 s"):
        simulate(load_small(tmp_path, cluster={"storage": None}))


def test_progress_tells_what_is_being_done(tmp_path: Path) -> None:
    """Cluster, program, step and campaign in turn, with fractions up to 1."""
    told: list[tuple[str, float]] = []
    simulate(load_small(tmp_path), lambda what, fraction: told.append((what, fraction)))
    assert list(dict(told)) == ["cluster", "program", "step", "campaign"]
    assert told[-1] == ("campaign", 1.0)
    assert all(0 <= fraction <= 1 for _, fraction in told)
