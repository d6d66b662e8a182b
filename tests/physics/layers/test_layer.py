"""Whole layers: their FLOPs add up to the closed form; recomputation; parallel blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given

from simulator.physics.flops import forward_flops_per_token
from simulator.physics.kernels import memory_bound_time
from simulator.physics.layers.attention import attention_core
from simulator.physics.layers.layer import embedding, layer_backward, layer_forward, output_layer, recomputed
from simulator.physics.layers.rank import Rank
from simulator.physics.operations import Kernel, Operation
from tests.physics.shapes import collectives, flops, gpt, make_rank, ranks


def model_forward(rank: Rank) -> list[Operation]:
    """Write the forward pass of a model that no pipeline cuts."""
    layers = [op for layer in range(rank.model.num_layers) for op in layer_forward(rank, layer)]
    return [*embedding(rank, backward=False), *layers, *output_layer(rank, backward=False)]


def done_twice(rank: Rank) -> float:
    """Forward FLOPs per token, times tp, that the tp ranks repeat or pad beyond what the model needs."""
    model, tp = rank.model, rank.parallelism.tp
    padding = -(-model.vocab_size // tp) * tp - model.vocab_size
    attention = 0
    if model.mla is None:  # key-value heads that several ranks keep
        attention = 2 * model.head_dim * (max(model.num_query_groups, tp) - model.num_query_groups)
    elif not rank.sequence_parallel:
        attention = (tp - 1) * ((model.mla.q_lora_rank or 0) + model.mla.kv_lora_rank + model.mla.qk_rope_head_dim)
    router = 0
    if model.moe is not None and not rank.sequence_parallel:
        router = (tp - 1) * (model.moe.num_experts + model.moe.shared_expert_gate)
    return 2.0 * model.hidden_size * (padding + model.num_layers * attention + model.num_moe_layers * router)


@given(ranks())
def test_kernels_of_all_ranks_do_the_models_flops(rank: Rank) -> None:
    """Forward FLOPs over all ranks = tokens · closed form, but for what tp repeats or pads."""
    split, training = rank.parallelism, rank.training
    tokens = split.dp * training.micro_batch_size * training.sequence_length
    needed = forward_flops_per_token(rank.model, training.sequence_length) + done_twice(rank)
    assert split.world_size * flops(model_forward(rank)) == pytest.approx(tokens * needed, rel=1e-12)


@given(ranks())
def test_backward_is_twice_forward(rank: Rank) -> None:
    """Each matmul has two gradients; so have the two of attention."""
    for layer in range(rank.model.num_layers):
        forward, backward = layer_forward(rank, layer), layer_backward(rank, layer)
        assert flops(backward) == pytest.approx(2 * flops(forward), rel=1e-12)
    output = [flops(output_layer(rank, backward=backward)) for backward in (False, True)]
    assert output[1] == pytest.approx(2 * output[0], rel=1e-12)


@given(ranks())
def test_every_operation_takes_time_or_moves_bytes(rank: Rank) -> None:
    """No kernel is free and no collective is empty."""
    for op in [*model_forward(rank), *layer_backward(rank, 0), *layer_backward(rank, rank.model.num_layers - 1)]:
        assert op.seconds > 0 if isinstance(op, Kernel) else op.size > 0  # type: ignore[union-attr]


def names(operations: list[Operation]) -> list[str]:
    """Names of all operations."""
    return [op.name for op in operations]  # type: ignore[union-attr]


def test_layer_in_order() -> None:
    """A GPT layer over tp 2, kernel by kernel."""
    assert names(layer_forward(make_rank(gpt(), tp=2), 0)) == [
        "attention_norm", "attention.gather", "qkv", "flash_attention", "proj", "attention.reduce",
        "attention.residual", "mlp_norm", "mlp.gather", "mlp.up", "activation", "mlp.down", "mlp.reduce",
        "mlp.residual",
    ]  # fmt: skip


def test_first_layers_of_a_mixture_may_be_dense() -> None:
    """DeepSeek's first layer has an MLP, the second experts."""
    rank = make_rank(gpt(moe={"num_experts": 4, "top_k": 1, "ffn_hidden_size": 64, "first_dense_layers": 1}))
    assert "router" not in names(layer_forward(rank, 0))
    assert "router" in names(layer_forward(rank, 1))
    assert "router.wgrad" not in names(layer_backward(rank, 0))
    assert "router.wgrad" in names(layer_backward(rank, 1))


# --- memory-bound kernels --------------------------------------------------------------------------------------------


def elements(rank: Rank, operations: list[Operation], name: str) -> float:
    """Bf16 elements that the kernels of a name move, of h · tokens each."""
    launch = memory_bound_time(rank.accelerator, 0.0)
    per_byte = memory_bound_time(rank.accelerator, 1.0) - launch
    found = [op.seconds - launch for op in operations if isinstance(op, Kernel) and op.name == name]
    return sum(found) / per_byte / (2 * rank.spread_tokens * rank.model.hidden_size)


@pytest.mark.parametrize(("dropout", "forward", "backward"), [(False, 3.0, 0.0), (True, 3.5, 2.5)])
def test_residuals_move_their_operands(dropout: bool, forward: float, backward: float) -> None:
    """Forward reads two and writes one, with dropout a one-byte mask; backward is free but for dropout."""
    rank = make_rank(gpt(), tp=2, dropout=dropout, sequence_length=65536)
    assert elements(rank, layer_forward(rank, 0), "mlp.residual") == pytest.approx(forward, rel=1e-3)
    assert elements(rank, layer_backward(rank, 0), "mlp.residual.grad") == pytest.approx(backward, rel=1e-3)


@pytest.mark.parametrize(("norms", "before"), [(2, (1, 1)), (4, (2, 2)), (1, (1, 0))])
def test_norms_of_a_layer(norms: int, before: tuple[int, int]) -> None:
    """As many norms as the model says, in front of attention and MLP, in both directions."""
    rank = make_rank(gpt(norms_per_layer=norms))
    forward, backward = names(layer_forward(rank, 0)), names(layer_backward(rank, 0))
    assert (forward.count("attention_norm"), forward.count("mlp_norm")) == before
    assert (backward.count("attention_norm.grad"), backward.count("mlp_norm.grad")) == before


def test_final_norm_is_optional() -> None:
    """A post-norm model has none."""
    for final_norm in (False, True):
        rank = make_rank(gpt(final_norm=final_norm))
        assert ("final_norm" in names(output_layer(rank, backward=False))) is final_norm
        assert ("final_norm.grad" in names(output_layer(rank, backward=True))) is final_norm


# --- recomputation ---------------------------------------------------------------------------------------------------


def test_full_recomputation_is_the_forward_pass() -> None:
    """ArXiv 2205.05198, section 5: kernels and collectives of the layer, all again."""
    rank = make_rank(gpt(), tp=2, recompute="full")
    assert recomputed(rank, 0) == layer_forward(rank, 0)


def test_selective_recomputation_is_the_attention_core() -> None:
    """ArXiv 2205.05198, section 5: 4 b s² h / t FLOPs a layer and no communication."""
    rank = make_rank(gpt(), tp=2, recompute="selective", attention="unfused", dropout=True)
    again = recomputed(rank, 0)
    assert again == attention_core(rank, backward=False)
    assert flops(again) == 4 * 256**2 * 512 / 2
    assert collectives(again, "tp") == []


@pytest.mark.parametrize("recipe", [{"recompute": "none"}, {"recompute": "selective", "attention": "flash"}])
def test_nothing_is_recomputed_where_nothing_was_dropped(recipe: dict[str, Any]) -> None:
    """Neither without recomputation nor where the fused core kept no scores."""
    assert recomputed(make_rank(gpt(), **recipe), 0) == []


# --- parallel blocks -------------------------------------------------------------------------------------------------


def test_parallel_block_needs_half_the_collectives() -> None:
    """PaLM, arXiv 2204.02311, section 2: attention and MLP read one input and are summed once, for the same FLOPs."""
    block = 2.0 * 256 * 512
    serial, parallel = gpt(), gpt(parallel_block=True)
    plain = make_rank(parallel, tp=4, sequence_parallel=False)
    assert collectives(layer_forward(plain, 0), "tp") == [("all_reduce", block)]
    assert collectives(layer_backward(plain, 0), "tp") == [("all_reduce", block)]
    split = make_rank(parallel, tp=4)
    gather, scatter = ("all_gather", block), ("reduce_scatter", block)
    assert collectives(layer_forward(split, 0), "tp") == [gather, scatter]
    assert collectives(layer_backward(split, 0), "tp") == [gather, gather, scatter]
    assert flops(layer_forward(split, 0)) == flops(layer_forward(make_rank(serial, tp=4), 0))


def test_parallel_block_has_one_norm_and_one_residual() -> None:
    """Its collectives stand round both: gather before the first GEMM, reduce after the last."""
    found = names(layer_forward(make_rank(gpt(parallel_block=True), tp=2), 0))
    assert found == [
        "attention_norm", "block.gather", "qkv", "flash_attention", "proj", "mlp.up", "activation", "mlp.down",
        "block.reduce", "block.residual",
    ]  # fmt: skip


def test_parallel_block_may_have_two_norms() -> None:
    """GPT-NeoX-20B applies one for attention and one for the MLP, both before the block (arXiv 2204.06745)."""
    rank = make_rank(gpt(parallel_block=True, norms_per_layer=2))
    assert names(layer_forward(rank, 0))[:3] == ["attention_norm", "attention_norm", "qkv"]
    assert names(layer_backward(rank, 0))[-2:] == ["attention_norm.grad", "attention_norm.grad"]


def test_parallel_mixture_keeps_attention_to_itself() -> None:
    """Experts get their tokens by all-to-all; only norm and residual are shared."""
    moe = {"num_experts": 4, "top_k": 1, "ffn_hidden_size": 64}
    rank = make_rank(gpt(parallel_block=True, moe=moe), tp=2, dp=2, ep=2)
    found = names(layer_forward(rank, 0))
    assert found.count("attention_norm") == 1
    assert found.count("block.residual") == 1
    assert "mlp_norm" not in found
    assert collectives(layer_forward(rank, 0), "tp") == [
        ("all_gather", 2.0 * 256 * 512),
        ("reduce_scatter", 2.0 * 256 * 512),
    ]


# --- ends ------------------------------------------------------------------------------------------------------------


def test_vocabulary_is_padded_to_a_multiple_of_tp() -> None:
    """1,001 words over tp 4: 251 columns a rank."""
    rank = make_rank(gpt(vocab_size=1001), tp=4)
    assert flops(output_layer(rank, backward=False)) == 2 * 256 * 512 * 251


def test_output_layer_stays_in_bf16_under_fp8() -> None:
    """DeepSeek-V3, arXiv 2412.19437, section 3.3.1: the output head keeps its precision."""
    made = [make_rank(gpt(), accelerator="h100-sxm", precision=precision) for precision in ("bf16", "fp8")]
    assert output_layer(made[0], backward=True) == output_layer(made[1], backward=True)
    assert layer_forward(made[0], 0) != layer_forward(made[1], 0)


@pytest.mark.parametrize("tp", [1, 2])
def test_unfused_cross_entropy(tp: int) -> None:
    """bf16 logits, 256 · 1024 / tp of them: 6 + 4 + 8 + 8 + 4 + 8 = 38 B forward, 8 + 6 = 14 B backward.

    Two of the six passes forward, 8 B, are reductions, at 0.75 of a copy's speed; three fp32 sums of a number a token
    instead of one of three.
    """
    rank = dataclasses.replace(make_rank(gpt(), tp=tp), fused_loss=False)
    logits = 256 * 1024 / tp
    found = {True: 0.0, False: 0.0}
    for backward in found:
        losses = [op for op in output_layer(rank, backward=backward) if "cross_entropy" in getattr(op, "name", "")]
        found[backward] = sum(op.seconds for op in losses if isinstance(op, Kernel))
        assert collectives(losses, "tp") == ([] if backward or tp == 1 else [("all_reduce", 4.0 * 256)] * 3)
    moved = {
        backward: found[backward] - memory_bound_time(rank.accelerator, 0.0) * (2 if backward else 6)
        for backward in found
    }
    speed = logits / (memory_bound_time(rank.accelerator, logits) - memory_bound_time(rank.accelerator, 0.0))
    assert moved[False] == pytest.approx(logits * (30 + 8 / 0.75) / speed)
    assert moved[True] == pytest.approx(logits * 14 / speed)
    assert flops(output_layer(rank, backward=True)) == flops(output_layer(make_rank(gpt(), tp=tp), backward=True))
