"""Attention: projections, the core, the output projection, with their collectives over tp and cp.

Context parallelism gathers K and V over cp (as Llama 3, arXiv 2407.21783, section 3.3.2) and reduce-scatters their
gradients. Every rank holds an early and a late piece of the sequence (zigzag), so that causal work is even.

Latent attention follows Megatron-Core's default: the down projections are replicated over tp, work on the tokens that
sequence parallelism leaves a rank, and their latents are gathered before the up projections, which tp splits.

Pinned by tests/physics/layers/test_attention.py.
"""

from __future__ import annotations

from simulator.physics.kernels.attention import attention_bytes, attention_flops, attention_time
from simulator.physics.kernels.roofline import ITEM_SIZE, speed_of_light
from simulator.physics.layers.edges import gather_gradient, gather_input, reduce_gradient, reduce_output
from simulator.physics.layers.rank import Linear, Rank, forwards
from simulator.physics.operations import Collective, Kernel, Operation
from simulator.scenario.transformer import LatentAttention, Transformer

ATTENTION_BACKWARD_MATMULS = 2.0
"""Model FLOPs of attention's backward over its forward; FlashAttention's fifth matmul is internal recomputation."""

_TENSOR_CORE_ROW = 16
"""Bytes that rows have to be multiples of for tensor cores, before cuBLAS 11.0 for all products (NVIDIA, "Matrix
Multiplication Background User's Guide", section 3), for batched ones longer (`Stack.aligned_batches`)."""


def head_dims(model: Transformer) -> tuple[int, int]:
    """Width of a query or key head, and of a value head."""
    return (model.head_dim, model.head_dim) if model.mla is None else (model.mla.qk_head_dim, model.mla.v_head_dim)


def _down_projections(rank: Rank, mla: LatentAttention) -> list[Linear]:
    """Not split by tp: their output is the latent that all heads share."""
    tokens, hidden = rank.spread_tokens, rank.model.hidden_size
    linears = [Linear("kv_down", tokens, mla.kv_lora_rank + mla.qk_rope_head_dim, hidden)]
    return linears if mla.q_lora_rank is None else [*linears, Linear("q_down", tokens, mla.q_lora_rank, hidden)]


def _split_projections(rank: Rank) -> list[Linear]:
    """Linears that tp splits by columns: their output are the heads of this rank."""
    model, mla, tokens = rank.model, rank.model.mla, rank.tokens
    if mla is None:
        return [Linear("qkv", tokens, (rank.heads + 2 * rank.query_groups) * model.head_dim, model.hidden_size)]
    return [
        Linear("kv_up", tokens, rank.heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank),
        Linear("q_up", tokens, rank.heads * mla.qk_head_dim, mla.q_lora_rank or model.hidden_size),
    ]


def latent_width(model: Transformer) -> int:
    """Elements of a token that the split projections read: the hidden size, or MLA's latents."""
    mla = model.mla
    if mla is None:
        return model.hidden_size
    return (mla.q_lora_rank or model.hidden_size) + mla.kv_lora_rank + mla.qk_rope_head_dim


def _output_projection(rank: Rank) -> Linear:
    return Linear("proj", rank.tokens, rank.model.hidden_size, rank.heads * head_dims(rank.model)[1])


# --- the core --------------------------------------------------------------------------------------------------------


def attention_core(rank: Rank, *, backward: bool) -> list[Operation]:
    """Softmax(Q Kᵀ) V, fused (FlashAttention) or as batched GEMMs and memory-bound kernels."""
    if rank.training.attention == "flash":
        return [_flash(rank, backward=backward)]
    return _unfused_backward(rank) if backward else _unfused_forward(rank)


def _flash(rank: Rank, *, backward: bool) -> Kernel:
    """Fused, causal; FLOPs count the whole square. With cp, see `_pieces`."""
    batch, length = rank.training.micro_batch_size, rank.training.sequence_length
    qk_dim, v_dim = head_dims(rank.model)
    seconds = light = 0.0
    for q_len, kv_len in _pieces(rank):
        heads = {"batch": batch, "heads": rank.heads, "q_len": q_len, "kv_len": kv_len, "head_dim": qk_dim}
        seconds += attention_time(
            rank.accelerator, rank.sensitive_dtype, **heads, kv_heads=rank.query_groups, v_head_dim=v_dim, causal=True,
            backward=backward,
        )  # fmt: skip
        executed = attention_flops(**heads, v_head_dim=v_dim, causal=True, backward=backward)
        size = attention_bytes(
            rank.sensitive_dtype, **heads, kv_heads=rank.query_groups, v_head_dim=v_dim, backward=backward
        )
        light += speed_of_light(rank.accelerator, rank.sensitive_dtype, executed, size)
    flops = 2.0 * rank.tokens * rank.heads * length * (qk_dim + v_dim)
    return Kernel("flash_attention", seconds, flops * (ATTENTION_BACKWARD_MATMULS if backward else 1.0), light)


def _pieces(rank: Rank) -> list[tuple[int, int]]:
    """Queries and the keys that they see, per piece of the sequence.

    Zigzag: the first and the last of 2 · cp pieces stand for any pair i and 2 · cp - 1 - i, which sees as much.
    Contiguous: rank i sees i + 1 of cp pieces.
    """
    length, cp = rank.training.sequence_length, rank.parallelism.cp
    if cp == 1:
        return [(length, length)]
    if rank.context_is_uneven:
        return [(length // cp, length // cp * (rank.context_index + 1))]
    piece = length // (2 * cp)
    return [(piece, piece), (piece, length)]


def _batched(rank: Rank, name: str, m: int, n: int, k: int) -> Kernel:
    groups, dtype = rank.training.micro_batch_size * rank.heads, rank.sensitive_dtype
    aligned = all(each * ITEM_SIZE[dtype] % _TENSOR_CORE_ROW == 0 for each in (n, k))
    on_tensor_cores = aligned or not rank.aligned_batches
    return rank.gemm(name, m, n, k, groups=groups, dtype=dtype, tensor_cores=on_tensor_cores)


def _lengths(rank: Rank) -> tuple[int, int, float]:
    """Queries and keys of one sequence, and scores of all sequences and heads."""
    keys = rank.training.sequence_length
    return keys // rank.parallelism.cp, keys, float(rank.tokens * rank.heads) * keys


_SOFTMAX_BATCH = 4
"""Megatron-LM's fused softmax works on as many heads at a time, and is not called where they do not divide.

Source: NVIDIA/Megatron-LM, megatron/model/fused_softmax.py, custom_kernel_constraint; fused_kernels, batches per block.
"""

# What runs instead, bytes read and written of a score: to fp32, scale, mask, softmax, to 16 bits; and backward.
_PLAIN_SOFTMAX = (("float", 6), ("scale", 8), ("mask", 9), ("softmax", 8), ("half", 6))
_PLAIN_SOFTMAX_GRAD = (("half.grad", 6), ("softmax.grad", 12), ("mask.grad", 9), ("scale.grad", 8), ("float.grad", 6))


def _fuses_softmax(rank: Rank) -> bool:
    return rank.training.micro_batch_size * rank.heads % _SOFTMAX_BATCH == 0


def _plain(rank: Rank, kernels: tuple[tuple[str, int], ...], scores: float) -> list[Operation]:
    return [rank.move(f"scores.{name}", scores, element=size) for name, size in kernels]


def _softmax(rank: Rank, scores: float, *, backward: bool) -> list[Operation]:
    """Scale, causal mask and softmax, in one kernel where Megatron's fits."""
    if not _fuses_softmax(rank):
        return _plain(rank, _PLAIN_SOFTMAX_GRAD if backward else _PLAIN_SOFTMAX, scores)
    if backward:
        return [rank.move("softmax.grad", 3 * scores, kind="fused_softmax")]
    return [rank.move("softmax", 2 * scores, kind="fused_softmax")]


def _unfused_forward(rank: Rank) -> list[Operation]:
    q_len, kv_len, scores = _lengths(rank)
    qk_dim, v_dim = head_dims(rank.model)
    softmax = _softmax(rank, scores, backward=False)
    if rank.training.dropout:
        softmax.append(rank.move("attention_dropout", 2.5 * scores))  # read, write, and a one-byte mask
    return [
        _batched(rank, "scores", q_len, kv_len, qk_dim),
        *softmax,
        _batched(rank, "context", q_len, v_dim, kv_len),
    ]


def _unfused_backward(rank: Rank) -> list[Operation]:
    q_len, kv_len, scores = _lengths(rank)
    qk_dim, v_dim = head_dims(rank.model)
    dropout = [rank.move("attention_dropout.grad", 2.5 * scores)] if rank.training.dropout else []
    return [
        _batched(rank, "context.dgrad", q_len, kv_len, v_dim),
        _batched(rank, "context.vgrad", kv_len, v_dim, q_len),
        *dropout,
        *_softmax(rank, scores, backward=True),
        _batched(rank, "scores.qgrad", q_len, qk_dim, kv_len),
        _batched(rank, "scores.kgrad", kv_len, qk_dim, q_len),
    ]


def _exchange(rank: Rank, op: str, name: str) -> list[Operation]:
    """K and V of the whole sequence over cp."""
    if rank.parallelism.cp == 1:
        return []
    width = rank.query_groups * sum(head_dims(rank.model))
    tokens = rank.training.micro_batch_size * rank.training.sequence_length
    return [Collective(name, "cp", op, float(tokens * width * rank.element))]


def _rotary(rank: Rank) -> list[Operation]:
    if rank.model.position != "rotary":
        return []
    width = (rank.heads + rank.query_groups) * head_dims(rank.model)[0]
    return [rank.move("rotary", 2.0 * rank.tokens * width)]


# --- the block -------------------------------------------------------------------------------------------------------


def up_projections(rank: Rank) -> list[Operation]:
    """Queries, keys and values from what the split projections read, with their rotary positions."""
    return [*forwards(rank, _split_projections(rank)), *_rotary(rank)]


def inner_forward(rank: Rank) -> list[Operation]:
    """From the gathered input to the partial output: split projections, core, output projection."""
    ops: list[Operation] = forwards(rank, _split_projections(rank))
    ops += [*_rotary(rank), *_exchange(rank, "all_gather", "kv_gather"), *attention_core(rank, backward=False)]
    return [*ops, *forwards(rank, [_output_projection(rank)])]


def inner_backward(rank: Rank) -> list[Operation]:
    """Adjoint of `inner_forward`; K and V of the other cp ranks were not kept and are gathered again."""
    ops = _output_projection(rank).backward(rank)
    ops += [*_exchange(rank, "all_gather", "kv_gather"), *attention_core(rank, backward=True)]
    ops += [*_exchange(rank, "reduce_scatter", "kv_grad"), *_rotary(rank)]
    for linear in reversed(_split_projections(rank)):
        ops += linear.backward(rank)
    return ops


def attention_forward(rank: Rank) -> list[Operation]:
    """Attention between its norm and its residual."""
    mla = rank.model.mla
    down: list[Operation] = [] if mla is None else forwards(rank, _down_projections(rank, mla))
    gather = gather_input(rank, "attention", latent_width(rank.model))
    return [*down, *gather, *inner_forward(rank), *reduce_output(rank, "attention")]


def attention_backward(rank: Rank) -> list[Operation]:
    """Adjoint of `attention_forward`."""
    ops = [*gather_gradient(rank, "attention"), *inner_backward(rank)]
    ops += reduce_gradient(rank, "attention", latent_width(rank.model))
    if rank.model.mla is not None:
        for linear in reversed(_down_projections(rank, rank.model.mla)):
            ops += linear.backward(rank)
    return ops
