"""config.json files of released models, cut to the fields that change shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.errors import ScenarioError
from simulator.scenario import huggingface
from simulator.scenario.huggingface import FAMILIES, read_config
from simulator.scenario.transformer import read_model

FOLDER = Path(huggingface.__file__).parent / "catalogue" / "models"
LLAMA3_8B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    "hidden_act": "silu", "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTRAL_8X7B: dict[str, Any] = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip
QWEN25_72B: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064, "max_position_embeddings": 131072,
}  # fmt: skip
QWEN3_235B: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 94,
    "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": False,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_ctx": 1024, "n_positions": 1024,
    "vocab_size": 50257, "activation_function": "gelu_new",
}  # fmt: skip
GPT_NEOX_20B: dict[str, Any] = {
    "model_type": "gpt_neox", "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
    "num_attention_heads": 64, "vocab_size": 50432, "max_position_embeddings": 2048, "hidden_act": "gelu_fast",
    "rotary_pct": 0.25,
}  # fmt: skip
BLOOM: dict[str, Any] = {
    "model_type": "bloom", "n_embed": 14336, "n_layer": 70, "num_attention_heads": 112, "vocab_size": 250880,
    "seq_length": 2048,
}  # fmt: skip
DEEPSEEK_V2: dict[str, Any] = {
    "model_type": "deepseek_v2", "hidden_size": 5120, "intermediate_size": 12288, "num_hidden_layers": 60,
    "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 102400, "max_position_embeddings": 163840,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1536,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "hidden_act": "silu", "n_group": 8, "topk_group": 3,
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = DEEPSEEK_V2 | {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "vocab_size": 129280, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048, "first_k_dense_replace": 3, "head_dim": 64, "num_nextn_predict_layers": 1,
    "topk_group": 4,
}  # fmt: skip

SHIPPED = {
    "llama3-8b": LLAMA3_8B,
    "mixtral-8x7b": MIXTRAL_8X7B,
    "qwen2.5-72b": QWEN25_72B,
    "qwen3-235b-a22b": QWEN3_235B,
    "gpt2": GPT2,
    "gpt-neox-20b": GPT_NEOX_20B,
    "bloom-176b": BLOOM,
    "deepseek-v2": DEEPSEEK_V2,
    "deepseek-v3": DEEPSEEK_V3,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_config_and_catalogue_describe_the_same_model(name: str) -> None:
    """Every field that changes shapes agrees with the file written from the paper."""
    shipped = read_model(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))
    told = {"name", "source", "published_parameters", "published_active_parameters", "published_tolerance"}
    if name.startswith("deepseek"):
        told.add("max_sequence_length")  # 163,840 positions in the file, 131,072 in the papers
    assert read_config(SHIPPED[name]).model_dump(exclude=told) == shipped.model_dump(exclude=told)


MISTRAL_7B = LLAMA3_8B | {"model_type": "mistral", "vocab_size": 32000, "sliding_window": 4096}
QWEN15_MOE: dict[str, Any] = {
    "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936, "max_position_embeddings": 8192,
    "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1,
}  # fmt: skip
QWEN3_8B: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
}  # fmt: skip
FALCON_7B: dict[str, Any] = {
    "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
    "vocab_size": 65024, "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False,
}  # fmt: skip
DEEPSEEK_V2_LITE = DEEPSEEK_V2 | {
    "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "q_lora_rank": None, "n_routed_experts": 64, "moe_intermediate_size": 1408,
}  # fmt: skip
GEMMA_7B: dict[str, Any] = {
    "model_type": "gemma", "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256000, "hidden_act": "gelu",
}  # fmt: skip
OPT_125M: dict[str, Any] = {
    "model_type": "opt", "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": 768, "do_layer_norm_before": True,
    "activation_function": "relu",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (MISTRAL_7B, 7_241_732_096),
        (QWEN15_MOE, 14_315_784_192),
        (QWEN3_8B, 8_190_735_360),
        (FALCON_7B, 6_921_720_704),
        (DEEPSEEK_V2_LITE, 15_706_484_224),
        (GEMMA_7B, 8_537_680_896),
        (GEMMA_7B | {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
                     "num_attention_heads": 8, "num_key_value_heads": 1}, 2_506_172_416),
        # The released table has 2 position rows more: 125,239,296 in all.
        (OPT_125M, 125_239_296 - 2 * 768),
    ],
)  # fmt: skip
def test_totals_are_those_of_the_released_weights(config: dict[str, Any], total: int) -> None:
    """Exact counts of weights that are public but not in the catalogue."""
    assert read_config(config).total_parameters == total


def test_every_family_is_pinned_by_a_released_model() -> None:
    """No family is in the table without a config above."""
    others = [MISTRAL_7B, QWEN15_MOE, QWEN3_8B, FALCON_7B, GEMMA_7B, OPT_125M]
    assert {config["model_type"] for config in [*SHIPPED.values(), *others]} == set(FAMILIES)


def test_falcon_generations_differ_in_groups_and_norms() -> None:
    """7B: one key/value head, one norm; 40B: 8 heads, a norm for each branch; RW-1B: serial, ALiBi, biases."""
    first = read_config(FALCON_7B)
    assert (first.attention_kind, first.norms_per_layer, first.parallel_block) == ("mqa", 1, True)
    new = read_config(
        FALCON_7B
        | {"hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True}
    )
    assert (new.num_query_groups, new.norms_per_layer, new.parallel_block) == (8, 2, True)
    serial = {"hidden_size": 2048, "num_attention_heads": 32, "multi_query": False, "parallel_attn": False}
    old = read_config(FALCON_7B | serial | {"alibi": True, "bias": True})
    assert (old.attention_kind, old.norms_per_layer, old.parallel_block) == ("mha", 2, False)
    assert (old.position, old.linear_bias) == ("alibi", True)


def test_mixture_every_other_layer() -> None:
    """`decoder_sparse_step: 2` makes layers 1, 3, 5 ... mixtures, as transformers does."""
    model = read_config(QWEN15_MOE | {"decoder_sparse_step": 2})
    assert [model.is_moe_layer(index) for index in range(4)] == [False, True, False, True]


def test_biases_everywhere_or_nowhere() -> None:
    """A llama with both kinds of bias has them in every linear layer."""
    plain = read_config(LLAMA3_8B)
    biased = read_config(LLAMA3_8B | {"attention_bias": True, "mlp_bias": True})
    per_layer = (4096 + 2 * 1024 + 4096) + (2 * 14336 + 4096)
    assert biased.total_parameters - plain.total_parameters == 32 * per_layer


def test_name_is_taken_from_the_file() -> None:
    """`_name_or_path` names the model, else its family does."""
    assert read_config(GPT2).name == "gpt2"
    assert read_config(GPT2 | {"_name_or_path": "openai-community/gpt2-large"}).name == "openai-community/gpt2-large"


@pytest.mark.parametrize("family", ["t5", None])
def test_an_unknown_family_lists_those_that_can_be_read(family: str | None) -> None:
    """The error names the family and every one that is supported."""
    with pytest.raises(ScenarioError, match=r"bloom, deepseek_v2, .*qwen3_moe") as caught:
        read_config({"model_type": family} if family else {})
    assert caught.value.field == "model_type"
    assert repr(family) in caught.value.message


def test_a_multimodal_wrapper_points_to_its_text_part() -> None:
    """A vision model's config.json holds the language model in `text_config`."""
    with pytest.raises(ScenarioError, match="text_config"):
        read_config({"model_type": "llava", "text_config": LLAMA3_8B})


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        ({"model_type": "llama"}, "num_hidden_layers", "'llama' needs 'num_hidden_layers'"),
        ({"model_type": "gpt2", "n_layer": 1}, "n_embd", "needs 'n_embd' or 'hidden_size'"),
        (LLAMA3_8B | {"attention_bias": True}, "mlp_bias", "False with attention_bias True cannot be described"),
        (LLAMA3_8B | {"hidden_act": "mish"}, "hidden_act", "'mish' is not a known activation"),
        (QWEN15_MOE | {"mlp_only_layers": [5]}, "mlp_only_layers", r"\[5\] cannot be described"),
        (DEEPSEEK_V3 | {"moe_layer_freq": 2}, "moe_layer_freq", "2 cannot be described"),
        (OPT_125M | {"word_embed_proj_dim": 512}, "word_embed_proj_dim", "512 cannot be described"),
        (LLAMA3_8B | {"num_key_value_heads": 5}, None, "not a multiple of num_query_groups 5"),
    ],
)
def test_what_cannot_be_described_is_refused(config: dict[str, Any], field: str | None, message: str) -> None:
    """Rather than a wrong model, an error that names the field and its value."""
    with pytest.raises(ScenarioError, match=message) as caught:
        read_config(config)
    assert caught.value.field == field
