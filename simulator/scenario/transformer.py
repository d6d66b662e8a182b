"""Transformer: what a model looks like and how many parameters each part of it has.

One description covers dense and mixture-of-experts models, multi-head, grouped-query, multi-query and
multi-head latent attention, parallel blocks and tied embeddings. It counts parameters, exactly, layer by layer;
FLOPs, bytes and time are physics.

Limits: decoder-only stacks of equal attention layers (an encoder-decoder is described by the sum of its layers
and says so in its `source`); no sliding windows or sparse attention patterns, no multi-token-prediction heads, no
parameters for relative positions (T5's are 32 numbers per head and model), no vocabulary padding beyond the
`vocab_size` given.

Pinned by tests/scenario/test_transformer.py; the shipped models by tests/scenario/test_models.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simulator.errors import ScenarioError

# Strict: `true`, "12" and 12.5 are not sizes.
Size = Annotated[int, Field(strict=True, gt=0)]
Count = Annotated[int, Field(strict=True, ge=0)]

Activation = Literal["gelu", "relu", "silu", "swiglu", "geglu", "reglu"]
Position = Literal["learned", "rotary", "alibi", "sinusoidal", "relative"]
AttentionKind = Literal["mha", "gqa", "mqa", "mla"]

# Gated linear units, Shazeer 2020 (arXiv 2002.05202): two input matrices instead of one.
GATED_ACTIVATIONS = ("swiglu", "geglu", "reglu")


class LatentAttention(BaseModel):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; sizes per head unless said).

    Attributes
    ----------
    q_lora_rank
        Width of the compressed query; absent = queries are projected from the hidden state directly.
    kv_lora_rank
        Width of the compressed keys and values, the part that is cached.
    qk_nope_head_dim, qk_rope_head_dim
        Query/key width without and with rotary positions. The rotary key is shared by all heads.
    v_head_dim
        Value width.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    q_lora_rank: Size | None = None
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


class Experts(BaseModel):
    """The mixture-of-experts layers of a model.

    Attributes
    ----------
    num_experts
        Routed experts of one layer.
    top_k
        Routed experts that one token visits.
    ffn_hidden_size
        Inner width of one routed expert.
    num_shared_experts
        Experts that every token visits, beside the routed ones.
    shared_expert_ffn_hidden_size
        Inner width of one shared expert; default: as a routed one.
    shared_expert_gate
        A sigmoid gate of `hidden_size` weights on the shared experts' output (Qwen2-MoE).
    first_dense_layers
        Layers at the start that have an ordinary MLP (DeepSeek).
    every
        After those, each `every`-th layer is a mixture and the others are dense (GShard: 2, so layers 1, 3, 5 ...).
    node_limit
        A token's experts lie on at most this many nodes (DeepSeek-V3, arXiv 2412.19437, section 2.1.2) or devices
        (DeepSeek-V2, arXiv 2405.04434, section 2.2.2).
    router_bias
        One number per expert added to the router's scores (DeepSeek-V3's load balancing).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_experts: Size
    top_k: Size
    ffn_hidden_size: Size
    num_shared_experts: Count = 0
    shared_expert_ffn_hidden_size: Size = Field(default_factory=lambda given: given["ffn_hidden_size"])
    shared_expert_gate: bool = False
    first_dense_layers: Count = 0
    every: Size = 1
    node_limit: Size | None = None
    router_bias: bool = False

    @model_validator(mode="after")
    def _routable(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k {self.top_k} is more than num_experts {self.num_experts}; a token visits each at most once"
            )
        if self.shared_expert_gate and not self.num_shared_experts:
            raise ValueError("shared_expert_gate is true but num_shared_experts is 0; there is nothing to gate")
        return self


class Transformer(BaseModel):
    """A decoder-only transformer.

    Sizes left out are derived: `ffn_hidden_size` 4 · hidden, `num_query_groups` = heads, `head_dim` hidden / heads,
    `gated_mlp` from the activation, `qkv_bias` as `linear_bias`, `norm_bias` true for layernorm, `norms_per_layer` 2
    (1 in a parallel block). The other defaults are those of a GPT with rotary positions.

    Attributes
    ----------
    num_query_groups
        Key/value heads: heads = MHA, 1 = MQA, between = GQA.
    max_sequence_length
        Tokens that the model was made for; learned positions have one row for each.
    linear_bias
        Every linear layer of the blocks has a bias, the router excepted.
    qkv_bias
        Overrides `linear_bias` for the query, key and value projections (Qwen2: the only biases).
    qk_norm
        Queries and keys are normalised per head (Qwen3): 2 · `head_dim` weights a layer.
    norm_bias
        Norms have a shift beside their scale.
    parallel_block
        Attention and MLP read the same input and are added together (PaLM, GPT-NeoX, Falcon).
    norms_per_layer
        Norms of `hidden_size` in one layer.
    embedding_norm
        A norm right after the embedding (BLOOM).
    final_norm
        A norm after the last layer; false for post-norm models (GPT-1).
    published_parameters, published_active_parameters
        What the source says, for the tests; `published_tolerance` is the relative difference allowed for the total
        (0 = the source counts exactly).
    source
        Paper and table, or whose configuration, and every assumption made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "custom"
    num_layers: Size
    hidden_size: Size
    ffn_hidden_size: Size = Field(default_factory=lambda given: 4 * given["hidden_size"])
    num_attention_heads: Size
    num_query_groups: Size = Field(default_factory=lambda given: given["num_attention_heads"])
    mla: LatentAttention | None = None
    head_dim: Size = Field(default_factory=lambda given: _default_head_dim(given))
    moe: Experts | None = None
    vocab_size: Size
    max_sequence_length: Size | None = None
    activation: Activation = "gelu"
    gated_mlp: bool = Field(default_factory=lambda given: given["activation"] in GATED_ACTIVATIONS)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_bias: bool = Field(default_factory=lambda given: given["norm"] == "layernorm")
    linear_bias: bool = True
    qkv_bias: bool | None = None
    qk_norm: bool = False
    position: Position = "rotary"
    tied_embeddings: bool = True
    parallel_block: bool = False
    norms_per_layer: Size = Field(default_factory=lambda given: 1 if given["parallel_block"] else 2)
    embedding_norm: bool = False
    final_norm: bool = True
    published_parameters: float | None = Field(default=None, gt=0)
    published_active_parameters: float | None = Field(default=None, gt=0)
    published_tolerance: float = Field(default=0.0, ge=0, lt=1)
    source: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        hidden, heads, groups = self.hidden_size, self.num_attention_heads, self.num_query_groups
        if self.mla is None and "head_dim" not in self.model_fields_set and hidden % heads:
            raise ValueError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}; give head_dim")
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_query_groups {groups}")
        if self.gated_mlp != (self.activation in GATED_ACTIVATIONS):
            raise ValueError(
                f"gated_mlp {self.gated_mlp} contradicts activation {self.activation!r}; the gated ones are "
                f"{', '.join(GATED_ACTIVATIONS)}; leave gated_mlp out to follow the activation"
            )
        if self.position == "learned" and self.max_sequence_length is None:
            raise ValueError("position 'learned' needs max_sequence_length, the number of rows of its table")
        self._check_latent_attention()
        self._check_experts()
        return self

    def _check_latent_attention(self) -> None:
        if self.mla is None:
            return
        if self.num_query_groups != self.num_attention_heads:
            raise ValueError(
                f"num_query_groups {self.num_query_groups} differs from num_attention_heads "
                f"{self.num_attention_heads}, but with mla every head has its own keys; leave it out"
            )
        if self.head_dim != self.mla.qk_head_dim:
            raise ValueError(
                f"head_dim {self.head_dim} differs from mla's qk_nope_head_dim + qk_rope_head_dim "
                f"{self.mla.qk_head_dim}; leave it out"
            )
        if self.linear_bias or self.qkv_bias or self.qk_norm:
            raise ValueError(
                f"mla with linear_bias {self.linear_bias}, qkv_bias {self.qkv_bias}, qk_norm {self.qk_norm}: "
                "no published model has these; set linear_bias: false and leave the others out"
            )

    def _check_experts(self) -> None:
        if self.moe is not None and self.num_moe_layers == 0:
            raise ValueError(
                f"moe with first_dense_layers {self.moe.first_dense_layers} and every {self.moe.every} leaves no "
                f"mixture layer among num_layers {self.num_layers}; they may add up to at most num_layers"
            )

    @property
    def attention_kind(self) -> AttentionKind:
        """`mla`, `mha`, `mqa` or `gqa`."""
        if self.mla is not None:
            return "mla"
        if self.num_query_groups == self.num_attention_heads:
            return "mha"
        return "mqa" if self.num_query_groups == 1 else "gqa"

    def _attention_weights(self) -> int:
        if self.mla is not None:
            return self._latent_attention_weights(self.mla)
        query, key_value = self.num_attention_heads * self.head_dim, self.num_query_groups * self.head_dim
        return self.hidden_size * (query + 2 * key_value) + query * self.hidden_size

    def _latent_attention_weights(self, mla: LatentAttention) -> int:
        """W_DQ, W_UQ and W_QR; W_DKV and W_KR; W_UK and W_UV; W_O of DeepSeek-V2, equations 9-19 (section 2.1)."""
        hidden, heads = self.hidden_size, self.num_attention_heads
        query = heads * mla.qk_head_dim
        queries = hidden * query if mla.q_lora_rank is None else mla.q_lora_rank * (hidden + query)
        compressed = hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim)
        expanded = mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        return queries + compressed + expanded + heads * mla.v_head_dim * hidden

    @property
    def attention_parameters(self) -> int:
        """Attention of one layer: weights, biases, norms of queries, keys and MLA's compressed vectors."""
        if self.mla is not None:
            return self._attention_weights() + self._norm_size((self.mla.q_lora_rank or 0) + self.mla.kv_lora_rank)
        qkv_bias = self.linear_bias if self.qkv_bias is None else self.qkv_bias
        qkv_size = (self.num_attention_heads + 2 * self.num_query_groups) * self.head_dim
        biases = qkv_bias * qkv_size + self.linear_bias * self.hidden_size
        return self._attention_weights() + biases + (self._norm_size(2 * self.head_dim) if self.qk_norm else 0)

    def _mlp_weights(self, ffn_hidden_size: int) -> int:
        return (3 if self.gated_mlp else 2) * self.hidden_size * ffn_hidden_size

    def _mlp_size(self, ffn_hidden_size: int) -> int:
        biases = (2 if self.gated_mlp else 1) * ffn_hidden_size + self.hidden_size
        return self._mlp_weights(ffn_hidden_size) + self.linear_bias * biases

    @property
    def mlp_parameters(self) -> int:
        """The MLP of one dense layer, of width `ffn_hidden_size`."""
        return self._mlp_size(self.ffn_hidden_size)

    @property
    def expert_parameters(self) -> int:
        """One routed expert; 0 without `moe`."""
        return 0 if self.moe is None else self._mlp_size(self.moe.ffn_hidden_size)

    @property
    def shared_expert_parameters(self) -> int:
        """All shared experts of one mixture layer and their gate; 0 without."""
        if self.moe is None:
            return 0
        gate = self.hidden_size if self.moe.shared_expert_gate else 0
        return self.moe.num_shared_experts * self._mlp_size(self.moe.shared_expert_ffn_hidden_size) + gate

    @property
    def router_parameters(self) -> int:
        """The router of one mixture layer: hidden · experts, and `router_bias`; 0 without `moe`."""
        if self.moe is None:
            return 0
        return self.moe.num_experts * (self.hidden_size + self.moe.router_bias)

    def _norm_size(self, width: int) -> int:
        return (2 if self.norm_bias else 1) * width

    @property
    def norm_parameters(self) -> int:
        """The norms of one layer outside attention."""
        return self.norms_per_layer * self._norm_size(self.hidden_size)

    @property
    def final_norm_parameters(self) -> int:
        """The norm after the last layer; 0 without `final_norm`."""
        return self._norm_size(self.hidden_size) if self.final_norm else 0

    @property
    def num_moe_layers(self) -> int:
        """Layers that are mixtures of experts."""
        if self.moe is None:
            return 0
        return max(0, self.num_layers - self.moe.first_dense_layers) // self.moe.every

    def is_moe_layer(self, index: int) -> bool:
        """Whether layer `index` (from 0) is a mixture of experts.

        Raises
        ------
        IndexError
            For a layer that the model does not have.
        """
        if not 0 <= index < self.num_layers:
            raise IndexError(f"layer {index} of {self.name}, which has layers 0 to {self.num_layers - 1}")
        if self.moe is None or index < self.moe.first_dense_layers:
            return False
        return (index - self.moe.first_dense_layers + 1) % self.moe.every == 0

    def _layer_size(self, mixture: bool, active: bool) -> int:
        common = self.attention_parameters + self.norm_parameters
        if self.moe is None or not mixture:
            return common + self.mlp_parameters
        routed = (self.moe.top_k if active else self.moe.num_experts) * self.expert_parameters
        return common + self.router_parameters + routed + self.shared_expert_parameters

    def layer_parameters(self, index: int) -> int:
        """Parameters of layer `index` (from 0)."""
        return self._layer_size(self.is_moe_layer(index), active=False)

    def active_layer_parameters(self, index: int) -> int:
        """Parameters of layer `index` that one token meets: `top_k` routed experts, and all that is not routed."""
        return self._layer_size(self.is_moe_layer(index), active=True)

    def matmul_parameters(self, index: int, active: bool = True) -> int:
        """Weights of layer `index` that are multiplied with each token: no biases, no norms, the router included.

        Parameters
        ----------
        index
            Layer, from 0.
        active
            Only the `top_k` experts that a token visits; else all of them.
        """
        attention, moe = self._attention_weights(), self.moe
        if not self.is_moe_layer(index) or moe is None:
            return attention + self._mlp_weights(self.ffn_hidden_size)
        router = self.hidden_size * (moe.num_experts + moe.shared_expert_gate)
        routed = (moe.top_k if active else moe.num_experts) * self._mlp_weights(moe.ffn_hidden_size)
        shared = moe.num_shared_experts * self._mlp_weights(moe.shared_expert_ffn_hidden_size)
        return attention + router + routed + shared

    @property
    def embedding_parameters(self) -> int:
        """Token table, learned positions and embedding norm."""
        tokens = self.vocab_size * self.hidden_size
        positions = (self.max_sequence_length or 0) * self.hidden_size if self.position == "learned" else 0
        return tokens + positions + (self._norm_size(self.hidden_size) if self.embedding_norm else 0)

    @property
    def output_parameters(self) -> int:
        """The output layer's own matrix; 0 when it is the token table again."""
        return 0 if self.tied_embeddings else self.vocab_size * self.hidden_size

    @property
    def total_parameters(self) -> int:
        """Every parameter once."""
        return self._model_size(active=False)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets; the whole embedding is counted, as the papers on mixtures do."""
        return self._model_size(active=True)

    def _model_size(self, active: bool) -> int:
        mixtures = self.num_moe_layers
        layers = mixtures * self._layer_size(True, active) + (self.num_layers - mixtures) * self._layer_size(
            False, active
        )
        return self.embedding_parameters + layers + self.final_norm_parameters + self.output_parameters


def _default_head_dim(given: Mapping[str, Any]) -> int:
    mla: LatentAttention | None = given["mla"]
    # At least 1, so that the check below can say what is wrong: a default factory cannot.
    return mla.qk_head_dim if mla is not None else max(1, given["hidden_size"] // given["num_attention_heads"])


def read_model(mapping: Mapping[str, Any]) -> Transformer:
    """Read a model description.

    Raises
    ------
    ScenarioError
        With the dotted field, what is wrong with its value and what is allowed; further faults follow the first.
    """
    try:
        return Transformer.model_validate(dict(mapping))
    except ValidationError as error:
        # A default that could not be derived is a consequence of another fault.
        faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
    named = [(".".join(map(str, fault["loc"])), _explain(fault)) for fault in faults]
    (field, first), rest = named[0], named[1:]
    message = "; ".join([first, *(f"{other}: {text}" if other else text for other, text in rest)])
    raise ScenarioError(message, field=field or None)


def _explain(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"moe": Experts, "mla": LatentAttention}
        known = models.get(str(fault["loc"][0]), Transformer).model_fields
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        return f"no such field; did you mean {near[0]!r}?" if near else f"no such field; allowed: {', '.join(known)}"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    return "is missing" if fault["type"] == "missing" else f"{fault['msg']}, not {fault['input']!r}"
