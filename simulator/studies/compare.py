"""Several scenarios side by side: every figure and every part of the step, with the differences from the first.

Pinned by tests/studies/test_compare.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import ScenarioError, SimulatorError
from simulator.scenario.scenario import load
from simulator.studies.simulate import Progress, Simulation, simulate


@dataclass(frozen=True)
class Comparison:
    """Simulations in the order in which they were named."""

    names: tuple[str, ...]
    simulations: tuple[Simulation, ...]

    def rows(self) -> list[tuple[str, list[float | None]]]:
        """Every figure that is a number, by its dotted name; None where a scenario does not have it."""
        flat = [_flatten(simulation) for simulation in self.simulations]
        keys = dict.fromkeys(key for figures in flat for key in figures)
        return [(key, [figures.get(key) for figures in flat]) for key in keys]

    def figures(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        differences = {
            key: [None if value is None or values[0] is None else value - values[0] for value in values]
            for key, values in self.rows()
        }
        return {
            "names": list(self.names),
            "figures": dict(self.rows()),
            "differences": differences,
            "results": [simulation.figures() for simulation in self.simulations],
        }


def _flatten(simulation: Simulation) -> dict[str, float]:
    fullest = max(simulation.memory, key=lambda stage: stage.total)
    campaign = simulation.campaign_figures or {}
    groups: dict[str, dict[str, Any]] = {
        "step": {key: value for key, value in simulation.step_figures.items() if key != "breakdown_s"},
        "breakdown_s": simulation.step_figures["breakdown_s"],
        "memory": {"total_bytes": fullest.total, **{f"{part}_bytes": size for part, size in fullest.parts.items()}},
        "campaign": campaign,
        "mfu_loss": {**campaign["mfu_loss"], **campaign["mfu_loss"]["parts"]} if campaign else {},
    }
    return {
        f"{group}.{key}": value
        for group, figures in groups.items()
        for key, value in figures.items()
        if isinstance(value, int | float)
    }


def compare(names: Sequence[str], overrides: Iterable[str] = (), progress: Progress | None = None) -> Comparison:
    """Simulate every scenario, with the same overrides.

    Raises
    ------
    ScenarioError
        Fewer than two scenarios, or one that is wrong.
    """
    if len(names) < 2:
        raise ScenarioError(f"compare needs two scenarios or more, not {len(names)}; to see one, use: trainsim run")
    overrides = tuple(overrides)
    tell = progress or (lambda _what, _fraction: None)
    scenarios, simulations = [], []
    for name in names:
        with naming(name):
            scenarios.append(load(name, overrides))
    for position, (name, scenario) in enumerate(zip(names, scenarios, strict=True)):
        tell("scenarios", position / len(scenarios))
        with naming(name):
            simulations.append(simulate(scenario))
    return Comparison(short_names(names), tuple(simulations))


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say in an error which of the scenarios it is about, where it does not say so itself."""
    try:
        yield
    except ScenarioError as error:
        if error.file is not None:
            raise
        raise type(error)(error.message, file=name, line=error.line, field=error.field) from error
    except SimulatorError as error:
        if Path(name).name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """What to call scenarios: their files without folder and suffix, where these differ."""
    stems = [Path(name).stem for name in names]
    return tuple(stems) if len(set(stems)) == len(stems) else tuple(names)
