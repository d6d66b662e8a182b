"""Attention: shapes of its GEMMs, context parallelism, latent attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.physics.kernels import attention_time, memory_bound_time
from simulator.physics.layers.attention import attention_backward, attention_core, attention_forward
from simulator.physics.operations import Collective, Kernel
from tests.physics.shapes import collectives, flops, gpt, make_rank

LATENT: dict[str, Any] = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24}


def latent_model(q_lora_rank: int | None = 96) -> Any:
    """Build a small model with latent attention."""
    return gpt(mla={**LATENT, "q_lora_rank": q_lora_rank}, linear_bias=False, position="rotary")


def named(operations: list[Any]) -> dict[str, float]:
    """FLOPs of the GEMMs by name."""
    return {op.name: op.flops for op in operations if isinstance(op, Kernel) and op.flops}


def test_flops_of_grouped_query_attention() -> None:
    """T 256, h 512, 8 heads and 4 groups of 64 over tp 2: QKV 2·256·512·(4 + 2·2)·64, core 4·256·256·4·64."""
    rank = make_rank(gpt(num_query_groups=4), tp=2)
    assert named(attention_forward(rank)) == {
        "qkv": 2 * 256 * 512 * (4 + 2 * 2) * 64,
        "flash_attention": 4 * 256 * 256 * 4 * 64,
        "proj": 2 * 256 * 512 * 4 * 64,
    }


@pytest.mark.parametrize("dropout", [False, True])
def test_unfused_core_does_the_same_work_as_the_fused_one(dropout: bool) -> None:
    """Two batched GEMMs forward and four backward make FlashAttention's model FLOPs, whatever softmax costs."""
    fused = make_rank(gpt(), tp=2, micro_batch_size=2)
    unfused = make_rank(gpt(), tp=2, micro_batch_size=2, attention="unfused", dropout=dropout)
    for backward, matmuls in ((False, 2), (True, 4)):
        plain = attention_core(unfused, backward=backward)
        assert flops(plain) == flops(attention_core(fused, backward=backward)) == matmuls * 2 * 2 * 4 * 256 * 256 * 64
        assert len([op for op in plain if isinstance(op, Kernel) and op.flops]) == matmuls


@pytest.mark.parametrize(("head_dim", "slow"), [(256, 1), (248, 1), (250, 2), (450, 2)])
def test_misaligned_heads_leave_tensor_cores(head_dim: int, slow: int) -> None:
    """Rows of 248 numbers are 31 times 16 bytes, of 250 and 450 not: twice as long and more, for the same FLOPs."""
    new = make_rank(gpt(hidden_size=8 * head_dim), attention="unfused", micro_batch_size=32)
    old = replace(new, aligned_batches=True)
    for backward in (False, True):
        before, after = (attention_core(rank, backward=backward) for rank in (old, new))
        assert flops(before) == flops(after)
        for one, other in zip(before, after, strict=True):
            assert isinstance(one, Kernel)
            assert isinstance(other, Kernel)
            if slow == 1 or not one.flops:
                assert one.seconds == other.seconds
            else:
                assert one.seconds > slow * other.seconds


def test_softmax_of_few_heads_is_not_fused() -> None:
    """Megatron's kernel takes four heads at a time: two go operation by operation, 37 and 41 bytes a score."""
    few, more = (make_rank(gpt(), tp=4, micro_batch_size=size, attention="unfused") for size in (1, 2))
    for backward, moved, matrices in ((False, 37, 2), (True, 41, 4)):
        found = [op for op in attention_core(few, backward=backward) if isinstance(op, Kernel) and not op.flops]
        light = sum(kernel.light for kernel in found) * few.accelerator.memory_bandwidth
        assert light == pytest.approx(moved * 2 * 256 * 256)
        assert len(found) == 5
        assert len(attention_core(more, backward=backward)) == matrices + 1


def test_softmax_and_dropout_move_the_scores() -> None:
    """8 · 256 · 256 scores of 2 bytes: read and written by softmax; dropout also a one-byte mask, 2.5 in all.

    Backward: dropout reads gradient and mask and writes; softmax reads its output and a gradient and writes one.
    """
    rank = make_rank(gpt(), attention="unfused", dropout=True)
    scores = 2.0 * 8 * 256 * 256
    moved = {
        op.name: op.seconds
        for backward in (False, True)
        for op in attention_core(rank, backward=backward)
        if isinstance(op, Kernel) and not op.flops
    }
    operands = {"softmax": 2, "attention_dropout": 2.5, "attention_dropout.grad": 2.5, "softmax.grad": 3}
    assert moved == {
        name: memory_bound_time(
            rank.accelerator, count * scores, "fused_softmax" if name.startswith("softmax") else "elementwise"
        )
        for name, count in operands.items()
    }


@pytest.mark.parametrize("forward", [True, False])
def test_rotary_positions_move_queries_and_keys(forward: bool) -> None:
    """8 query heads and 2 key heads of 64 over tp 2, read and written, in both directions; no values."""
    rank = make_rank(gpt(position="rotary", num_query_groups=2), tp=2)
    ops = attention_forward(rank) if forward else attention_backward(rank)
    (rotary,) = [op for op in ops if isinstance(op, Kernel) and op.name == "rotary"]
    assert rotary.seconds == memory_bound_time(rank.accelerator, 2 * 2 * 256 * (4 + 1) * 64)


def test_attention_stays_in_bf16_under_fp8() -> None:
    """An fp8 recipe changes the projections and leaves the core as it is, fused or not."""
    for attention in ("flash", "unfused"):
        cores = [
            attention_core(
                make_rank(gpt(), accelerator="h100-sxm", precision=precision, attention=attention), backward=True
            )
            for precision in ("bf16", "fp8")
        ]
        assert cores[0] == cores[1]


# --- context parallelism -------------------------------------------------------------------------------------------


def test_context_parallelism_gathers_keys_and_values() -> None:
    """B 2, s 256, 2 local groups of 64, K and V in bf16: 2·256·2·128·2 bytes; backward gathers and scatters them."""
    rank = make_rank(gpt(num_query_groups=4), tp=2, cp=4, micro_batch_size=2)
    size = 2.0 * 256 * 2 * 128 * 2
    assert collectives(attention_forward(rank), "cp") == [("all_gather", size)]
    assert collectives(attention_backward(rank), "cp") == [("all_gather", size), ("reduce_scatter", size)]


@pytest.mark.parametrize("cp", [2, 4, 8])
@pytest.mark.parametrize("attention", ["flash", "unfused"])
def test_context_parallelism_divides_the_work(cp: int, attention: str) -> None:
    """Every rank does 1 / cp of the FLOPs."""
    whole = make_rank(gpt(), sequence_length=8192, attention=attention)
    part = make_rank(gpt(), sequence_length=8192, attention=attention, cp=cp)
    for backward in (False, True):
        assert flops(attention_core(part, backward=backward)) == flops(attention_core(whole, backward=backward)) / cp


@pytest.mark.parametrize("cp", [2, 4, 8])
def test_zigzag_balances_the_causal_mask(cp: int) -> None:
    """An early and a late piece see half of the square together: time falls nearly as 1 / cp.

    A rank with the last s / cp queries alone would take up to (2 - 1 / cp) times as long.
    """

    def seconds(cp: int) -> float:
        rank = make_rank(gpt(), sequence_length=65536, cp=cp)
        return sum(op.seconds for op in attention_core(rank, backward=False) if isinstance(op, Kernel))

    assert seconds(cp) * cp == pytest.approx(seconds(1), rel=0.05)


def test_zigzag_is_the_first_and_the_last_piece() -> None:
    """S 1024 over cp 2: pieces of 256 queries, the first sees 256 keys, the last 1024."""
    rank = make_rank(gpt(), sequence_length=1024, cp=2)
    acc = rank.accelerator
    shape: dict[str, Any] = {"batch": 1, "heads": 8, "kv_heads": 8, "head_dim": 64, "v_head_dim": 64, "causal": True}
    pieces = [attention_time(acc, "bf16", q_len=256, kv_len=kv_len, **shape) for kv_len in (256, 1024)]
    (kernel,) = attention_core(rank, backward=False)
    assert isinstance(kernel, Kernel)
    assert kernel.seconds == sum(pieces)


# --- latent attention ------------------------------------------------------------------------------------------------


def test_latent_projections() -> None:
    """DeepSeek-V2, arXiv 2405.04434, equations 9 to 17, over tp 2 with sequence parallelism.

    Down: 128 tokens, 64 + 16 and 96 wide. Up: 256 tokens, 4 heads of 32 + 24 and of 32 + 16. Out: 4 heads of 24.
    """
    found = named(attention_forward(make_rank(latent_model(), tp=2)))
    assert found == {
        "kv_down": 2 * 128 * 512 * (64 + 16),
        "q_down": 2 * 128 * 512 * 96,
        "kv_up": 2 * 256 * 64 * 4 * (32 + 24),
        "q_up": 2 * 256 * 96 * 4 * (32 + 16),
        "flash_attention": 2 * 256 * 256 * 4 * (32 + 16 + 24),
        "proj": 2 * 256 * 512 * 4 * 24,
    }


def test_down_projections_are_replicated_without_sequence_parallelism() -> None:
    """Every tp rank works out the whole latent of all tokens."""
    found = named(attention_forward(make_rank(latent_model(), tp=2, sequence_parallel=False)))
    assert found["kv_down"] == 2 * 256 * 512 * (64 + 16)
    assert found["q_down"] == 2 * 256 * 512 * 96


@pytest.mark.parametrize(("q_lora_rank", "width"), [(96, 96 + 64 + 16), (None, 512 + 64 + 16)])
def test_latents_are_gathered_instead_of_the_hidden_state(q_lora_rank: int | None, width: int) -> None:
    """The up projections read the latents (and, uncompressed, the hidden state for queries); the output is as ever."""
    rank = make_rank(latent_model(q_lora_rank), tp=2)
    latent, hidden = 2.0 * 256 * width, 2.0 * 256 * 512
    assert collectives(attention_forward(rank), "tp") == [("all_gather", latent), ("reduce_scatter", hidden)]
    assert collectives(attention_backward(rank), "tp") == [
        ("all_gather", hidden),
        ("all_gather", latent),
        ("reduce_scatter", latent),
    ]


def test_gather_stands_between_the_projections() -> None:
    """Tokens are gathered after the replicated projections and before the split ones."""
    order = [
        op.name for op in attention_forward(make_rank(latent_model(), tp=2)) if isinstance(op, Kernel | Collective)
    ]
    assert order.index("q_down") < order.index("attention.gather") < order.index("kv_up")
