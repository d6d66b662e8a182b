"""Hugging Face config.json: the same model in another spelling.

Every family is one function from the file's fields to the fields of `Transformer`, listed in `FAMILIES`. A
field left out takes the default of that family's configuration class in the transformers library, which
config.json files rely on. What does not change shapes (rotary base, dropout, token ids) is ignored.

Limits: sliding windows are ignored; OPT's position table has two rows more than are counted; DeepSeek-V3's
multi-token-prediction layer is left out; configurations that `Transformer` cannot describe are refused.

Pinned by tests/scenario/test_huggingface.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from simulator.errors import ScenarioError
from simulator.scenario.transformer import Transformer, read_model

Config: TypeAlias = Mapping[str, Any]
Fields: TypeAlias = dict[str, Any]

# Names of activations in config.json files, and each one's gated form.
_ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu",
    "silu": "silu", "swish": "silu",
}  # fmt: skip
_GATED = {"silu": "swiglu", "gelu": "geglu", "relu": "reglu"}


def read_config(config: Config) -> Transformer:
    """Read the fields of a config.json.

    Raises
    ------
    ScenarioError
        For a `model_type` outside `FAMILIES`, a field that the family needs and a variant that cannot be described.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        hint = "; it wraps a language model: give its text_config instead" if "text_config" in config else ""
        raise ScenarioError(
            f"{family!r} is not a family that can be read; allowed: {', '.join(sorted(FAMILIES))}{hint}",
            field="model_type",
        )
    fields = FAMILIES[family](config)
    name = config.get("_name_or_path") or family
    return read_model({"name": name, "source": f"Hugging Face config.json of model_type {family}", **fields})


def _value(config: Config, *names: str, default: Any = None) -> Any:
    """The first of `names` that is there and not null."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def _need(config: Config, *names: str) -> Any:
    value = _value(config, *names)
    if value is None:
        spelled = " or ".join(repr(name) for name in names)
        raise ScenarioError(f"a config.json of model_type {config['model_type']!r} needs {spelled}", field=names[0])
    return value


def _refuse(config: Config, field: str, allowed: object, why: str) -> None:
    value = _value(config, field, default=allowed)
    if value != allowed:
        raise ScenarioError(f"{value!r} cannot be described: {why}; only {allowed!r} can", field=field)


def _activation(config: Config, *names: str, default: str, gated: bool = False) -> str:
    name = _value(config, *names, default=default)
    if name not in _ACTIVATIONS:
        raise ScenarioError(f"{name!r} is not a known activation; allowed: {', '.join(_ACTIVATIONS)}", field=names[0])
    return _GATED[_ACTIVATIONS[name]] if gated else _ACTIVATIONS[name]


def _present(**fields: Any) -> Fields:
    """Without the nulls, so that `Transformer` derives them."""
    return {name: value for name, value in fields.items() if value is not None}


def _llama(config: Config) -> Fields:
    attention_bias = bool(_value(config, "attention_bias", default=False))
    mlp_bias = bool(_value(config, "mlp_bias", default=False))
    if mlp_bias != attention_bias:
        raise ScenarioError(
            f"{mlp_bias} with attention_bias {attention_bias} cannot be described: biases are in all linear layers "
            "or in none",
            field="mlp_bias",
        )
    return _present(
        num_layers=_need(config, "num_hidden_layers"),
        hidden_size=_need(config, "hidden_size"),
        ffn_hidden_size=_need(config, "intermediate_size"),
        num_attention_heads=_need(config, "num_attention_heads"),
        num_query_groups=_value(config, "num_key_value_heads"),
        head_dim=_value(config, "head_dim"),
        vocab_size=_need(config, "vocab_size"),
        max_sequence_length=_value(config, "max_position_embeddings"),
        activation=_activation(config, "hidden_act", default="silu", gated=True),
        norm="rmsnorm",
        linear_bias=attention_bias,
        position="rotary",
        tied_embeddings=_value(config, "tie_word_embeddings", default=False),
    )


def _mistral(config: Config) -> Fields:
    return _llama({**config, "attention_bias": False, "mlp_bias": False})


def _mixtral(config: Config) -> Fields:
    moe = {
        "num_experts": _need(config, "num_local_experts"),
        "top_k": _need(config, "num_experts_per_tok"),
        "ffn_hidden_size": _need(config, "intermediate_size"),
    }
    return {**_mistral(config), "moe": moe}


def _qwen2(config: Config) -> Fields:
    return {**_mistral(config), "qkv_bias": _value(config, "qkv_bias", default=True)}


def _qwen3(config: Config) -> Fields:
    _refuse(config, "attention_bias", False, "biases are in all linear layers or in none")
    return {**_mistral(config), "head_dim": _value(config, "head_dim", default=128), "qk_norm": True}


def _qwen_experts(config: Config) -> Fields:
    """Mixture layers are those with (index + 1) a multiple of `decoder_sparse_step`, `mlp_only_layers` excepted."""
    _refuse(config, "mlp_only_layers", [], "dense layers are a prefix or every k-th, given by decoder_sparse_step")
    return {
        "num_experts": _need(config, "num_experts", "num_local_experts"),
        "top_k": _need(config, "num_experts_per_tok"),
        "ffn_hidden_size": _need(config, "moe_intermediate_size"),
        "every": _value(config, "decoder_sparse_step", default=1),
    }


def _qwen2_moe(config: Config) -> Fields:
    shared = {
        "num_shared_experts": 1,
        "shared_expert_ffn_hidden_size": _need(config, "shared_expert_intermediate_size"),
        "shared_expert_gate": True,
    }
    return {**_qwen2(config), "moe": _qwen_experts(config) | shared}


def _qwen3_moe(config: Config) -> Fields:
    return {**_qwen3(config), "moe": _qwen_experts(config)}


def _gemma(config: Config) -> Fields:
    activation = _activation(config, "hidden_activation", "hidden_act", default="gelu", gated=True)
    fields = _mistral({**config, "hidden_act": "gelu"})
    tied = _value(config, "tie_word_embeddings", default=True)
    return {
        **fields,
        "head_dim": _value(config, "head_dim", default=256),
        "activation": activation,
        "tied_embeddings": tied,
    }


def _deepseek(config: Config) -> Fields:
    _refuse(config, "attention_bias", False, "latent attention has no biases")
    _refuse(config, "moe_layer_freq", 1, "mixture layers follow each other")
    heads = _need(config, "num_attention_heads")
    # Their num_key_value_heads and head_dim (the rotary part) do not describe the cache of latent attention.
    fields = _llama({**config, "num_key_value_heads": heads, "head_dim": None})
    fields["mla"] = _present(
        q_lora_rank=_value(config, "q_lora_rank"),
        kv_lora_rank=_need(config, "kv_lora_rank"),
        qk_nope_head_dim=_need(config, "qk_nope_head_dim"),
        qk_rope_head_dim=_need(config, "qk_rope_head_dim"),
        v_head_dim=_need(config, "v_head_dim"),
    )
    if _value(config, "n_routed_experts", "num_local_experts") is not None:
        fields["moe"] = {
            "num_experts": _need(config, "n_routed_experts", "num_local_experts"),
            "top_k": _need(config, "num_experts_per_tok"),
            "ffn_hidden_size": _need(config, "moe_intermediate_size"),
            "num_shared_experts": _value(config, "n_shared_experts", default=0),
            "first_dense_layers": _value(config, "first_k_dense_replace", default=0),
            "node_limit": _value(config, "topk_group") if _value(config, "n_group", default=1) > 1 else None,
        }
    return fields


def _deepseek_v3(config: Config) -> Fields:
    fields = _deepseek(config)
    if "moe" in fields:
        fields["moe"]["router_bias"] = True
    return fields


def _gpt2(config: Config) -> Fields:
    return _present(
        num_layers=_need(config, "n_layer", "num_hidden_layers"),
        hidden_size=_need(config, "n_embd", "hidden_size"),
        ffn_hidden_size=_value(config, "n_inner"),
        num_attention_heads=_need(config, "n_head", "num_attention_heads"),
        vocab_size=_need(config, "vocab_size"),
        max_sequence_length=_need(config, "n_positions", "n_ctx", "max_position_embeddings"),
        activation=_activation(config, "activation_function", default="gelu_new"),
        position="learned",
        tied_embeddings=_value(config, "tie_word_embeddings", default=True),
    )


def _gpt_neox(config: Config) -> Fields:
    _refuse(config, "attention_bias", True, "biases are in all linear layers or in none")
    return _present(
        num_layers=_need(config, "num_hidden_layers"),
        hidden_size=_need(config, "hidden_size"),
        ffn_hidden_size=_need(config, "intermediate_size"),
        num_attention_heads=_need(config, "num_attention_heads"),
        vocab_size=_need(config, "vocab_size"),
        max_sequence_length=_value(config, "max_position_embeddings"),
        activation=_activation(config, "hidden_act", default="gelu"),
        position="rotary",
        tied_embeddings=_value(config, "tie_word_embeddings", default=False),
        parallel_block=_value(config, "use_parallel_residual", default=True),
        norms_per_layer=2,
    )


def _bloom(config: Config) -> Fields:
    return _present(
        num_layers=_need(config, "n_layer", "num_hidden_layers"),
        hidden_size=_need(config, "hidden_size", "n_embed"),
        num_attention_heads=_need(config, "n_head", "num_attention_heads"),
        vocab_size=_need(config, "vocab_size"),
        max_sequence_length=_value(config, "seq_length"),
        position="alibi",
        embedding_norm=True,
        tied_embeddings=_value(config, "tie_word_embeddings", default=True),
    )


def _falcon(config: Config) -> Fields:
    heads = _need(config, "num_attention_heads", "n_head")
    new = _value(config, "new_decoder_architecture", default=False)
    groups = _value(config, "num_kv_heads", "n_head_kv", default=heads)
    if not new:
        groups = 1 if _value(config, "multi_query", default=True) else heads
    parallel = _value(config, "parallel_attn", default=True)
    parallel_norms = _value(config, "num_ln_in_parallel_attn", default=2 if new else 1)
    return _present(
        num_layers=_need(config, "num_hidden_layers", "n_layer"),
        hidden_size=_need(config, "hidden_size"),
        ffn_hidden_size=_value(config, "ffn_hidden_size"),
        num_attention_heads=heads,
        num_query_groups=groups,
        vocab_size=_need(config, "vocab_size"),
        max_sequence_length=_value(config, "max_position_embeddings"),
        activation=_activation(config, "activation", default="gelu"),
        linear_bias=_value(config, "bias", default=False),
        position="alibi" if _value(config, "alibi", default=False) else "rotary",
        tied_embeddings=_value(config, "tie_word_embeddings", default=True),
        parallel_block=new or parallel,
        norms_per_layer=parallel_norms if parallel else 2,
    )


def _opt(config: Config) -> Fields:
    hidden = _need(config, "hidden_size")
    _refuse(config, "word_embed_proj_dim", hidden, "the embedding is as wide as the model")
    pre_norm = _value(config, "do_layer_norm_before", default=True)
    return _present(
        num_layers=_need(config, "num_hidden_layers"),
        hidden_size=hidden,
        ffn_hidden_size=_need(config, "ffn_dim"),
        num_attention_heads=_need(config, "num_attention_heads"),
        vocab_size=_need(config, "vocab_size"),
        max_sequence_length=_need(config, "max_position_embeddings"),
        activation=_activation(config, "activation_function", default="relu"),
        linear_bias=_value(config, "enable_bias", default=True),
        position="learned",
        tied_embeddings=_value(config, "tie_word_embeddings", default=True),
        final_norm=pre_norm and not _value(config, "_remove_final_layer_norm", default=False),
    )


FAMILIES: dict[str, Callable[[Config], Fields]] = {
    "bloom": _bloom,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek_v3,
    "falcon": _falcon,
    "gemma": _gemma,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "opt": _opt,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}
