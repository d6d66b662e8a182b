"""The memory of a scenario: every part on every pipeline stage, and, where it does not fit, which change would make it.

A change is tried, not guessed: the scenario is loaded again with it, checked and planned.

Limits: one change at a time, then full recomputation with one of the others; a change that the split or the batch
forbids is left out. Pinned by tests/studies/test_memory.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from simulator import __version__
from simulator.errors import SimulatorError
from simulator.physics.memory import StageMemory, check_capacity
from simulator.scenario.pipeline import num_stages
from simulator.scenario.scenario import Scenario, load
from simulator.scenario.units import Bytes
from simulator.studies.simulate import plan_memory


class Change(NamedTuple):
    """A change of the recipe or the split: the overrides, and what the fullest stage then needs."""

    overrides: tuple[str, ...]
    needed: Bytes
    fits: bool

    def __str__(self) -> str:
        return ", ".join(self.overrides)


@dataclass(frozen=True)
class MemoryPlan:
    """Memory per GPU of every pipeline stage.

    Attributes
    ----------
    problem
        Why it does not fit; None if it does.
    changes
        What was tried to make it fit, the least memory last.
    """

    scenario: Scenario
    stages: tuple[StageMemory, ...]
    problem: str | None
    changes: tuple[Change, ...]

    @property
    def capacity(self) -> Bytes:
        """Of an accelerator."""
        return self.scenario.accelerator.memory

    @property
    def fullest(self) -> StageMemory:
        """The stage that needs the most."""
        return max(self.stages, key=lambda stage: stage.needed)

    def figures(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "capacity_bytes": self.capacity,
            "fits": self.problem is None,
            "problem": self.problem,
            "fullest_stage": self.fullest.rank,
            "largest_parts": [{"part": name, "bytes": size} for name, size in self.fullest.largest(5)],
            "stages": [self._stage_figures(stage) for stage in self.stages],
            "changes": [
                {"set": list(change.overrides), "needed_bytes": change.needed, "fits": change.fits}
                for change in self.changes
            ],
            "scenario": self.scenario.resolved(),
            "version": __version__,
        }

    @property
    def _chunks(self) -> int:
        """Stages of a rank: a chunk in flight is that share of a microbatch."""
        schedule, pp = self.scenario.training.schedule, self.scenario.parallelism.pp or 1
        return num_stages(schedule.kind, pp, schedule.vpp) // pp

    def _stage_figures(self, stage: StageMemory) -> dict[str, Any]:
        return {
            "stage": stage.rank,
            "microbatches_in_flight": stage.in_flight / self._chunks,
            "allocated_bytes": stage.allocated,
            "reserved_bytes": stage.reserved,
            "device_bytes": stage.total,
            "needed_bytes": stage.needed,
            "optimizer_step_bytes": stage.optimizer_step,
            "share_of_capacity": stage.needed / self.capacity,
            "host_bytes": stage.host,
            "parts_bytes": dict(stage.parts),
        }


def memory_plan(name: str | Path, overrides: Sequence[str] = ()) -> MemoryPlan:
    """Plan the memory of a scenario file or a shipped scenario.

    Raises
    ------
    ScenarioError, LayoutError
        As `load`; a scenario that does not fit is a result.
    """
    scenario = load(name, overrides)
    stages = plan_memory(scenario)
    problem = check_capacity(scenario.accelerator, stages, scenario.host)
    changes = () if problem is None else _try_changes(name, tuple(overrides), scenario)
    return MemoryPlan(scenario, stages, problem, changes)


def _try_changes(name: str | Path, overrides: tuple[str, ...], scenario: Scenario) -> tuple[Change, ...]:
    """Every single change; where none helps, full recomputation with each of the others."""
    singles = list(_singles(scenario))
    found = list(_tried(name, overrides, singles))
    if not any(change.fits for change in found):
        full = ("training.recompute=full",)
        pairs = [full + change for change in singles if change[0].split(".")[1].split("=")[0] != "recompute"]
        found += _tried(name, overrides, pairs)
    return tuple(sorted(found, key=lambda change: (not change.fits, -change.needed)))


def _singles(scenario: Scenario) -> Iterator[tuple[str, ...]]:
    """Changes that lower what a GPU must hold, the gentle ones first."""
    training, split = scenario.training, scenario.parallelism
    if training.recompute == "none" and training.attention == "unfused":
        yield ("training.recompute=selective",)
    if training.recompute != "full":
        yield ("training.recompute=full",)
    for stage in range(training.optimizer.zero_stage + 1, 4):
        yield (f"training.optimizer.zero_stage={stage}",)
    if training.micro_batch_size > 1:
        yield (f"training.micro_batch_size={training.micro_batch_size // 2}",)
    if training.optimizer.state_dtype == "fp32":
        yield ("training.optimizer.state_dtype=bf16",)
    if training.optimizer.no_sync:
        yield ("training.optimizer.no_sync=false",)
    if training.optimizer.offload is None and scenario.host is not None:
        yield ("training.optimizer.offload=cpu",)
    dp = split.dp or 1
    for axis in ("tp", "pp", "cp"):
        if dp % 2 == 0:
            yield (f"parallelism.{axis}={2 * (getattr(split, axis) or 1)}", f"parallelism.dp={dp // 2}")
    if scenario.model.moe is not None:
        yield (f"parallelism.ep={2 * split.ep}",)


def _tried(name: str | Path, overrides: tuple[str, ...], changes: Iterable[tuple[str, ...]]) -> Iterator[Change]:
    for change in changes:
        try:
            scenario = load(name, (*overrides, *change))
            stages = plan_memory(scenario)
        except SimulatorError:
            continue  # the split or the batch does not allow it
        needed = max(stage.needed for stage in stages)
        yield Change(change, needed, check_capacity(scenario.accelerator, stages, scenario.host) is None)
