"""A pipeline rank at its worst moment, part by part.

A rank holds as many microbatches' activations as its schedule keeps in flight, times the layers of a chunk. On top
comes the largest of three moments: the loss, the output layer's backward, the widest layer's backward; and, where a
stack copies gradients for its optimizer step, what that moment needs more than the backward passes did.

Pinned by tests/physics/test_memory.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simulator.physics.layers.rank import Rank
from simulator.physics.memory.activations import habits_of, logits_elements, stage_activations, stage_weight_half
from simulator.physics.memory.states import host_bytes, model_state_bytes, shards
from simulator.physics.memory.working import (
    WORKSPACE_BYTES,
    deferred_frees,
    layer_at_work,
    loose_gradients,
    output_at_work,
    outside,
    recomputed_piece,
    sequence_buffers,
    unsharded,
)
from simulator.physics.schedules.tables import Action, Table
from simulator.physics.stages import LocalParameters, Stage, stage_parameters
from simulator.scenario.training import BYTES_PER_ELEMENT
from simulator.scenario.units import Bytes

OUTSIDE = ("communicators", "context")
"""Parts outside PyTorch's allocator."""

UNUSED = ("reserve", "deferred")
"""Parts that the allocator holds while no tensor is in them."""


class StageMemory(NamedTuple):
    """Bytes on one rank of a pipeline stage, by part.

    Attributes
    ----------
    in_flight
        Most forwards, counted in stages, whose backward the rank still owes.
    optimizer_step
        Allocated at the most while gradients are reduced and weights updated.
    host
        Host memory of an offloaded optimizer, beside the parts on the GPU.
    """

    rank: int
    parts: dict[str, Bytes]
    in_flight: int = 0
    optimizer_step: Bytes = 0.0
    host: Bytes = 0.0

    @property
    def total(self) -> Bytes:
        """All parts: what the device shows."""
        return sum(self.parts.values())

    @property
    def reserved(self) -> Bytes:
        """What PyTorch's allocator holds."""
        return self.total - sum(self.parts.get(part, 0.0) for part in OUTSIDE)

    @property
    def allocated(self) -> Bytes:
        """What tensors take at the worst moment."""
        return self.reserved - sum(self.parts.get(part, 0.0) for part in UNUSED)

    @property
    def needed(self) -> Bytes:
        """What must fit: the device's total without what the allocator gives back when memory runs out."""
        return self.total - self.parts.get("deferred", 0.0)

    def largest(self, count: int = 3) -> list[tuple[str, Bytes]]:
        """The largest parts."""
        return sorted(self.parts.items(), key=lambda part: -part[1])[:count]


def job_memory(rank: Rank, stages: tuple[Stage, ...], table: Table) -> tuple[StageMemory, ...]:
    """Bytes on one rank of every pipeline rank, at its worst moment."""
    found = []
    for index, actions in enumerate(table):
        held = tuple(stages[stage] for stage in sorted({action.stage for action in actions}))
        found.append(rank_memory(rank, index, held, actions))
    return tuple(found)


def kept_losses(rank: Rank) -> Bytes:
    """What the loss of a microbatch keeps for its backward: fp32 softmax, or where it is fused the 16-bit logits."""
    return min(4.0, habits_of(rank).loss_bytes) * logits_elements(rank)


def rank_memory(rank: Rank, pipeline_rank: int, stages: tuple[Stage, ...], actions: Sequence[Action]) -> StageMemory:
    """Bytes on one rank that holds `stages` and walks `actions`."""
    parameters = LocalParameters(0.0, 0.0)
    for stage in stages:
        parameters = parameters.plus(stage_parameters(rank, stage))
    layers = {stage.index: stage_activations(rank, stage) for stage in stages}
    kept = {stage.index: kept_losses(rank) if stage.output else 0.0 for stage in stages}
    halves = {stage.index: stage_weight_half(rank, stage) for stage in stages}
    gradients = {stage.index: rank.element * logits_elements(rank) if stage.output else 0.0 for stage in stages}
    activations = _peak(layers, halves, actions)
    both = {index: layers[index] + kept[index] for index in layers}
    losses = _peak(both, {index: halves[index] + gradients[index] for index in halves}, actions) - activations
    one, count = dict.fromkeys(layers, 1.0), {stage.index: float(len(stage.layers)) for stage in stages}
    flight = int(_peak(one, one, actions)), _peak(count, count, actions)
    return plan(rank, pipeline_rank, stages, parameters, activations, losses, flight)


def plan(
    rank: Rank,
    pipeline_rank: int,
    stages: Sequence[Stage],
    parameters: LocalParameters,
    activations: Bytes,
    losses: Bytes,
    flight: tuple[int, float],
) -> StageMemory:
    """Put the parts together.

    Parameters
    ----------
    activations, losses
        Of all microbatches in flight; what the losses keep beside.
    flight
        Stages and layers whose backward is owed, at the most.
    """
    habits = habits_of(rank)
    parts = dict(model_state_bytes(rank, parameters))
    states = sum(parts.values())
    parts["activations"] = activations
    parts["logits"] = losses
    if any(stage.output for stage in stages):  # the output layer's output, and later its gradient
        parts["logits"] += habits.loss_bytes * logits_elements(rank) - kept_losses(rank)
    moments = [layer_at_work(rank, stages), *(output_at_work(rank, stage) for stage in stages)]
    parts["working"] = max(0.0, max(moments) - parts["logits"])
    buffers = sequence_buffers(rank)
    parts["buffers"] = buffers + recomputed_piece(rank, stages) + sum(unsharded(rank, stages))
    parts["loose_gradients"] = loose_gradients(rank, stages, parameters)
    parts["workspace"] = WORKSPACE_BYTES
    at_step = states + WORKSPACE_BYTES + buffers + _at_step(rank, parameters, parts["loose_gradients"])
    parts["optimizer_step"] = max(0.0, at_step - sum(parts.values()))
    parts["reserve"] = habits.activation_reserve * (parts["activations"] + parts["working"])
    parts["communicators"], parts["context"] = outside(rank)
    room = max(0.0, rank.accelerator.memory - sum(parts.values()))
    parts["deferred"] = min(room, deferred_frees(rank, flight[1], flight[0]))
    return StageMemory(pipeline_rank, parts, flight[0], at_step, host_bytes(rank, parameters))


def _at_step(rank: Rank, parameters: LocalParameters, loose: Bytes) -> Bytes:
    """What the optimizer step needs beside states: DDP's buckets, or a flat copy of the gradients and the shard's."""
    habits, optimizer = habits_of(rank), rank.training.optimizer
    if rank.parallelism.replicas == 1:
        return 0.0
    if habits.reduce_copy and optimizer.zero_stage:
        dense, expert = shards(rank)
        size = BYTES_PER_ELEMENT[optimizer.grad_dtype]
        shard = parameters.dense / dense + parameters.expert / expert
        return size * sum(parameters) + rank.element * shard
    return loose if habits.whole_gradients or habits.dummy_gradients else 0.0


def _peak(whole: Mapping[int, float], half: Mapping[int, float], actions: Sequence[Action]) -> float:
    """Largest sum of what waits for its backward.

    A forward adds the whole of its stage, a backward frees it; a split backward leaves the half until its W.
    """
    kept, peak = 0.0, 0.0
    for stage, kind, _ in actions:
        if kind == "F":
            kept += whole[stage]
        elif kind == "B":
            kept -= whole[stage]
        elif kind == "I":
            kept -= whole[stage] - half[stage]
        else:
            kept -= half[stage]
        peak = max(peak, kept)
    return peak
