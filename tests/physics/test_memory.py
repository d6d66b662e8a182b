"""Memory against the tables and formulas of ZeRO and of selective recomputation, exactly."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.layers.rank import Rank
from simulator.physics.memory import (
    COMMUNICATOR_BYTES,
    CONTEXT_BYTES,
    StageMemory,
    check_capacity,
    job_memory,
    layer_activations,
    model_state_bytes,
    optimizer_bytes,
    rank_memory,
    stage_activations,
)
from simulator.physics.memory.cuts import cut_by_cost
from simulator.physics.memory.states import host_bytes
from simulator.physics.memory.working import WORKSPACE_BYTES, weight_shapes
from simulator.physics.schedules.tables import Action, build_table
from simulator.physics.stages import LocalParameters, cut, stage_parameters
from simulator.scenario.hosts import read_hosts
from simulator.scenario.scenario import MODELS, load_model
from simulator.scenario.transformer import Transformer
from tests.physics.shapes import gpt, make_rank, ranks

S, H, A = 256, 512, 8  # sequence, hidden size and heads of `gpt`


# --- model states ----------------------------------------------------------------------------------------------------


def states(zero_stage: int, parameters: float = 7.5e9, dp: int = 64, batch: int = 64, **optimizer: Any) -> float:
    """Add up the model states of one rank."""
    recipe = {"zero_stage": zero_stage, "grad_dtype": "fp16", **optimizer}
    rank = make_rank(gpt(), dp=dp, global_batch_size=batch, optimizer=recipe)
    return sum(model_state_bytes(rank, LocalParameters(parameters, 0.0)).values())


@pytest.mark.parametrize(("zero_stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_table(zero_stage: int, gigabytes: float) -> None:
    """ArXiv 1910.02054, figure 1: 7.5B parameters, 64 ranks, K = 12, fp16 gradients.

    (2 + 2 + 12) Ψ = 120; (2 + 2 + 12/64) Ψ = 31.4; (2 + 14/64) Ψ = 16.6; 16/64 Ψ = 1.9 GB.
    """
    exact = {0: 16.0, 1: 4 + 12 / 64, 2: 2 + 14 / 64, 3: 16 / 64}[zero_stage] * 7.5e9
    assert states(zero_stage) == exact
    assert round(states(zero_stage) / 1e9, 1) == gigabytes


def test_largest_model_of_plain_data_parallelism() -> None:
    """ArXiv 1910.02054, section 1: a 32 GB GPU runs out beyond 1.4B parameters (22.4 GB of states, 24 at 1.5B)."""
    assert states(0, 1.4e9) == pytest.approx(22.4e9)
    assert states(0, 1.5e9) == pytest.approx(24e9)
    assert states(0, 2e9) == 32e9


def test_states_by_precision() -> None:
    """Bytes of weight, gradient and optimizer state of one parameter.

    Mixed Adam 2 + 4 + (4 + 2 · 4); bf16 moments 2 + 4 + (4 + 2 · 2); SGD with momentum 2 + 4 + (4 + 4); fp32 needs no
    master copy: 4 + 4 + 2 · 4; fp8 keeps its weights in bf16.
    """

    def per_parameter(precision: str, **optimizer: Any) -> list[float]:
        rank = make_rank(gpt(), precision=precision, optimizer=optimizer)
        return list(model_state_bytes(rank, LocalParameters(1.0, 0.0)).values())

    assert per_parameter("bf16") == [2, 4, 12]
    assert per_parameter("bf16", state_dtype="bf16") == [2, 4, 8]
    assert per_parameter("bf16", kind="sgd") == [2, 4, 8]
    assert per_parameter("fp32") == [4, 4, 8]
    assert per_parameter("fp8", grad_dtype="bf16") == [2, 2, 12]


def test_experts_are_sharded_over_their_own_replicas() -> None:
    """Dp 8, cp 2, ep 4: dense state over 16 ranks, expert state over tp · cp · dp / (etp · ep) = 4."""
    model = gpt(moe={"num_experts": 8, "top_k": 1, "ffn_hidden_size": 64})
    rank = make_rank(model, dp=8, cp=2, ep=4, optimizer={"zero_stage": 1})
    assert model_state_bytes(rank, LocalParameters(1600.0, 400.0))["optimizer"] == 12 * (1600 / 16 + 400 / 4)


def test_shard_groups_repeat_their_copy() -> None:
    """Dp 64 in groups of 8: what is sharded is divided by 8, and every group has all of it."""
    assert states(3, 8e9, shard_group=8) == 16 * 8e9 / 8
    assert states(1, 8e9, shard_group=8) == (4 + 12 / 8) * 8e9
    assert states(0, 8e9, shard_group=8) == 16 * 8e9


def test_whole_gradients_between_microbatches() -> None:
    """`no_sync` with several microbatches: 2 Ψ of gradients stay whole; with one there is nothing to wait for."""
    for zero_stage, rest in ((2, 2 + 12 / 64), (3, 14 / 64)):
        assert states(zero_stage, no_sync=True, batch=128) == (2 + rest) * 7.5e9
        assert states(zero_stage, no_sync=True, batch=64) == states(zero_stage)


def test_offloaded_state_is_with_the_host() -> None:
    """The GPU keeps 2 + 2 bytes; the host 12 / 64 and the gradients that it is handed, on drives those only."""
    assert states(1, offload="cpu") == states(1, offload="nvme") == 4 * 7.5e9
    whole = LocalParameters(7.5e9, 0.0)
    recipe = {"zero_stage": 1, "grad_dtype": "fp16"}
    on_host = [
        host_bytes(make_rank(gpt(), dp=64, optimizer={**recipe, **where}), whole)
        for where in ({}, {"offload": "cpu"}, {"offload": "nvme"})
    ]
    assert on_host == [0.0, (12 + 2) / 64 * 7.5e9, 2 / 64 * 7.5e9]


def test_a_host_can_be_too_small() -> None:
    """The state of 1 MB more than there is; the message says where else it could go."""
    rank = make_rank(gpt(), optimizer={"offload": "cpu"})
    (stage,) = memory(rank, pp=1, m=1)
    assert stage.host == 16 * rank.model.total_parameters
    host = read_hosts()["a100-80gb"]
    assert check_capacity(rank.accelerator, (stage,), host) is None
    problem = check_capacity(rank.accelerator, (stage,), host.model_copy(update={"memory": stage.host - 1e6}))
    assert problem is not None
    assert "offload to nvme" in problem


@given(st.sampled_from([0, 1, 2, 3]), st.sampled_from([1, 2, 8, 64]))
def test_sharding_divides_only_what_it_says(zero_stage: int, dp: int) -> None:
    """Over all ranks sharded parts are kept once, the others dp times."""
    rank = make_rank(gpt(), dp=dp, optimizer={"zero_stage": zero_stage})
    parts = model_state_bytes(rank, LocalParameters(1.0, 0.0))
    copies = {"weights": 1 if zero_stage >= 3 else dp, "gradients": 1 if zero_stage >= 2 else dp}
    copies["optimizer"] = 1 if zero_stage >= 1 else dp
    whole = {"weights": 2.0, "gradients": 4.0, "optimizer": optimizer_bytes(rank)}
    assert {part: size * dp for part, size in parts.items()} == {part: whole[part] * copies[part] for part in parts}


# --- activations -----------------------------------------------------------------------------------------------------


def kept(model: Transformer | None = None, **changes: Any) -> float:
    """Return what one layer keeps of one microbatch."""
    recipe = {"attention": "unfused", "dropout": True, **changes}
    return layer_activations(make_rank(model or gpt(), **recipe), 0)


@pytest.mark.parametrize("t", [1, 2, 4, 8])
@pytest.mark.parametrize("b", [1, 3])
def test_layer_under_tensor_parallelism(t: int, b: int) -> None:
    """ArXiv 2205.05198, equation 2: s b h (10 + 24/t + 5 a s / (h t))."""
    expected = S * b * H * (10 + 24 / t + 5 * A * S / (H * t))
    assert kept(tp=t, micro_batch_size=b, sequence_parallel=False) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("t", [2, 4, 8])
def test_layer_under_sequence_parallelism(t: int) -> None:
    """ArXiv 2205.05198, equation 4: s b h / t (34 + 5 a s / h)."""
    assert kept(tp=t) == pytest.approx(S * H / t * (34 + 5 * A * S / H), rel=1e-14)


@pytest.mark.parametrize("t", [2, 4, 8])
def test_layer_under_selective_recomputation(t: int) -> None:
    """ArXiv 2205.05198, equation 6: 34 s b h / t."""
    assert kept(tp=t, recompute="selective") == 34 * S * H / t


@pytest.mark.parametrize(("sequence_parallel", "spread"), [(False, 1), (True, 4)])
def test_layer_under_full_recomputation(sequence_parallel: bool, spread: int) -> None:
    """ArXiv 2205.05198, table 2: 2 s b h, a layer's input; with sequence parallelism it is kept split, 2 s b h / t."""
    rank = make_rank(gpt(), tp=4, recompute="full", sequence_parallel=sequence_parallel)
    stage = cut(rank.model, 2, 2)[1]
    assert stage_activations(rank, stage) == len(stage.layers) * 2 * S * H / spread


def test_flash_attention_keeps_one_number_a_row() -> None:
    """ArXiv 2307.08691, section 3.1: the log-sum-exp, fp32, of each row and head instead of 5 a s² bytes."""
    assert kept(attention="flash", tp=2) == 34 * S * H / 2 + 4 * S * A / 2


def test_without_dropout_there_are_no_masks() -> None:
    """Two masks of s b h bytes, and of the scores the mask and the dropped copy: 5 a s² becomes 2 a s²."""
    assert kept(dropout=False) == 32 * S * H + 2 * A * S * S


def test_layer_of_a_llama() -> None:
    """Grouped queries and SwiGLU, no dropout, tp 2 with sequence parallelism, h 512, 8 heads, 2 groups, width 1024.

    Norm inputs 2·2sh/t, block inputs 2·2sh/t, Q 2sh/t, K and V 2·2s·2·64/t, row statistics 4s·8/t, output 2sh/t, MLP
    gate, up and product 3·2s·1024/t.
    """
    model = gpt(num_query_groups=2, activation="swiglu", ffn_hidden_size=1024)
    expected = (8 * S * H + 2 * S * H + 2 * 2 * S * 2 * 64 + 4 * S * 8 + 2 * S * H + 3 * 2 * S * 1024) / 2
    assert kept(model, attention="flash", dropout=False, tp=2) == expected


def test_parallel_block_keeps_one_input_and_one_mask() -> None:
    """One norm feeds both: 2 s b h of a norm's input, 2 of its output, 1 of a mask less than 34."""
    assert kept(gpt(parallel_block=True), recompute="selective") == (34 - 2 - 2 - 1) * S * H
    assert kept(gpt(parallel_block=True, norms_per_layer=2), recompute="selective") == (34 - 1) * S * H


def test_layer_with_latent_attention() -> None:
    """Q and K of 8 · 48, V and output of 8 · 24 over tp 2; latents of 96 + 64, before and after norms, over tp too."""
    mla = {"kv_lora_rank": 64, "q_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24}
    model = gpt(mla=mla, linear_bias=False, position="rotary")
    heads = 2 * S * (2 * 8 * 48 + 2 * 8 * 24) / 2
    expected = 8 * S * H / 2 + 2 * 2 * S * (96 + 64) / 2 + heads + 4 * S * 8 / 2 + 2 * 2 * S * 2048 / 2
    assert kept(model, attention="flash", dropout=False, tp=2) == expected


def test_layer_of_a_mixture() -> None:
    """Tp = etp = 2: experts keep the input of each gathered copy, their inner widths over etp, beside a shared MLP."""
    moe = {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 64, "num_shared_experts": 1}
    model = gpt(moe=moe)
    rows = 2 * S
    rest = (8 + 6 + 2) * S * H / 2 + 4 * S * 8 / 2  # norms and inputs; Q K V; output projection's input; row statistics
    experts = 2 * rows * H + 2 * 2 * rows * 64 / 2
    shared = 2 * 2 * S * 64 / 2
    assert kept(model, attention="flash", dropout=False, tp=2, ep=2, dp=2) == rest + experts + shared


def test_context_parallelism_divides_activations() -> None:
    """Every term has the tokens of this rank; only scores keep the whole key length."""
    assert kept(cp=4, attention="flash") == kept(attention="flash") / 4
    assert kept(cp=4) == kept() / 4


# --- a pipeline rank -------------------------------------------------------------------------------------------------


def memory(rank: Rank, *, pp: int, m: int, kind: str = "1f1b", vpp: int = 1) -> tuple[StageMemory, ...]:
    """Plan a whole pipeline."""
    return job_memory(rank, cut(rank.model, pp, vpp), build_table(kind, pp=pp, num_microbatches=m, vpp=vpp))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 9])
def test_in_flight_of_1f1b(m: int) -> None:
    """Rank r of p holds min(m, p - r) microbatches of its layers; the first also the embedding's mask."""
    rank = make_rank(gpt(), dropout=True)
    stages, found = cut(rank.model, 4), memory(rank, pp=4, m=m)
    for r, stage in enumerate(stages):
        assert found[r].parts["activations"] == min(m, 4 - r) * stage_activations(rank, stage)
    assert stage_activations(rank, stages[0]) == stage_activations(rank, stages[1]) + S * H


def test_first_stage_keeps_as_much_as_all_layers() -> None:
    """ArXiv 2205.05198, section 4.2.3: p microbatches of L / p layers, s b h L / t (34 + 5 a s / h), whatever p is."""
    found = []
    for pp in (1, 2, 4):
        rank = make_rank(gpt(), tp=2, attention="unfused", dropout=True)
        whole = memory(rank, pp=pp, m=8)[0].parts["activations"]
        ends = pp * S * H / 2 + (
            4 * S * H / 2 if pp == 1 else 0
        )  # embedding mask; inputs of final norm and output layer
        found.append(whole - ends)
    assert found == [4 * S * H / 2 * (34 + 5 * A * S / H)] * 3


def test_interleaving_keeps_more() -> None:
    """ArXiv 2205.05198, section 4.2.3: a factor 1 + (p - 1) / (p v) on the first stage."""
    rank = make_rank(gpt(num_layers=16))
    plain, woven = memory(rank, pp=4, m=8)[0], memory(rank, pp=4, m=8, kind="interleaved", vpp=2)[0]
    assert woven.parts["activations"] == plain.parts["activations"] * (1 + 3 / 8)


def test_logits_of_1f1b_are_kept_once() -> None:
    """4 s b v / t for the loss (arXiv 2205.05198, section 4.3) and a working copy of 2 s b v / t, on the last stage."""
    found = memory(make_rank(gpt(vocab_size=1001), tp=2), pp=2, m=8)
    assert [stage.parts["logits"] for stage in found] == [0.0, (4 + 2) * S * 501]


def test_logits_of_gpipe_wait_for_the_flush() -> None:
    """All m losses wait for their backward."""
    found = memory(make_rank(gpt()), pp=2, m=8, kind="gpipe")
    assert found[1].parts["logits"] == 8 * 4 * S * 1024 + 2 * S * 1024


@given(pp=st.sampled_from([1, 2, 4]), m=st.integers(1, 8), recompute=st.sampled_from(["none", "full"]))
def test_parts_of_a_stage(pp: int, m: int, recompute: str) -> None:
    """Parts are named, never negative, and model states are those of the stage's parameters."""
    rank = make_rank(gpt(), tp=2, dp=2, recompute=recompute)
    for stage, found in zip(cut(rank.model, pp), memory(rank, pp=pp, m=m), strict=True):
        expected = model_state_bytes(rank, stage_parameters(rank, stage))
        assert {part: found.parts[part] for part in expected} == expected
        assert min(found.parts.values()) >= 0
        assert found.parts["context"] == CONTEXT_BYTES
        assert found.total == sum(found.parts.values())


def buffers(**changes: Any) -> float:
    """Buffers of the only stage."""
    rank = make_rank(gpt(), **changes)
    (stage,) = memory(rank, pp=1, m=4)
    return stage.parts["buffers"]


def test_buffers_of_a_layer_at_work() -> None:
    """Sequence parallelism gathers a block's input; recomputation brings one layer's (or core's) activations back."""
    gathered = 2.0 * S * H
    assert buffers() == 0
    assert buffers(tp=2) == pytest.approx(gathered)
    layer = S * H / 2 * (32 + 2 * A * S / H)
    assert buffers(tp=2, recompute="full", attention="unfused") == pytest.approx(gathered + layer)
    assert buffers(tp=2, recompute="selective", attention="unfused") == pytest.approx(gathered + 2 * A * S * S / 2)
    assert buffers(tp=2, recompute="selective") == pytest.approx(gathered)


def test_buffers_of_sharded_parameters() -> None:
    """ZeRO-3 gathers two units in 2 bytes and holds one unit's gradients in 4; ZeRO-2 only the latter.

    Units: embedding 1024 · 512 + 256 · 512 positions, layers of 12 · 512² + 13 · 512, a final norm.
    """
    layer, embedding = 12 * 512**2 + 13 * 512, (1024 + 256) * 512
    every = 4 * layer + embedding + 2 * 512
    assert buffers(dp=4, optimizer={"zero_stage": 1}) == pytest.approx(0, abs=1)
    assert buffers(dp=4, optimizer={"zero_stage": 2}) == pytest.approx(4 * layer)
    assert buffers(dp=4, optimizer={"zero_stage": 3}) == pytest.approx(4 * layer + 2 * 2 * layer)
    kept_whole = {"zero_stage": 3, "reshard_after_forward": False}
    assert buffers(dp=4, optimizer=kept_whole) == pytest.approx(4 * layer + 2 * every)
    assert buffers(dp=1, optimizer={"zero_stage": 3}) == 0


def test_check_capacity_names_the_largest_parts() -> None:
    """The fullest stage, what it needs, what there is, and its three largest parts; nothing where it fits."""
    acc = make_rank(gpt()).accelerator
    fits = StageMemory(0, {"weights": 1e9, "gradients": 2e9})
    parts = {"weights": 30e9, "gradients": 60e9, "optimizer": 20e9, "logits": 1e9}
    assert check_capacity(acc, (fits,)) is None
    assert check_capacity(acc, (fits, StageMemory(1, parts))) == (
        f"pipeline stage 1 needs 111.0 GB per GPU and a {acc.name} has {acc.memory / 1e9:.1f} GB; the largest parts: "
        "gradients 60.0 GB, weights 30.0 GB, optimizer 20.0 GB"
    )


# --- a published plan ------------------------------------------------------------------------------------------------


def test_llama_65b_as_an_article_planned_it() -> None:
    """Llama 65B on 1,024 GPUs: ZeRO-2, tp 8, dp 128, FlashAttention, batches of 4M tokens, by an article's arithmetic.

    Activations L · s·b · h · 34 / N = 80 · 4e6 · 8192 · 34 / 1024 = 87.04 GB: a GPT's, of the whole batch at once.
    States 2 Ψ / tp + 14 Ψ / dp = 16.25 + 7.11 = 23.36 GB: as if tp did not divide what ZeRO shards.
    """
    shape = gpt(num_layers=80, hidden_size=8192, num_attention_heads=64)
    split: dict[str, Any] = {"tp": 8, "dp": 128, "optimizer": {"zero_stage": 2, "grad_dtype": "bf16"}}
    rank = make_rank(shape, **split, recompute="selective", attention="unfused", dropout=True)
    batch = 4e6 / 128
    assert 80 * layer_activations(rank, 0) / rank.tokens * batch == pytest.approx(87.04e9, rel=1e-4)
    split_by_tp, split_by_dp = (model_state_bytes(rank, LocalParameters(size, 0.0)) for size in (65e9 / 8, 65e9))
    states = split_by_tp["weights"] + split_by_dp["gradients"] + split_by_dp["optimizer"]
    assert states == pytest.approx(23.36e9, rel=1e-3)


def test_llama_65b_as_we_plan_it() -> None:
    """The same plan with one microbatch in flight and states over tp and dp: 17.1 GB of states, 24 GB in all.

    States 2 Ψ / tp + 14 Ψ / (tp · dp). SwiGLU of 22,016 and flash attention keep 16 h + 6 · 22016 + 4 · 64 bytes per
    layer and token over tp 8, where the article has 34 h.
    """
    optimizer = {"zero_stage": 2, "grad_dtype": "bf16"}
    model = load_model("llama-65b", MODELS)
    rank = make_rank(model, tp=8, dp=128, sequence_length=2048, global_batch_size=2048, optimizer=optimizer)
    (found,) = memory(rank, pp=1, m=16)
    states = sum(found.parts[part] for part in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(2 * 65.3e9 / 8 + 14 * 65.3e9 / 1024, rel=1e-3)
    assert states == pytest.approx(17.1e9, rel=0.01)
    layers = 80 * 2048 * (16 * 8192 + 6 * 22016 + 4 * 64) / 8
    ends = 4 * 2048 * 8192 / 8
    assert found.parts["activations"] == pytest.approx(layers + ends)
    assert found.allocated + found.parts["context"] + found.parts["communicators"] == pytest.approx(24e9, rel=0.01)
    assert found.total - found.reserved == found.parts["context"] + found.parts["communicators"]


def test_worst_moment_depends_on_the_order() -> None:
    """The same forwards and backwards in two orders: all forwards first keep twice as much."""
    rank = make_rank(gpt())
    (stage,) = cut(rank.model, 1)
    flush, alternate = (build_table(kind, pp=1, num_microbatches=2)[0] for kind in ("gpipe", "1f1b"))
    held = [rank_memory(rank, 0, (stage,), actions).parts["activations"] for actions in (flush, alternate)]
    assert held[0] == 2 * held[1] > 0


# --- recomputation by module -----------------------------------------------------------------------------------------

MOE = {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 64, "num_shared_experts": 1}
MLA = {"kv_lora_rank": 64, "q_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24}


@pytest.mark.parametrize(
    ("module", "model", "dropped"),
    [
        ("core_attn", {}, 2 * A * S * S),
        ("layernorm", {}, 4 * S * H),
        ("mlp", {}, 16 * S * H),
        ("mlp", {"activation": "swiglu"}, 24 * S * H),
        ("moe", {"moe": MOE}, 2 * 2 * S * H + 2 * 2 * 2 * S * 64 + 2 * 2 * S * 64),
        ("moe_act", {"moe": MOE}, 2 * 2 * S * 64),
        ("shared_experts", {"moe": MOE}, 2 * 2 * S * 64),
        ("mla_up_proj", {"mla": MLA, "linear_bias": False, "position": "rotary"}, 2 * S * A * (48 + 48 + 24)),
    ],
)
def test_recomputed_modules_drop_what_they_can_make_again(module: str, model: dict[str, Any], dropped: float) -> None:
    """Megatron-Core's list, one by one, tp 1, no dropout; T = 256 tokens, h = 512, 8 heads.

    Scores 2as²; two norms' outputs 2sh each; GELU's input and output 2s·4h each, of SwiGLU three; a mixture's copies of
    2 experts a token with their inner widths, and the shared expert; the activation function's output in experts; Q
    and K of 48 and V of 24 a head.
    """
    shape = gpt(**model)
    recipe: dict[str, Any] = {"attention": "unfused" if module == "core_attn" else "flash", "dropout": False}
    whole = kept(shape, **recipe)
    modules = (module,)
    less = kept(shape, recompute="selective", recompute_modules=modules, **recipe)
    assert whole - less == pytest.approx(dropped)
    assert kept(shape, recompute="none", recompute_modules=modules, **recipe) == whole


def test_recomputing_every_module_keeps_inputs_only() -> None:
    """Of a layer the two norms' inputs stay (2sh each), Q, K, V and output (8sh), and the rows' statistics."""
    modules = ("core_attn", "layernorm", "mlp")
    left = kept(attention="flash", dropout=False, recompute="selective", recompute_modules=modules)
    assert left == 4 * S * H + 8 * S * H + 4 * S * A


@given(ranks())
def test_recomputing_more_never_keeps_more(rank: Rank) -> None:
    """Any model, split and recipe: everything, the list's modules, nothing; and never less than the layers' inputs."""
    every = ("core_attn", "mlp", "moe", "layernorm", "moe_act", "shared_experts", "mla_up_proj")

    def left(**changes: Any) -> float:
        training = rank.training.model_copy(update=changes)
        stage = cut(rank.model, 1)[0]
        return stage_activations(dataclasses.replace(rank, training=training), stage)

    full, listed = left(recompute="full"), left(recompute="selective", recompute_modules=every)
    core, none = left(recompute="selective"), left(recompute="none")
    assert 0 < full < listed <= core <= none


# --- moments and totals ----------------------------------------------------------------------------------------------


def test_totals_add_up() -> None:
    """Allocated + reserve = reserved; + communicators and context = device."""
    (found,) = memory(make_rank(gpt(), tp=2, dp=2), pp=1, m=4)
    reserve = 0.1 * (found.parts["activations"] + found.parts["working"])
    assert found.parts["reserve"] == pytest.approx(reserve)
    assert found.reserved == pytest.approx(found.allocated + reserve)
    assert found.total == pytest.approx(found.reserved + 2 * COMMUNICATOR_BYTES + CONTEXT_BYTES)
    assert found.needed == found.total
    assert found.largest(1) == [("context", CONTEXT_BYTES)]


def test_working_memory_of_a_layer() -> None:
    """Gradients of GELU's input, 2 T 4h, and of the layer's input and output, 2 · 2 T h; logits are larger or not."""
    first, last = memory(make_rank(gpt(vocab_size=100_000)), pp=2, m=4)
    assert first.parts["working"] == 2 * S * 4 * H + 2 * 2 * S * H
    assert last.parts["working"] == 0
    assert last.parts["logits"] == 6 * S * 100_000


def test_split_backward_keeps_what_its_weight_half_needs() -> None:
    """ArXiv 2401.10241, table 1: sbh (34 + 5as / h) from F to I, 32 sbh from I to W. F I F W I W holds both once."""
    rank = make_rank(gpt(), attention="unfused", dropout=True)
    stage = cut(rank.model, 4)[1]
    order = [("F", 0), ("I", 0), ("F", 1), ("W", 0), ("I", 1), ("W", 1)]
    found = rank_memory(rank, 0, (stage,), [Action(1, kind, microbatch) for kind, microbatch in order])
    assert found.in_flight == 2
    assert found.parts["activations"] == S * H * (34 + 5 * A * S / H) + 32 * S * H


def test_stages_that_share_a_rank() -> None:
    """A rank holds the stages of its row, whatever their numbers: here the first and the last of two."""
    rank = make_rank(gpt())
    stages = cut(rank.model, 2)
    row = (Action(0, "F", 0), Action(1, "F", 0), Action(1, "B", 0), Action(0, "B", 0))
    (found,) = job_memory(rank, stages, (row,))
    both = [model_state_bytes(rank, stage_parameters(rank, stage))["weights"] for stage in stages]
    assert found.parts["weights"] == sum(both)
    assert found.in_flight == 2


# --- habits of software stacks ----------------------------------------------------------------------------------------


def test_transformer_engine_keeps_a_dummy_of_each_weight_shape() -> None:
    """Four linears of a layer, 12 h² · 2 bytes, however many layers; beside them the output layer's own, 2vh, at work.

    There logits' gradients take 2 T v, the weight 2 v h, input and output 2 · 2 T h.
    """
    rank = make_rank(gpt(tied_embeddings=False), stack="megatron-core-no-overlap")
    assert sum(a * b for a, b in weight_shapes(rank, 0)) == 12 * H * H
    (found,) = memory(rank, pp=1, m=4)
    assert found.parts["loose_gradients"] == 2 * 12 * H * H
    logits = 2 * S * 1024
    assert found.parts["logits"] == logits
    assert found.parts["working"] == 2 * S * 1024 + 2 * 1024 * H + 4 * S * H - logits


def test_nanotron_keeps_more_of_a_layer() -> None:
    """Q in the packed tensor 6sh beside K, V copies 4sh and output 2sh; SwiGLU four tensors; norms in and out 8sh."""
    model = gpt(activation="swiglu", ffn_hidden_size=1024, linear_bias=False, norm="rmsnorm")
    found = kept(model, attention="flash", dropout=False, tp=2, stack="nanotron-2024")
    assert found == (8 * S * H + 12 * S * H + 4 * 2 * S * 1024 + 4 * S * A) / 2


@pytest.mark.parametrize(
    ("zero_stage", "dp", "bytes_a_parameter"), [(0, 1, 18.0), (0, 4, 20.0), (1, 4, 2 + 4 + 12 / 4 + 4 + 2 / 4)]
)
def test_nanotron_at_its_optimizer_step(zero_stage: int, dp: int, bytes_a_parameter: float) -> None:
    """2 + 4 + 12 per parameter; DDP's 16-bit buckets; with ZeRO-1 gradients copied flat and the shard's weights."""
    rank = make_rank(gpt(), dp=dp, optimizer={"zero_stage": zero_stage}, stack="nanotron-2024")
    (found,) = memory(rank, pp=1, m=4)
    parameters = sum(stage_parameters(rank, cut(rank.model, 1)[0]))
    assert found.optimizer_step == pytest.approx(bytes_a_parameter * parameters + WORKSPACE_BYTES)


def test_frees_wait_for_the_gpu_but_never_overflow() -> None:
    """Tp 2, 4 layers: 2.8 · 4 buffers of 2 T h pile up; where memory is short only what is left of it."""
    rank = make_rank(gpt(), tp=2, stack="nanotron-2024")
    (found,) = memory(rank, pp=1, m=4)
    assert found.parts["deferred"] == pytest.approx(2.8 * 4 * 2 * S * H)
    assert found.needed == pytest.approx(found.total - found.parts["deferred"])
    small = dataclasses.replace(rank, accelerator=rank.accelerator.model_copy(update={"memory": found.needed + 1.0}))
    (tight,) = memory(small, pp=1, m=4)
    assert tight.parts["deferred"] == pytest.approx(1.0, abs=1e-3)
    assert memory(make_rank(gpt(), tp=2, pp=2, stack="nanotron-2024"), pp=2, m=4)[0].parts["deferred"] == 0


def test_stages_of_equal_cost() -> None:
    """Nanotron's Llama of 1.34B: an output layer of 131,072 · h is worth 4 layers of 4h² + 3 · 4h · h.

    16 + 4 = 20 over 2 stages: the tenth layer reaches the half, the eleventh passes it. Over 4 each 5 reach a quarter.
    """
    model = gpt(
        num_layers=16, hidden_size=2048, num_attention_heads=32, ffn_hidden_size=8192, vocab_size=131_072,
        activation="swiglu", linear_bias=False,
    )  # fmt: skip

    def sizes(pp: int, *, reached: bool) -> list[int]:
        return [len(stage.layers) for stage in cut_by_cost(model, pp, reached=reached)]

    assert sizes(2, reached=False) == [11, 5]
    assert sizes(2, reached=True) == [10, 6]
    assert sizes(4, reached=True) == [5, 5, 5, 1]
    assert sizes(32, reached=False)[-3:] == [0, 0, 0]


@given(st.integers(1, 48), st.sampled_from([1, 2, 4, 8, 16]), st.booleans())
def test_every_layer_has_one_stage(layers: int, pp: int, reached: bool) -> None:
    """Stages hold the layers in order, one the embedding and one the output layer."""
    stages = cut_by_cost(gpt(num_layers=layers), pp, reached=reached)
    assert [layer for stage in stages for layer in stage.layers] == list(range(layers))
    assert [stage.embedding for stage in stages] == [True] + [False] * (pp - 1)
    assert sum(stage.output for stage in stages) == 1
