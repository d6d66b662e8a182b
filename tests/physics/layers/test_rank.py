"""What a rank sees, and the FLOPs of its GEMMs."""

from __future__ import annotations

import pytest

from simulator.physics.kernels.gemm import gemm_time
from simulator.physics.kernels.streaming import memory_bound_time
from simulator.physics.layers.layer import layer_backward, layer_forward, output_layer
from simulator.physics.layers.rank import Linear, forwards
from simulator.physics.operations import Kernel
from tests.physics.shapes import flops, gpt, make_rank


def test_tokens_are_divided_by_cp_and_spread_over_tp() -> None:
    """2 sequences of 256 over cp 2: 256 tokens; norms see 256 / 4 of them, without sequence parallelism all."""
    rank = make_rank(gpt(), tp=4, cp=2, micro_batch_size=2)
    assert (rank.tokens, rank.spread_tokens) == (256, 64)
    plain = make_rank(gpt(), tp=4, cp=2, micro_batch_size=2, sequence_parallel=False)
    assert (plain.tokens, plain.spread_tokens) == (256, 256)


def test_sequence_parallelism_needs_more_than_one_tp_rank() -> None:
    """With tp 1 there is nobody to spread tokens over, whatever the split says."""
    assert not make_rank(gpt(), tp=1, sequence_parallel=True).sequence_parallel


@pytest.mark.parametrize(("groups", "local"), [(8, 2), (4, 1), (2, 1), (1, 1)])
def test_key_value_heads_are_replicated_where_tp_exceeds_them(groups: int, local: int) -> None:
    """Tp 4 leaves 8 groups 2 a rank, 4 one; fewer are kept by several ranks, one each."""
    assert make_rank(gpt(num_query_groups=groups), tp=4).query_groups == local


def test_fp8_training_keeps_activations_and_sensitive_layers_in_bf16() -> None:
    """DeepSeek-V3, arXiv 2412.19437, section 3.3.1: attention, gating and output head stay in bf16."""
    rank = make_rank(gpt(), accelerator="h100-sxm", precision="fp8")
    assert (rank.gemm_dtype, rank.sensitive_dtype, rank.element) == ("fp8", "bf16", 2)
    full = make_rank(gpt(), precision="fp32")
    assert (full.gemm_dtype, full.sensitive_dtype, full.element) == ("fp32", "fp32", 4)


def test_backward_of_a_linear_is_its_two_gradients() -> None:
    """(m, n, k) = (256, 128, 64): data gradient 256 × 64 over 128, weight gradient 128 × 64 over 256, FLOPs equal."""
    rank = make_rank(gpt())
    linear = Linear("x", 256, 128, 64)
    forward = linear.forward(rank)
    backward = linear.backward(rank)
    assert forward.flops == 2 * 256 * 128 * 64
    assert [op.flops for op in backward if isinstance(op, Kernel)] == [forward.flops, forward.flops]
    acc = rank.accelerator
    expected = [gemm_time(acc, "bf16", 256, 64, 128), gemm_time(acc, "bf16", 128, 64, 256, accumulate_fp32=True)]
    assert [op.seconds for op in backward if isinstance(op, Kernel)] == expected


def test_accumulating_a_weight_gradient_in_bf16_is_cheaper() -> None:
    """An fp32 buffer moves twice the bytes of a bf16 one."""
    linear = Linear("x", 64, 8192, 8192)
    fp32 = linear.backward(make_rank(gpt()))[1]
    bf16 = linear.backward(make_rank(gpt(), optimizer={"grad_dtype": "bf16"}))[1]
    assert isinstance(fp32, Kernel)
    assert isinstance(bf16, Kernel)
    assert bf16.seconds < fp32.seconds


def test_uneven_groups_count_the_rows_there_are() -> None:
    """100 rows over 8 groups of 13: time is that of 104 rows, FLOPs those of 100, in both directions."""
    rank = make_rank(gpt())
    uneven, even = Linear("x", 13, 64, 32, groups=8, rows=100), Linear("x", 13, 64, 32, groups=8)
    assert uneven.forward(rank).flops == pytest.approx(2 * 100 * 64 * 32, rel=1e-15)
    assert flops(uneven.backward(rank)) == pytest.approx(4 * 100 * 64 * 32, rel=1e-15)
    assert uneven.forward(rank).seconds == even.forward(rank).seconds


def test_fp8_casts_what_its_gemms_read() -> None:
    """Forward casts the input, once for two linears that share it; backward the output's gradient: 4 B an element."""
    rank = make_rank(gpt(), accelerator="h100-sxm", precision="fp8")
    first, second, sensitive = (
        Linear("x", 256, 128, 64),
        Linear("y", 256, 32, 64),
        Linear("z", 256, 32, 64, dtype="bf16"),
    )
    assert [op.name for op in forwards(rank, [first, second]) if isinstance(op, Kernel)] == ["x.cast", "x", "y"]
    assert [op.name for op in forwards(rank, [sensitive]) if isinstance(op, Kernel)] == ["z"]
    cast, *_ = forwards(rank, [first])
    gradient, *_ = first.backward(rank)
    assert isinstance(cast, Kernel)
    assert isinstance(gradient, Kernel)
    assert cast.seconds == memory_bound_time(rank.accelerator, 4.0 * 256 * 64, "cast")
    assert gradient.seconds == memory_bound_time(rank.accelerator, 4.0 * 256 * 128, "cast")
    assert len(forwards(make_rank(gpt()), [first])) == 1


def test_padding_takes_time_and_counts_no_flops() -> None:
    """A vocabulary of 1001 runs as one of 1024, in both directions."""
    rank = make_rank(gpt())
    odd, even = Linear("x", 256, 1001, 64, n_multiple=128), Linear("x", 256, 1024, 64)
    assert odd.forward(rank).seconds == even.forward(rank).seconds
    assert flops([odd.forward(rank), *odd.backward(rank)]) == 3 * 2.0 * 256 * 1001 * 64


@pytest.mark.parametrize("attention", ["flash", "unfused"])
def test_no_kernel_of_a_layer_beats_light(attention: str) -> None:
    """Every kernel knows its time at the speed of light and takes longer."""
    rank = make_rank(gpt(), attention=attention)
    ops = [*layer_forward(rank, 0), *layer_backward(rank, 0), *output_layer(rank, backward=False)]
    kernels = [op for op in ops if isinstance(op, Kernel)]
    assert kernels
    assert all(0 < kernel.light < kernel.seconds for kernel in kernels)
