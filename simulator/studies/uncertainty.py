"""How far a prediction is to be trusted: the measured error of the validated runs that are most like the scenario.

`simulator/validation/run_errors.yaml` holds the errors that `trainsim validate` makes by accelerator, software stack,
kind of model and scale. The nearest entry shares the accelerator's family first, then the stack, then the kind of
model, then the scale.

Limits: an error measured on some runs is no bound for another. Pinned by tests/studies/test_uncertainty.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from simulator.scenario.scenario import Scenario
from simulator.studies.runs.score import FEWEST, Outcome, bias, mape

ERRORS = Path(__file__).parents[1] / "validation" / "run_errors.yaml"

SCALES = ((16, "up to 16 GPUs"), (128, "17 to 128 GPUs"), (1024, "129 to 1,024 GPUs"), (math.inf, "over 1,024 GPUs"))


def traits(scenario: Scenario) -> dict[str, Any]:
    """By what a scenario finds the group that is most like it."""
    return {
        "accelerator": scenario.accelerator.name,
        "stack": scenario.training.stack,
        "moe": scenario.model.moe is not None,
        "gpus": scenario.gpus,
    }


class Validated(NamedTuple):
    """Runs that were compared, and how far the simulator was from them."""

    accelerator: str
    stack: str
    moe: bool
    least_gpus: int
    most_gpus: int
    rows: int
    mape: float
    bias: float
    in_sample: bool = False

    @property
    def name(self) -> str:
        """For people."""
        kind = "MoE" if self.moe else "dense"
        sample = ", in sample" if self.in_sample else ""
        return f"{self.accelerator}, {self.stack}, {kind}, {self.least_gpus:,}-{self.most_gpus:,} GPUs{sample}"


def error_table(outcomes: Sequence[Outcome], fitted: Collection[str] = ()) -> list[Validated]:
    """Errors by accelerator, stack, kind of model and scale; scales of too few rows are joined with neighbours.

    Parameters
    ----------
    fitted
        Rows to which a stack was fitted: they count only where there are no others, and the entry says so.
    """
    cells: dict[tuple[str, str, bool], list[Outcome]] = {}
    for each in outcomes:
        if each.error is not None:
            key = (str(each.traits["accelerator"]), str(each.traits["stack"]), bool(each.traits["moe"]))
            cells.setdefault(key, []).append(each)
    found = []
    for key, rows in sorted(cells.items()):
        fresh = [each for each in rows if each.id not in fitted]
        found += [_entry(key, part, in_sample=not fresh) for part in _by_scale(fresh or rows)]
    return found


def _entry(key: tuple[str, str, bool], rows: list[Outcome], *, in_sample: bool) -> Validated:
    sizes = [int(each.traits["gpus"]) for each in rows]
    error, mean = mape(rows), bias(rows)
    assert error is not None
    assert mean is not None
    return Validated(*key, min(sizes), max(sizes), len(rows), round(error, 4), round(mean, 4), in_sample)


def _by_scale(rows: list[Outcome]) -> list[list[Outcome]]:
    parts: list[list[Outcome]] = []
    low = 0.0
    for high, _ in SCALES:
        part = [each for each in rows if low < each.traits["gpus"] <= high]
        low = high
        if part and parts and min(len(part), len(parts[-1])) < FEWEST:
            parts[-1] += part
        elif part:
            parts.append(part)
    return parts


def write_errors(table: Sequence[Validated]) -> str:
    """The table as a file."""
    head = "# Errors of the simulator on measured training runs, by what a scenario has in common with them.\n"
    head += "# Made by benchmarks/fidelity.py --write; read by simulator/studies/uncertainty.py.\n"
    return head + "".join(f"- {_flow(entry)}\n" for entry in table)


def _flow(entry: Validated) -> str:
    return yaml.safe_dump(entry._asdict(), default_flow_style=True, sort_keys=False, width=10_000).strip()


@cache
def read_errors() -> tuple[Validated, ...]:
    """The shipped table."""
    entries = yaml.safe_load(ERRORS.read_text(encoding="utf-8")) or []
    return tuple(Validated(**entry) for entry in entries)


def _family(accelerator: str) -> str:
    return accelerator.split("-")[0]


def _distance(scenario: dict[str, Any], entry: Validated) -> tuple[float, ...]:
    """Of what differs: most important first."""
    gpus = scenario["gpus"]
    outside = max(entry.least_gpus / gpus, gpus / entry.most_gpus, 1.0)
    return (
        _family(scenario["accelerator"]) != _family(entry.accelerator),
        scenario["stack"] != entry.stack,
        scenario["moe"] != entry.moe,
        round(math.log2(outside), 6),
        scenario["accelerator"] != entry.accelerator,
        -entry.rows,
    )


def nearest_validated(scenario: Scenario) -> Validated | None:
    """The entry that a scenario has most in common with; None without a table."""
    wanted = traits(scenario)
    return min(read_errors(), key=lambda entry: _distance(wanted, entry), default=None)


def uncertainty(scenario: Scenario) -> tuple[dict[str, Any] | None, list[str]]:
    """`step.uncertainty` of a scenario, and warnings where it lies outside validated ground."""
    entry = nearest_validated(scenario)
    if entry is None:
        return None, ["nothing was validated: how far the step time is off is unknown"]
    wanted = traits(scenario)
    found = {"mape": entry.mape, "bias": entry.bias, "group": entry.name, "rows": entry.rows}
    differs = []
    if _family(wanted["accelerator"]) != _family(entry.accelerator):
        differs.append(f"accelerator {wanted['accelerator']}")
    if wanted["stack"] != entry.stack:
        differs.append(f"stack {wanted['stack']}")
    if wanted["moe"] != entry.moe:
        differs.append("mixtures of experts" if wanted["moe"] else "dense models")
    if not entry.least_gpus / 2 <= wanted["gpus"] <= entry.most_gpus * 2:
        differs.append(f"{wanted['gpus']:,} GPUs")
    if not differs:
        return found, []
    return found, [
        f"outside validated ground: no measured runs like this one ({', '.join(differs)}); nearest: {entry.name}"
    ]
