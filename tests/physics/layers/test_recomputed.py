"""What the list of recomputed modules runs again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from simulator.physics.layers.layer import layer_forward, recomputed
from simulator.physics.layers.rank import Rank
from tests.physics.shapes import collectives, flops, gpt, make_rank, ranks

S, H = 256, 512
MOE = {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 64, "num_shared_experts": 1}
MLA = {"kv_lora_rank": 64, "q_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24}


def again(module: str, **model: Any) -> Rank:
    """Build a rank that recomputes one module."""
    return make_rank(gpt(**model), recompute="selective", recompute_modules=(module,), tp=2)


@pytest.mark.parametrize(
    ("module", "model", "expected"),
    [
        ("core_attn", {}, 0.0),
        ("layernorm", {}, 0.0),
        ("mlp", {}, 2 * 2 * S * H * 4 * H / 2),
        ("mlp", {"moe": MOE}, 0.0),
        ("moe_act", {"moe": MOE}, 0.0),
        ("shared_experts", {"moe": MOE}, 2 * 2 * S * H * 64 / 2),
        ("mla_up_proj", {"mla": MLA, "linear_bias": False}, 2 * S * 8 * (64 * (32 + 24) + 96 * 48) / 2),
    ],
)
def test_flops_of_a_module(module: str, model: dict[str, Any], expected: float) -> None:
    """Two linears of 2 s · h · 4h over tp 2; of the shared expert 2 s · h · 64; MLA's up projections; else none.

    A flash attention core keeps nothing to make again; norms and activation functions multiply no matrices.
    """
    assert flops(recomputed(again(module, **model), 0)) == pytest.approx(expected)


def test_a_whole_mixture_runs_again_with_its_exchanges() -> None:
    """`moe` repeats router, dispatch, experts and combine; `shared_experts` beside it adds nothing."""
    both: dict[str, Any] = {"recompute": "selective", "recompute_modules": ("moe", "shared_experts")}
    rank = make_rank(gpt(moe=MOE), tp=2, ep=2, dp=2, **both)
    alone = make_rank(gpt(moe=MOE), tp=2, ep=2, dp=2, recompute="selective", recompute_modules=("moe",))
    assert recomputed(rank, 0) == recomputed(alone, 0)
    assert [op for op, _ in collectives(recomputed(rank, 0), "ep")] == ["dispatch", "combine"]


@given(ranks())
def test_a_list_is_never_more_work_than_the_layer(rank: Rank) -> None:
    """Every module but the norms, on any model and split: at most the layer's forward."""
    modules = ("core_attn", "mlp", "moe", "moe_act", "shared_experts", "mla_up_proj")
    training = rank.training.model_copy(update={"recompute": "selective", "recompute_modules": modules})
    listed = Rank(rank.model, rank.parallelism, training, rank.accelerator)
    assert flops(recomputed(listed, 0)) <= flops(layer_forward(rank, 0)) * (1 + 1e-12)
