"""How a model is cut: which layers a pipeline stage holds and how many parameters one rank of it keeps.

A stage is a model slice; with `vpp` chunks per rank there are pp · vpp stages, and the schedule's table says on which
pipeline rank each lives. How many layers a stage holds is up to `scenario.pipeline`; the embedding belongs to the
first, the output layer to the last. Linears are split over tp, experts over ep and etp; norms, biases of row-parallel
linears, learned positions, the router and MLA's down projections are replicated over tp, and key-value heads once tp
exceeds them.

Limits: the vocabulary's padding to a multiple of tp is not counted as parameters. Pinned by
tests/physics/test_stages.py: the shares of all ranks add up to the model's parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from simulator.physics.layers.rank import Rank
from simulator.scenario.pipeline import Schedule, stage_layers
from simulator.scenario.transformer import LatentAttention, Transformer


@dataclass(frozen=True, slots=True)
class Stage:
    """A model slice."""

    index: int
    layers: range
    embedding: bool
    output: bool


class LocalParameters(NamedTuple):
    """Parameters on one rank: `dense` are replicated over dp · cp, `expert` over edp."""

    dense: float
    expert: float

    def plus(self, other: LocalParameters) -> LocalParameters:
        """Both together."""
        return LocalParameters(self.dense + other.dense, self.expert + other.expert)


def cut(model: Transformer, pp: int, vpp: int = 1) -> tuple[Stage, ...]:
    """Stages as even as can be, in order."""
    schedule = Schedule(kind="interleaved" if vpp > 1 else "1f1b", vpp=vpp)
    return cut_by(model, schedule, pp)


def cut_by(model: Transformer, schedule: Schedule, pp: int) -> tuple[Stage, ...]:
    """Stages as the schedule cuts them, in order.

    Raises
    ------
    LayoutError
        As `stage_layers`.
    """
    sizes = stage_layers(schedule, model.num_layers, pp)
    ends = list(accumulate(sizes))
    return tuple(
        Stage(index, range(end - size, end), index == 0, index == len(sizes) - 1)
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )


def _split(whole: float, degree: int, replicated: float) -> float:
    """Share of something that is split, but for a part that every rank keeps."""
    return (whole - replicated) / degree + replicated


def _norm_size(model: Transformer, width: int) -> int:
    return (2 if model.norm_bias else 1) * width


def _row_bias(model: Transformer) -> int:
    """Bias of a row-parallel linear: added once, after the sum over tp."""
    return model.hidden_size if model.linear_bias else 0


def _attention(rank: Rank) -> float:
    model, tp = rank.model, rank.parallelism.tp
    if model.mla is not None:
        return _split(model.attention_parameters, tp, _latents(model, model.mla))
    replicated = _row_bias(model) + (_norm_size(model, 2 * model.head_dim) if model.qk_norm else 0)
    qkv_bias = model.linear_bias if model.qkv_bias is None else model.qkv_bias
    key_value = 2 * model.num_query_groups * model.head_dim * (model.hidden_size + qkv_bias)
    copies = max(1, tp // model.num_query_groups)
    return _split(model.attention_parameters + key_value * (copies - 1), tp, replicated)


def _latents(model: Transformer, mla: LatentAttention) -> int:
    """MLA's down projections and the norms of their latents."""
    widths = (mla.q_lora_rank or 0) + mla.kv_lora_rank
    return model.hidden_size * (widths + mla.qk_rope_head_dim) + _norm_size(model, widths)


def layer_parameters(rank: Rank, layer: int) -> LocalParameters:
    """One layer's share."""
    model, split, bias = rank.model, rank.parallelism, _row_bias(rank.model)
    dense = _attention(rank) + model.norm_parameters
    if model.moe is None or not model.is_moe_layer(layer):
        return LocalParameters(dense + _split(model.mlp_parameters, split.tp, bias), 0.0)
    etp = split.tp if split.etp is None else split.etp
    gate = model.hidden_size if model.moe.shared_expert_gate else 0
    dense += model.router_parameters
    dense += _split(model.shared_expert_parameters, split.tp, model.moe.num_shared_experts * bias + gate)
    expert = _split(model.expert_parameters, etp, bias)
    return LocalParameters(dense, expert * model.moe.num_experts / split.ep)


def embedding_parameters(rank: Rank) -> float:
    """Share of the embedding: the token table split over tp, positions and norm replicated."""
    model = rank.model
    table = model.vocab_size * model.hidden_size
    return _split(model.embedding_parameters, rank.parallelism.tp, model.embedding_parameters - table)


def output_parameters(rank: Rank, *, with_embedding: bool) -> float:
    """Share of final norm and output layer.

    With tied embeddings the output layer is the token table, unless that lies on another stage (`with_embedding` is
    false): then the last stage keeps a copy of its own, as Megatron does.
    """
    model = rank.model
    copied = model.tied_embeddings and not with_embedding
    matrix = model.vocab_size * model.hidden_size if copied else model.output_parameters
    return matrix / rank.parallelism.tp + model.final_norm_parameters


def units(rank: Rank, stage: Stage) -> list[tuple[str, LocalParameters]]:
    """What ZeRO-3 gathers and buckets of gradients fill with, in forward order: embedding, each layer, output layer."""
    found = [(f"layer{layer}", layer_parameters(rank, layer)) for layer in stage.layers]
    if stage.embedding:
        found.insert(0, ("embedding", LocalParameters(embedding_parameters(rank), 0.0)))
    if stage.output:
        share = output_parameters(rank, with_embedding=stage.embedding)
        found.append(("output", LocalParameters(share, 0.0)))
    return found


def stage_parameters(rank: Rank, stage: Stage) -> LocalParameters:
    """One stage's share, embedding and output layer included."""
    shares = [share for _, share in units(rank, stage)]
    return LocalParameters(sum(share.dense for share in shares), sum(share.expert for share in shares))


def stage_tensors(model: Transformer, stage: Stage) -> int:
    """Parameter tensors of a stage of dense layers: matrices (queries, keys and values are one), biases and norms."""
    matrices = 2 + (3 if model.gated_mlp else 2)
    biases = matrices if model.linear_bias else 0
    norms = model.norms_per_layer * (2 if model.norm_bias else 1)
    return len(stage.layers) * (matrices + biases + norms) + int(stage.embedding) + 2 * int(stage.output)
