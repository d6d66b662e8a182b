"""Stages and shares: no layer is lost, and the shares of all ranks add up to the model's parameters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.layers.rank import Rank
from simulator.physics.stages import LocalParameters, cut, layer_parameters, stage_parameters, stage_tensors, units
from simulator.scenario.scenario import MODELS, load_model
from simulator.scenario.transformer import Transformer
from tests.physics.shapes import gpt, make_rank, ranks


@given(per_stage=st.integers(1, 5), pp=st.integers(1, 6), vpp=st.integers(1, 4))
def test_every_layer_lies_on_one_stage(per_stage: int, pp: int, vpp: int) -> None:
    """Stages hold the layers in order, as many each; the first has the embedding, the last the output layer."""
    model = gpt(num_layers=per_stage * pp * vpp)
    stages = cut(model, pp, vpp)
    assert [layer for stage in stages for layer in stage.layers] == list(range(model.num_layers))
    assert {len(stage.layers) for stage in stages} == {per_stage}
    assert [stage.index for stage in stages if stage.embedding] == [0]
    assert [stage.index for stage in stages if stage.output] == [pp * vpp - 1]


def test_shares_of_a_gpt_layer() -> None:
    """H 512 over tp 4, worked out.

    QKV 512·1536 + 1536, up 512·2048 + 2048: split with their biases. Proj 512·512 and down 2048·512: split, their
    biases of 512 kept whole, as are two norms of 2 · 512.
    """
    split = (512 * 1536 + 1536 + 512 * 512 + 512 * 2048 + 2048 + 2048 * 512) / 4
    assert layer_parameters(make_rank(gpt(), tp=4), 0) == LocalParameters(split + 2 * 512 + 2 * 2 * 512, 0.0)


def replicated(rank: Rank) -> float:
    """Parameters that every tp rank keeps whole, written out from the definition of each part."""
    model = rank.model
    norm = 2 if model.norm_bias else 1
    bias = model.hidden_size if model.linear_bias else 0
    positions = model.embedding_parameters - model.vocab_size * model.hidden_size
    ends = positions + (norm * model.hidden_size if model.final_norm else 0)
    attention = bias + (norm * 2 * model.head_dim if model.qk_norm else 0)
    if model.mla is not None:
        latent = (model.mla.q_lora_rank or 0) + model.mla.kv_lora_rank
        attention = model.hidden_size * (latent + model.mla.qk_rope_head_dim) + norm * latent
    total = ends + model.num_layers * (attention + model.norms_per_layer * norm * model.hidden_size)
    dense = model.num_layers - model.num_moe_layers
    if model.moe is None:
        return total + dense * bias
    gate = model.hidden_size if model.moe.shared_expert_gate else 0
    mixture = model.router_parameters + gate + model.moe.num_shared_experts * bias
    return total + dense * bias + model.num_moe_layers * mixture


def copied_heads(rank: Rank) -> float:
    """Weights and biases of key-value heads that exist more than once, over all tp ranks."""
    model = rank.model
    if model.mla is not None:
        return 0.0
    more = max(model.num_query_groups, rank.parallelism.tp) - model.num_query_groups
    bias = model.linear_bias if model.qkv_bias is None else model.qkv_bias
    return float(model.num_layers * 2 * more * model.head_dim * (model.hidden_size + bias))


@given(ranks(), st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]))
def test_shares_of_all_ranks_add_up_to_the_model(rank: Rank, depth: tuple[int, int]) -> None:
    """Dense shares over tp, less what is there more than once, and experts over etp and ep: the model's parameters."""
    model, split = rank.model, rank.parallelism
    if model.num_layers % (depth[0] * depth[1]):
        return
    stages = cut(model, *depth)
    shares = [stage_parameters(rank, stage) for stage in stages]
    dense = split.tp * sum(share.dense for share in shares) - (split.tp - 1) * replicated(rank) - copied_heads(rank)
    if model.tied_embeddings and len(stages) > 1:
        dense -= model.vocab_size * model.hidden_size  # the last stage's copy
    etp = split.tp if split.etp is None else split.etp
    bias = model.hidden_size if model.linear_bias else 0
    expert = etp * split.ep * sum(share.expert for share in shares)
    if model.moe is not None:
        expert -= (etp - 1) * model.num_moe_layers * model.moe.num_experts * bias
    assert dense + expert == pytest.approx(model.total_parameters, rel=1e-12)


def test_tied_embeddings_are_copied_to_the_last_stage() -> None:
    """Megatron keeps the table on both ends of a pipeline; on one stage, or untied, there is no copy."""
    table, norm = 1024 * 512, 2 * 512

    def last(stages: int, *, tied: bool) -> float:
        rank = make_rank(gpt(tied_embeddings=tied), tp=2)
        return dict(units(rank, cut(rank.model, stages)[-1]))["output"].dense

    assert last(2, tied=True) == table / 2 + norm
    assert last(1, tied=True) == norm
    assert last(2, tied=False) == last(1, tied=False) == table / 2 + norm


def test_units_of_a_stage_are_its_parameters() -> None:
    """Embedding first, output layer last, layers between."""
    rank = make_rank(gpt(moe={"num_experts": 4, "top_k": 1, "ffn_hidden_size": 64}), tp=2, dp=4, ep=2)
    for stages in (1, 2, 4):
        for stage in cut(rank.model, stages):
            found = units(rank, stage)
            names = [f"layer{layer}" for layer in stage.layers]
            assert [name for name, _ in found] == ["embedding"] * stage.embedding + names + ["output"] * stage.output
            assert sum(sum(share) for _, share in found) == pytest.approx(sum(stage_parameters(rank, stage)), rel=1e-14)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_catalogue_on_one_gpu(path: Any) -> None:
    """One rank alone keeps all of every shipped model."""
    model: Transformer = load_model(path.stem, MODELS)
    (stage,) = cut(model, 1)
    assert sum(stage_parameters(make_rank(model), stage)) == model.total_parameters


def test_tensors_of_a_stage() -> None:
    """A layer of a GPT has 4 matrices, their biases and 2 norms of 2 vectors; a Llama's 5 matrices and 2 norms."""
    first, last = cut(gpt(), 2)
    assert (stage_tensors(gpt(), first), stage_tensors(gpt(), last)) == (2 * 12 + 1, 2 * 12 + 2)
    llama = load_model("llama2-7b", MODELS)
    assert stage_tensors(llama, cut(llama, 1)[0]) == 32 * 7 + 3
