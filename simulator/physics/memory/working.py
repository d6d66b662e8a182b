"""What comes and goes within a step: gathered and recomputed pieces, gradients on their way, buffers, the allocator.

Which of them there are follows the recipe and the software stack's habits (`simulator/scenario/memory_habits.py`).

Pinned by tests/physics/test_memory.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from simulator.physics.layers.attention import head_dims
from simulator.physics.layers.experts import LocalExperts, shared_width
from simulator.physics.layers.rank import Rank
from simulator.physics.memory.activations import (
    block_activations,
    expert_activations,
    habits_of,
    layer_activations,
    logits_elements,
    recomputes,
    scores,
    shared_activations,
)
from simulator.physics.memory.states import shards, weight_bytes
from simulator.physics.stages import LocalParameters, Stage, output_parameters, units
from simulator.scenario.training import BYTES_PER_ELEMENT
from simulator.scenario.units import Bytes

CONTEXT_BYTES = 0.75e9
"""CUDA context and library workspaces. Assumption: 0.5-1 GB is what nvidia-smi shows of a process before its first
tensor (driver, cuBLAS and cuDNN workspaces)."""

WORKSPACE_BYTES = 76e6
"""Workspaces of cuBLAS, which PyTorch takes from its allocator: two of 32 MiB on a Hopper GPU and small change. Fitted
to what runs of the Ultra-Scale Playbook's sweep had allocated in their optimizer step."""

COMMUNICATOR_BYTES = 0.15e9
"""NCCL buffers of one communicator. Assumption: 24 channels with 4 MiB of Simple buffers and LL, LL128 buffers beside
them (NCCL_BUFFSIZE's default is 4 MiB)."""


def _full_length(rank: Rank) -> Bytes:
    """A microbatch's hidden states of all tokens: 2 T h."""
    return float(rank.element * rank.tokens * rank.model.hidden_size)


def sequence_buffers(rank: Rank) -> Bytes:
    """Buffers into which sequence parallelism gathers a block's input."""
    return habits_of(rank).sequence_buffers * _full_length(rank) if rank.sequence_parallel else 0.0


def recomputed_piece(rank: Rank, stages: Sequence[Stage]) -> Bytes:
    """The largest piece that recomputation brings back at once: a layer, or the largest module of the list."""
    layers = [layer for stage in stages for layer in stage.layers]
    if rank.training.recompute == "full":
        return max((layer_activations(rank, layer) for layer in layers), default=0.0)
    pieces = [0.0]
    if rank.training.attention == "unfused" and recomputes(rank, "core_attn") and layers:
        pieces.append(scores(rank))
    if recomputes(rank, "mlp"):
        pieces += [block_activations(rank, layer) for layer in layers if not rank.model.is_moe_layer(layer)][:1]
    if any(rank.model.is_moe_layer(layer) for layer in layers):
        if recomputes(rank, "moe"):
            pieces.append(expert_activations(rank) + shared_activations(rank))
        elif recomputes(rank, "shared_experts"):
            pieces.append(shared_activations(rank))
    return max(pieces)


def unsharded(rank: Rank, stages: Sequence[Stage]) -> tuple[Bytes, Bytes]:
    """Weights that ZeRO-3 has gathered and gradients that ZeRO-2 or 3 has not scattered yet, at their largest."""
    optimizer = rank.training.optimizer
    if max(shards(rank)) == 1:
        return 0.0, 0.0
    by_stage = [[sum(share) for _, share in units(rank, stage)] or [0.0] for stage in stages]
    largest = max(max(sizes) for sizes in by_stage)
    gradients = 0.0 if rank.keeps_whole_gradients else BYTES_PER_ELEMENT[optimizer.grad_dtype] * largest
    if optimizer.zero_stage < 3:
        return 0.0, gradients
    if not optimizer.reshard_after_forward:
        return weight_bytes(rank) * sum(map(sum, by_stage)), gradients
    # this unit and the next one
    both = max(max((a + b for a, b in pairwise(sizes)), default=sizes[0]) for sizes in by_stage)
    return weight_bytes(rank) * both, gradients


def loose_gradients(rank: Rank, stages: Sequence[Stage], parameters: LocalParameters) -> Bytes:
    """16-bit gradients beside the fp32 sums: of every parameter, or one tensor of each weight's shape."""
    habits = habits_of(rank)
    if habits.whole_gradients:
        return rank.element * sum(parameters)
    if not habits.dummy_gradients:
        return 0.0
    shapes = {shape for stage in stages for layer in stage.layers for shape in weight_shapes(rank, layer)}
    return float(rank.element * sum(rows * columns for rows, columns in shapes))


def weight_shapes(rank: Rank, layer: int) -> set[tuple[float, float]]:
    """Local shapes of a layer's linears: outputs by inputs."""
    model, tp = rank.model, rank.parallelism.tp
    hidden, mla, inputs = model.hidden_size, model.mla, 2 if model.gated_mlp else 1
    v_dim = head_dims(model)[1]
    found: set[tuple[float, float]] = {(hidden, rank.heads * v_dim)}
    if mla is None:
        found.add(((rank.heads + 2 * rank.query_groups) * model.head_dim, hidden))
    else:
        found |= {(mla.kv_lora_rank + mla.qk_rope_head_dim, hidden)}
        found |= {(rank.heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank)}
        found |= {(rank.heads * mla.qk_head_dim, mla.q_lora_rank or hidden)}
        if mla.q_lora_rank is not None:
            found.add((mla.q_lora_rank, hidden))
    widths: list[float] = []
    if model.is_moe_layer(layer):
        widths = [LocalExperts.of(rank).width, shared_width(rank)]
    else:
        widths = [model.ffn_hidden_size / tp]
    for width in widths:
        if width:
            found |= {(inputs * width, hidden), (hidden, width)}
    return found


def layer_at_work(rank: Rank, stages: Sequence[Stage]) -> Bytes:
    """Gradients of the widest layer's inner tensors and of its input and output, in its backward."""
    widest = 0.0
    for layer in {rank.model.is_moe_layer(layer): layer for stage in stages for layer in stage.layers}.values():
        width = rank.tokens * rank.model.ffn_hidden_size / rank.parallelism.tp
        if rank.model.is_moe_layer(layer):
            experts = LocalExperts.of(rank)
            width = float(max(experts.rows * experts.width, rank.tokens * shared_width(rank)))
        widest = max(widest, width)
    inputs = 2 if rank.model.gated_mlp else 1
    return rank.element * inputs * widest + 2 * _full_length(rank) if widest else 0.0


def output_at_work(rank: Rank, stage: Stage) -> Bytes:
    """The output layer's backward: logits' gradient, a weight gradient handed to PyTorch, and its input's gradient."""
    if not stage.output:
        return 0.0
    weight = 0.0
    if habits_of(rank).dummy_gradients:
        weight = rank.element * (output_parameters(rank, with_embedding=False) - rank.model.final_norm_parameters)
        if not rank.model.tied_embeddings:
            weight = rank.element * rank.model.output_parameters / rank.parallelism.tp
    return rank.element * logits_elements(rank) + weight + 2 * _full_length(rank)


def deferred_frees(rank: Rank, layers_in_flight: float, waiting: int) -> Bytes:
    """Outputs of row-parallel linears that the allocator cannot reuse yet; see `DeferredFrees`."""
    if rank.parallelism.tp == 1:
        return 0.0
    habits = habits_of(rank)
    if (rank.parallelism.pp or 1) == 1:
        deferred, layers = habits.deferred_single, layers_in_flight
    else:
        deferred = habits.deferred_pipelined
        layers = layers_in_flight * max(0, waiting - 2) / max(1, waiting)
    return min(deferred.most, deferred.per_layer * layers) * _full_length(rank)


def outside(rank: Rank) -> tuple[Bytes, Bytes]:
    """What NCCL's communicators and the CUDA context take outside PyTorch's allocator."""
    stated = habits_of(rank).outside
    if stated is not None:
        return stated - CONTEXT_BYTES, CONTEXT_BYTES
    split = rank.parallelism
    axes: Iterable[int | None] = (split.tp, split.cp, split.ep, split.pp, split.dp)
    return sum((degree or 1) > 1 for degree in axes) * COMMUNICATOR_BYTES, CONTEXT_BYTES
