"""Whole layers, what is recomputed of them, embedding and output layer.

Pinned by tests/physics/layers/test_layer.py.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.physics.layers import attention, experts, mlp
from simulator.physics.layers.edges import gather_gradient, gather_input, reduce_gradient, reduce_output
from simulator.physics.layers.rank import Linear, Rank
from simulator.physics.operations import Collective, Kernel, Operation

_Part = Callable[[Rank], list[Operation]]


# --- memory-bound pieces -----------------------------------------------------------------------------------------


def _norms(rank: Rank, name: str, count: int = 1) -> list[Operation]:
    return [rank.move(name, 2.0 * rank.spread_tokens * rank.model.hidden_size, kind="norm")] * count


def _norms_backward(rank: Rank, name: str, count: int = 1) -> list[Operation]:
    # reads input and output gradient, writes the input gradient, and reads the residual's to add it
    return [rank.move(f"{name}.grad", 4.0 * rank.spread_tokens * rank.model.hidden_size, kind="norm_grad")] * count


def _residual(rank: Rank, name: str) -> list[Operation]:
    # bias + dropout + add, fused: two reads, one write, and the dropout mask where there is one
    operands = 3.5 if rank.training.dropout else 3.0
    return [rank.move(f"{name}.residual", operands * rank.spread_tokens * rank.model.hidden_size)]


def _residual_backward(rank: Rank, name: str) -> list[Operation]:
    # gradients flow through an addition for nothing; dropout reads them and its mask, and writes them
    if not rank.training.dropout:
        return []
    return [rank.move(f"{name}.residual.grad", 2.5 * rank.spread_tokens * rank.model.hidden_size)]


# --- layers ------------------------------------------------------------------------------------------------------


def norms_before(rank: Rank) -> tuple[int, int]:
    """Norms before attention and before the MLP; a parallel block has all of them before both."""
    count = rank.model.norms_per_layer
    return (count, 0) if rank.model.parallel_block else (count - count // 2, count // 2)


def _shares_edges(rank: Rank, layer: int) -> bool:
    """Whether attention and MLP of a parallel block read one gathered input and are summed together."""
    return rank.model.mla is None and not rank.model.is_moe_layer(layer)


def layer_forward(rank: Rank, layer: int) -> list[Operation]:
    """Transformer layer `layer` (0-based).

    In a parallel block attention and MLP share norm, collectives and residual (PaLM, arXiv 2204.02311, section 2; the
    one all-reduce for both: arXiv 2204.06745, section 2.1.2).
    """
    before_attention, before_mlp = norms_before(rank)
    second: _Part = experts.moe_forward if rank.model.is_moe_layer(layer) else mlp.mlp_forward
    ops = _norms(rank, "attention_norm", before_attention)
    if not rank.model.parallel_block:
        ops += [*attention.attention_forward(rank), *_residual(rank, "attention")]
        return [*ops, *_norms(rank, "mlp_norm", before_mlp), *second(rank), *_residual(rank, "mlp")]
    if not _shares_edges(rank, layer):
        return [*ops, *attention.attention_forward(rank), *second(rank), *_residual(rank, "block")]
    both = [*attention.inner_forward(rank), *mlp.inner(rank, backward=False)]
    return [*ops, *gather_input(rank, "block"), *both, *reduce_output(rank, "block"), *_residual(rank, "block")]


def layer_backward(rank: Rank, layer: int) -> list[Operation]:
    """Adjoint of `layer_forward`; what has to be done again before it is in `recomputed`."""
    before_attention, before_mlp = norms_before(rank)
    second: _Part = experts.moe_backward if rank.model.is_moe_layer(layer) else mlp.mlp_backward
    last = _norms_backward(rank, "attention_norm", before_attention)
    if not rank.model.parallel_block:
        ops = [*_residual_backward(rank, "mlp"), *second(rank), *_norms_backward(rank, "mlp_norm", before_mlp)]
        return [*ops, *_residual_backward(rank, "attention"), *attention.attention_backward(rank), *last]
    ops = _residual_backward(rank, "block")
    if not _shares_edges(rank, layer):
        return [*ops, *second(rank), *attention.attention_backward(rank), *last]
    both = [*mlp.inner(rank, backward=True), *attention.inner_backward(rank)]
    return [*ops, *gather_gradient(rank, "block"), *both, *reduce_gradient(rank, "block"), *last]


def recomputed(rank: Rank, layer: int) -> list[Operation]:
    """What is executed again before the backward of a layer: nothing, the modules of a list, or the whole layer.

    Source: arXiv 2205.05198, section 5, and Megatron-Core's `--recompute-modules`. Selective recomputation of a fused
    attention core is free: it keeps no scores to drop.
    """
    mode = rank.training.recompute
    if mode == "full":
        return layer_forward(rank, layer)
    return _listed_modules(rank, layer) if mode == "selective" else []


def _listed_modules(rank: Rank, layer: int) -> list[Operation]:
    """The forwards of `recompute_modules`, in order; a mixture's own list counts only where it is not run whole."""
    modules, mixture = rank.training.recompute_modules, rank.model.is_moe_layer(layer)
    before_attention, before_mlp = norms_before(rank)
    ops: list[Operation] = []
    if "layernorm" in modules:
        ops += _norms(rank, "attention_norm", before_attention) + _norms(rank, "mlp_norm", before_mlp)
    if "mla_up_proj" in modules and rank.model.mla is not None:
        ops += attention.up_projections(rank)
    if "core_attn" in modules and rank.training.attention == "unfused":
        ops += attention.attention_core(rank, backward=False)
    if not mixture:
        return [*ops, *(mlp.mlp_forward(rank) if "mlp" in modules else [])]
    if "moe" in modules:
        return [*ops, *experts.moe_forward(rank)]
    if "moe_act" in modules:
        local = experts.LocalExperts.of(rank)
        ops.append(mlp.activation(rank, local.rows, local.width, backward=False))
    return [*ops, *(experts.shared_expert_forward(rank) if "shared_experts" in modules else [])]


# --- ends --------------------------------------------------------------------------------------------------------


def embedding(rank: Rank, *, backward: bool) -> list[Operation]:
    """Token embedding, vocabulary split over tp: every rank looks up what it has, then the results are summed."""
    elements = 2.0 * rank.tokens * rank.model.hidden_size
    lookup = rank.move("embedding.grad" if backward else "embedding", elements, kind="embedding")
    return [*gather_gradient(rank, "embedding"), lookup] if backward else [lookup, *reduce_output(rank, "embedding")]


def local_vocabulary(rank: Rank) -> int:
    """Rows of the embedding on one rank: the vocabulary is padded to a multiple of tp."""
    return -(-rank.model.vocab_size // rank.parallelism.tp)


_VOCABULARY_MULTIPLE = 128
"""Stacks pad the vocabulary of a rank, so that its GEMMs are aligned: Megatron-LM, --make-vocab-size-divisible-by."""


def output_layer(rank: Rank, *, backward: bool) -> list[Operation]:
    """Final norm, vocabulary-parallel output layer and cross-entropy (logits in fp32, arXiv 1909.08053, section 3)."""
    width, norms = local_vocabulary(rank), int(rank.model.final_norm)
    linear = Linear(
        "output",
        rank.tokens,
        width,
        rank.model.hidden_size,
        dtype=rank.sensitive_dtype,
        n_multiple=_VOCABULARY_MULTIPLE,
    )
    logits = float(rank.tokens * width)
    loss = (_fused_loss if rank.fused_loss else _unfused_loss)(rank, logits, backward=backward)
    if backward:
        grads = [*loss, *linear.backward(rank), *reduce_gradient(rank, "output")]
        return [*grads, *_norms_backward(rank, "final_norm", norms)]
    return [*_norms(rank, "final_norm", norms), *gather_input(rank, "output"), linear.forward(rank), *loss]


def _fused_loss(rank: Rank, logits: float, *, backward: bool) -> list[Operation]:
    """Cross-entropy in one kernel each way."""
    if backward:
        return [rank.move("cross_entropy.grad", 2 * logits, kind="cross_entropy", element=4)]
    loss: list[Operation] = [rank.move("cross_entropy", 3 * logits, kind="cross_entropy", element=4)]
    if rank.parallelism.tp > 1:  # maximum, target logit and sum of exponentials: three fp32 numbers a token
        loss.append(Collective("cross_entropy.reduce", "tp", "all_reduce", 12.0 * rank.tokens))
    return loss


def _unfused_loss(rank: Rank, logits: float, *, backward: bool) -> list[Operation]:
    """Cross-entropy operation by operation on fp32 logits: bytes read and written of each, and the sums over tp.

    Source: Megatron-Core, `tensor_parallel/cross_entropy.py`, `VocabParallelCrossEntropy` without
    `--cross-entropy-loss-fusion`: cast, maximum, difference, exponential, sum, quotient; backward the product with the
    output's gradient and the cast. Its small kernels over targets are left out.
    """
    cast = float(rank.element + 4)
    if backward:
        return [_pass(rank, "scale.grad", 8 * logits), _pass(rank, "cast.grad", cast * logits)]
    ops: list[Operation] = [_pass(rank, "cast", cast * logits), _pass(rank, "maximum", 4 * logits, "cross_entropy")]
    ops += [_shared(rank, "maximum"), _pass(rank, "difference", 8 * logits), _shared(rank, "target")]
    ops += [_pass(rank, "exponential", 8 * logits), _pass(rank, "sum", 4 * logits, "cross_entropy")]
    ops += [_shared(rank, "sum"), _pass(rank, "quotient", 8 * logits)]
    return [op for op in ops if isinstance(op, Kernel) or rank.parallelism.tp > 1]


def _pass(rank: Rank, name: str, size: float, kind: str = "elementwise") -> Kernel:
    return rank.move(f"cross_entropy.{name}", size, kind=kind, element=1)


def _shared(rank: Rank, name: str) -> Collective:
    return Collective(f"cross_entropy.{name}.reduce", "tp", "all_reduce", 4.0 * rank.tokens)
