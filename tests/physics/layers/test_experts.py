"""Mixtures of experts: who gets which tokens, and what crosses the network for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import LayoutError
from simulator.physics.layers.experts import LocalExperts, moe_backward, moe_forward
from simulator.physics.layers.rank import Rank
from simulator.physics.operations import Collective, Kernel
from tests.physics.shapes import collectives, flops, gpt, make_rank

MOE: dict[str, Any] = {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 256}


def moe_rank(moe: dict[str, Any] | None = None, **split: Any) -> Rank:
    """Build a rank of a small mixture: T 256, h 512, 8 experts of 256, 2 a token."""
    return make_rank(gpt(moe={**MOE, **(moe or {})}), **{"dp": 8, **split})


def test_expert_parallelism_sends_every_copy_there_and_back() -> None:
    """256 tokens · 2 copies · 512 · 2 bytes in dispatch and in combine, and the same for the gradients."""
    rank = moe_rank(ep=4)
    size = 256.0 * 2 * 512 * 2
    assert collectives(moe_forward(rank), "ep") == [("dispatch", size), ("combine", size)]
    assert collectives(moe_backward(rank), "ep") == [("dispatch", size), ("combine", size)]
    assert collectives(moe_forward(rank), "etp") == []


def test_expert_tensor_parallelism_gathers_between() -> None:
    """Tp = etp = 2 with sequence parallelism: each rank sends the copies of 128 tokens and gathers those of both."""
    rank = moe_rank(tp=2, ep=4)
    sent, gathered = 128.0 * 2 * 512 * 2, 256.0 * 2 * 512 * 2
    there, back = [("dispatch", sent), ("all_gather", gathered)], [("reduce_scatter", gathered), ("combine", sent)]
    assert collectives(moe_forward(rank), "ep", "etp") == [*there, *back]
    assert collectives(moe_backward(rank), "ep", "etp") == [*there, *back]


def test_equal_rows_are_summed_without_sequence_parallelism() -> None:
    """All tp ranks hold all tokens: nothing to gather, partial outputs (and gradients of inputs) are summed."""
    rank = moe_rank(tp=2, ep=4, sequence_parallel=False)
    size = 256.0 * 2 * 512 * 2
    expected = [("dispatch", size), ("all_reduce", size), ("combine", size)]
    assert collectives(moe_forward(rank), "ep", "etp") == expected
    assert collectives(moe_backward(rank), "ep", "etp") == expected


def test_whole_experts_beside_split_attention() -> None:
    """Etp 1 with tp 2: ep spans tp, nothing is gathered, and each expert is whole."""
    rank = moe_rank(tp=2, etp=1, ep=8)
    experts = LocalExperts.of(rank)
    assert (experts.local, experts.copies, experts.rows, experts.width) == (1, 256, 256, 256)
    assert collectives(moe_forward(rank), "etp") == []


def test_split_experts_beside_whole_attention() -> None:
    """Etp 2 with tp 1: its ranks are data-parallel neighbours with tokens of their own, so rows are gathered."""
    experts = LocalExperts.of(moe_rank(tp=1, etp=2, ep=4))
    assert (experts.copies, experts.rows, experts.width) == (512, 1024, 128)


def test_same_tokens_are_not_sent_twice() -> None:
    """Without sequence parallelism all tp ranks hold the same tokens; experts split in another way are refused."""
    with pytest.raises(LayoutError, match=r"etp 1 with tp 2 needs sequence_parallel true"):
        moe_forward(moe_rank(tp=2, etp=1, ep=4, sequence_parallel=False))


@given(
    tp=st.sampled_from([1, 2, 4]),
    etp=st.sampled_from([1, 2, 4]),
    ep=st.sampled_from([1, 2, 4, 8]),
    top_k=st.integers(1, 8),
)
def test_experts_process_every_copy_once(tp: int, etp: int, ep: int, top_k: int) -> None:
    """All ranks: rows times width are the tokens' copies times an expert's width, however experts are split."""
    rank = moe_rank({"top_k": top_k}, tp=tp, etp=etp, ep=ep, dp=32 // tp)
    experts = LocalExperts.of(rank)
    tokens = 256 * 32 // tp
    assert 32 * experts.rows * experts.width == tokens * top_k * 256
    assert 32 * experts.copies == tokens * top_k
    assert experts.rows_per_expert * experts.local >= experts.rows > (experts.rows_per_expert - 1) * experts.local


def test_uneven_routing_counts_the_copies_there_are() -> None:
    """7 copies of 4 tokens over 8 experts: 28 rows, computed as 8 problems of 4."""
    rank = moe_rank({"top_k": 7}, sequence_length=4, tp=1)
    forward = [op for op in moe_forward(rank) if isinstance(op, Kernel) and op.name.startswith("expert.")]
    assert sum(op.flops for op in forward) == pytest.approx(2 * 28 * 512 * 256 * 2, rel=1e-15)


def test_shared_expert_is_a_dense_mlp_of_all_tokens() -> None:
    """Two shared experts of 384 over tp 2 and their gate, which one more column of the router is.

    FLOPs beyond the routed ones: 2·256·512·384·2 for the MLPs, 2·128·512 for the gate; gathered and summed over tp.
    """
    plain = moe_rank(tp=2)
    shared = moe_rank({"num_shared_experts": 2, "shared_expert_ffn_hidden_size": 384, "shared_expert_gate": True}, tp=2)
    extra = flops(moe_forward(shared)) - flops(moe_forward(plain))
    assert extra == 2 * 256 * 512 * 384 * 2 + 2 * 128 * 512
    assert collectives(moe_forward(plain), "tp") == []
    size = 2.0 * 256 * 512
    assert collectives(moe_forward(shared), "tp") == [("all_gather", size), ("reduce_scatter", size)]


def test_order_of_a_mixture() -> None:
    """Route, permute, send, gather, compute, and the way back."""
    names = [op.name for op in moe_forward(moe_rank(tp=2, ep=4)) if isinstance(op, Kernel | Collective)]
    assert names == [
        "router", "permute", "dispatch.all_to_all", "dispatch.etp", "sort", "expert.up", "activation", "expert.down",
        "unsort", "combine.etp", "combine.all_to_all", "unpermute",
    ]  # fmt: skip
