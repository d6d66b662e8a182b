"""Hold the memory model against runs that fitted or did not: one prediction a row, errors by model.

A row fits when the fullest pipeline stage needs no more than the accelerator has. `reserved` and `at_step` are compared
with the first stage, whose rank wrote the sweep's log.

Limits: dense Llamas, one-forward-one-backward pipelines, no recomputation: what the sweep ran. Whether the host ran
ahead of the GPU (`DeferredFrees`) is told from the release and the pipeline only, where a run may do one or the other.
Pinned by tests/studies/test_validate_memory.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from simulator.errors import LayoutError, SimulatorError
from simulator.physics.layers.rank import Rank
from simulator.physics.memory.activations import stage_activations
from simulator.physics.memory.cuts import cut_by_cost
from simulator.physics.memory.ranks import StageMemory, kept_losses, plan
from simulator.physics.program.build import rank_of
from simulator.physics.stages import Stage, cut, stage_parameters
from simulator.scenario.hardware import find_accelerator
from simulator.scenario.parallelism import Parallelism
from simulator.scenario.stacks import Stack, find_stack, read_stacks
from simulator.scenario.training import Training
from simulator.scenario.transformer import Transformer
from simulator.scenario.units import Bytes
from simulator.studies.memory_rows import MalformedRow, MemoryRow, holds_runs, read_memory_rows
from simulator.studies.runs.scenarios import RefusedError, describe
from simulator.studies.runs.scenarios import stack_of as stack_of_run
from simulator.studies.runs.table import Malformed, Row, read_table
from simulator.studies.simulate import plan_memory

SHIPPED = Path(__file__).parents[1] / "validation" / "memory_runs.csv"

NEAR = 0.3
"""A prediction within this share of capacity, up or down, counts as near it."""


class Prediction(NamedTuple):
    """What a row should have shown.

    Attributes
    ----------
    needed, capacity
        By the fullest stage, and of an accelerator.
    peak
        What was measured: reserved, allocated or device memory.
    at_step
        Allocated at the most in the optimizer step.
    """

    needed: Bytes
    capacity: Bytes
    peak: Bytes
    at_step: Bytes

    @property
    def fits(self) -> bool:
        """Whether the fullest stage fits."""
        return self.needed <= self.capacity

    @property
    def near(self) -> bool:
        """Whether that is a close call."""
        return abs(self.needed / self.capacity - 1) <= NEAR


@dataclass(frozen=True)
class Outcome:
    """A row with its prediction, or the reason why there is none."""

    id: str
    group: str
    fitted: bool | None = None
    measured: Bytes | None = None
    at_step: Bytes | None = None
    predicted: Prediction | None = None
    refused: str | None = None
    malformed: bool = False
    assumed: dict[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> float | None:
        """Of the peak, predicted / measured - 1."""
        return None if self.predicted is None or self.measured is None else self.predicted.peak / self.measured - 1

    @property
    def step_error(self) -> float | None:
        """Of what the optimizer step had allocated."""
        return None if self.predicted is None or self.at_step is None else self.predicted.at_step / self.at_step - 1

    @property
    def right(self) -> bool | None:
        """Whether fits or does not fit was told right."""
        return None if self.predicted is None else self.predicted.fits == self.fitted

    def figures(self) -> dict[str, Any]:
        """One row of the JSON output."""
        found = self.predicted
        return {
            "id": self.id,
            "group": self.group,
            "predicted": None if found is None else found.peak,
            "measured": self.measured,
            "error": self.error,
            "predicted_allocated": None if found is None else found.at_step,
            "measured_allocated": self.at_step,
            "needed": None if found is None else found.needed,
            "capacity": None if found is None else found.capacity,
            "predicted_fits": None if found is None else found.fits,
            "fits": self.fitted,
            "refused": self.refused,
            "assumed": self.assumed,
        }


@dataclass(frozen=True)
class MemoryValidation:
    """Every row with its prediction."""

    outcomes: tuple[Outcome, ...]

    @property
    def malformed(self) -> tuple[Outcome, ...]:
        """Rows with a mistake in them."""
        return tuple(each for each in self.outcomes if each.malformed)

    def groups(self) -> dict[str, list[Outcome]]:
        """Rows by model, in order of appearance."""
        found: dict[str, list[Outcome]] = {}
        for each in self.outcomes:
            found.setdefault(each.group, []).append(each)
        return found

    def figures(self) -> dict[str, Any]:
        """The JSON output."""
        groups = [{"group": name, **scores(rows)} for name, rows in self.groups().items()]
        measured = [group["mape"] for group in groups if group["mape"] is not None]
        overall = {**scores(self.outcomes), "mean_of_groups": float(np.mean(measured)) if measured else None}
        return {"overall": overall, "groups": groups, "rows": [each.figures() for each in self.outcomes]}


def scores(rows: Iterable[Outcome]) -> dict[str, Any]:
    """Counts and errors of some rows; None where nothing was measured."""
    rows = list(rows)
    told = [each for each in rows if each.predicted is not None]
    near = [each for each in told if each.predicted is not None and each.predicted.near]
    errors = {each.id: each.error for each in told if each.error is not None}
    steps = [each.step_error for each in told if each.step_error is not None]
    worst = max(errors, key=lambda name: abs(errors[name])) if errors else None
    return {
        "rows": len(rows),
        "refused": len(rows) - len(told),
        "accuracy": _mean([float(bool(each.right)) for each in told]),
        "false_fit": sum(each.right is False and each.fitted is False for each in told),
        "false_oom": sum(each.right is False and each.fitted is True for each in told),
        "near_rows": len(near),
        "near_accuracy": _mean([float(bool(each.right)) for each in near]),
        "mape": _mean([abs(error) for error in errors.values()]),
        "bias": _mean(list(errors.values())),
        "worst": None if worst is None else {"id": worst, "error": errors[worst]},
        "mape_allocated": _mean([abs(error) for error in steps]),
        "bias_allocated": _mean(steps),
        "rank_correlation": _ranks_agree(told),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _ranks_agree(rows: Sequence[Outcome]) -> float | None:
    """Spearman's correlation of peaks; None below 5 rows."""
    pairs = [(each.predicted.peak, each.measured) for each in rows if each.predicted and each.measured]
    if len(pairs) < 5:
        return None
    order = [np.argsort(np.argsort(column)) for column in np.array(pairs).T]
    return float(np.corrcoef(order[0], order[1])[0, 1])


def validate_memory(path: Path | None = None) -> MemoryValidation:
    """Predict every row of a table; the shipped one if none is named.

    A table of training runs with `peak_memory_bytes` (the columns of `validate`) will do as well.

    Raises
    ------
    ScenarioError
        The file cannot be read or lacks a column.
    """
    path = path or SHIPPED
    if holds_runs(path):
        return MemoryValidation(tuple(_run_outcome(row) for row in read_table(path)))
    return MemoryValidation(tuple(_outcome(row) for row in read_memory_rows(path)))


def _outcome(row: MemoryRow | MalformedRow) -> Outcome:
    if isinstance(row, MalformedRow):
        return Outcome(row.id, row.model, refused=str(row), malformed=True)
    stack, assumed = stack_of(row)
    outcome = Outcome(row.id, row.model, row.fitted, row.reserved, row.at_step, assumed=assumed)
    try:
        return replace(outcome, predicted=predict(row, stack))
    except (SimulatorError, ValidationError) as error:
        return replace(outcome, refused=" ".join(str(error).split()))


def stack_of(row: MemoryRow) -> tuple[Stack, dict[str, Any]]:
    """Stack by the `software` column; without one nanotron, before or after the fix of its pipeline."""
    found = find_stack(row.software) if row.software else None
    if found is not None:
        return found, {}
    name = "nanotron-2025" if row.after_pp_fix else "nanotron-2024"
    return read_stacks()[name], {"stack": name}


def predict(row: MemoryRow, stack: Stack) -> Prediction:
    """Memory of a row.

    Raises
    ------
    LayoutError, ValidationError
        The split does not fit the model.
    """
    sizes = row.sizes
    rank = Rank(
        _model(row.model, row.tied, *(sizes[name] for name in _SHAPE)),
        _split(sizes["tp"], sizes["pp"], sizes["dp"]),
        _recipe(
            sizes["seq_len"], sizes["dp"] * sizes["micro_batch"] * sizes["grad_accum"], sizes["micro_batch"],
            row.zero_stage, stack.name,
        ),
        find_accelerator(row.accelerator),
    )  # fmt: skip
    if sizes["heads"] % sizes["tp"]:
        raise LayoutError(f"num_attention_heads {sizes['heads']} is not divisible by tp {sizes['tp']}")
    stages = _stages(rank.model, sizes["pp"], stack.memory.stage_cut)
    planned = [_plan(rank, stage, sizes["grad_accum"]) for stage in _fullest(stages)]
    first = planned[0]
    return Prediction(
        max(each.needed for each in planned), rank.accelerator.memory, first.reserved, first.optimizer_step
    )


_SHAPE = ("layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab")


@lru_cache
def _model(
    name: str, tied: bool, layers: int, hidden: int, heads: int, groups: int, width: int, vocabulary: int
) -> Transformer:
    return Transformer(
        name=name, num_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_query_groups=groups,
        ffn_hidden_size=width, vocab_size=vocabulary, tied_embeddings=tied, activation="swiglu", norm="rmsnorm",
        linear_bias=False,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _split(tp: int, pp: int, dp: int) -> Parallelism:
    return Parallelism(tp=tp, pp=pp, dp=dp)


@lru_cache(maxsize=4096)
def _recipe(length: int, batch: int, micro: int, zero_stage: int, stack: str) -> Training:
    return Training(
        sequence_length=length, global_batch_size=batch, micro_batch_size=micro, stack=stack,
        optimizer={"zero_stage": zero_stage},
    )  # fmt: skip


def _stages(model: Transformer, pp: int, how: str) -> tuple[Stage, ...]:
    return cut(model, pp) if how == "even" else cut_by_cost(model, pp, reached=how == "cost_reached")


def _fullest(stages: tuple[Stage, ...]) -> list[Stage]:
    """Of stages that hold as much only the earliest, which has the most microbatches in flight."""
    found: dict[tuple[int, bool, bool], Stage] = {}
    for stage in stages:
        found.setdefault((len(stage.layers), stage.embedding, stage.output), stage)
    return list(found.values())


def _plan(rank: Rank, stage: Stage, num_microbatches: int) -> StageMemory:
    """As `rank_memory` for one-forward-one-backward, without walking its table: min(m, p - r) in flight."""
    flight = min(num_microbatches, rank.parallelism.pp - stage.index)
    losses = kept_losses(rank) if stage.output else 0.0
    return plan(
        rank, stage.index, (stage,), stage_parameters(rank, stage), flight * stage_activations(rank, stage),
        flight * losses, (flight, float(flight * len(stage.layers))),
    )  # fmt: skip


# --- training runs with a published peak ------------------------------------------------------------------------------

_KINDS = {"allocated": "allocated", "reserved": "reserved", "device": "total"}
"""Total of a stage by `peak_memory_kind`."""


def _run_outcome(row: Row | Malformed) -> Outcome:
    if isinstance(row, Malformed):
        return Outcome(row.id, row.group, refused=str(row), malformed=True)
    measured, kind = row.get("peak_memory_bytes"), row.get("peak_memory_kind") or "device"
    group = f"{row.group} ({kind})"
    if measured is None:
        return Outcome(row.id, row.group, refused="peak_memory_bytes is blank: no memory was measured")
    if kind not in _KINDS:
        return Outcome(row.id, row.group, refused=f"peak_memory_kind {kind!r} is none of {', '.join(_KINDS)}")
    try:
        scenario, assumed = describe(row)
        habit = stack_of_run(row)[0].memory.stage_cut
        rank, microbatches = rank_of(scenario), scenario.num_microbatches
        if habit == "even":
            planned = list(plan_memory(scenario))
        else:
            stages = _stages(scenario.model, scenario.parallelism.pp, habit)
            planned = [_plan(rank, stage, microbatches) for stage in _fullest(stages)]
        # nanotron's log is the first rank's; others log the fullest
        logged = planned if habit == "even" else planned[:1]
        peak = max(getattr(each, _KINDS[kind]) for each in logged)
        needed = max(each.needed for each in planned)
        found = Prediction(needed, scenario.accelerator.memory, peak, planned[0].optimizer_step)
        return Outcome(row.id, group, fitted=True, measured=measured, predicted=found, assumed=assumed)
    except (RefusedError, SimulatorError) as error:
        return Outcome(row.id, group, measured=measured, refused=" ".join(str(error).split()))
