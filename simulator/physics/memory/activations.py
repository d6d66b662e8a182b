"""What a layer keeps of a microbatch between its forward and its backward.

Term by term as arXiv 2205.05198, section 4 (equations 1 to 6), extended to grouped queries, gated MLPs, experts,
parallel blocks, latent attention and FlashAttention (which keeps one fp32 number a row instead of the s × s scores).
Under sequence parallelism full recomputation keeps a layer's input split over tp, as Megatron does: 2sbh / t, where the
paper's table 2 has 2sbh.

`recompute: selective` drops the modules of `recompute_modules` (Megatron-Core's `--recompute-modules`) and keeps their
inputs: `core_attn` the scores, `layernorm` the norms' outputs, `mla_up_proj` queries, keys and values, `mlp`,
`shared_experts` and `moe` everything inside them, `moe_act` the activation function's output in experts.

Pinned by tests/physics/test_memory.py.
"""

from __future__ import annotations

from simulator.physics.layers.attention import head_dims
from simulator.physics.layers.experts import LocalExperts, shared_width
from simulator.physics.layers.layer import local_vocabulary
from simulator.physics.layers.rank import Rank
from simulator.physics.stages import Stage
from simulator.scenario.memory_habits import MemoryHabits
from simulator.scenario.stacks import read_stacks
from simulator.scenario.units import Bytes


def habits_of(rank: Rank) -> MemoryHabits:
    """What the software stack does by itself."""
    return read_stacks()[rank.training.stack].memory


def recomputes(rank: Rank, module: str) -> bool:
    """Whether selective recomputation drops a module."""
    return rank.training.recompute == "selective" and module in rank.training.recompute_modules


def hidden_elements(rank: Rank) -> float:
    """Elements of what norms and residuals see."""
    return float(rank.spread_tokens * rank.model.hidden_size)


# --- attention -----------------------------------------------------------------------------------------------------


def _attention_activations(rank: Rank) -> Bytes:
    """Q, K, V, what the core keeps, and the output projection's input; of MLA also the latents."""
    element, tokens = rank.element, rank.tokens
    qk_dim, v_dim = head_dims(rank.model)
    queries, output = rank.heads * qk_dim, rank.heads * v_dim
    keys_values = rank.query_groups * (qk_dim + v_dim)
    if habits_of(rank).packed_attention and rank.model.attention_kind == "mha":
        queries += keys_values  # a view keeps the whole packed tensor
    if rank.model.mla is not None and recomputes(rank, "mla_up_proj"):
        queries = keys_values = 0
    if rank.parallelism.cp > 1 and habits_of(rank).context_output:
        output *= 2
    return element * tokens * (queries + keys_values + output) + _latents(rank) + _core_activations(rank)


def _latents(rank: Rank) -> Bytes:
    """MLA's latents before and after their norms."""
    mla = rank.model.mla
    return 0.0 if mla is None else 2.0 * rank.element * rank.spread_tokens * ((mla.q_lora_rank or 0) + mla.kv_lora_rank)


def _core_activations(rank: Rank) -> Bytes:
    if rank.training.attention == "flash":
        return 4.0 * rank.tokens * rank.heads  # log-sum-exp of each row, fp32
    return 0.0 if recomputes(rank, "core_attn") else scores(rank)


def scores(rank: Rank) -> Bytes:
    """Softmax's output; with dropout also its one-byte mask and its output."""
    elements = float(rank.tokens) * rank.training.sequence_length * rank.heads
    return elements * (2 * rank.element + 1 if rank.training.dropout else rank.element)


# --- MLP and experts -------------------------------------------------------------------------------------------------


def mlp_activations(rank: Rank, tokens: float, width: float, *, drop_output: bool = False) -> Bytes:
    """Inner tensors of an MLP of local width `width`: what the activation function reads and what it writes."""
    tensors = 2 if rank.model.gated_mlp else 1
    if rank.model.gated_mlp and habits_of(rank).activation_output:
        tensors += 1
    return rank.element * tokens * width * (tensors + (not drop_output))


def expert_activations(rank: Rank) -> Bytes:
    """Permuted copies as the experts saw them, and the experts' inner tensors; shared experts apart."""
    experts = LocalExperts.of(rank)
    kept = float(rank.element * experts.rows * rank.model.hidden_size)
    return kept + mlp_activations(rank, experts.rows, experts.width, drop_output=recomputes(rank, "moe_act"))


def shared_activations(rank: Rank) -> Bytes:
    """Inner tensors of the shared experts."""
    return mlp_activations(rank, rank.tokens, shared_width(rank))


def block_activations(rank: Rank, layer: int) -> Bytes:
    """Inside the MLP or mixture of a layer, if nothing is recomputed but `moe_act`."""
    if not rank.model.is_moe_layer(layer):
        return mlp_activations(rank, rank.tokens, rank.model.ffn_hidden_size / rank.parallelism.tp)
    return expert_activations(rank) + shared_activations(rank)


def _kept_of_block(rank: Rank, layer: int) -> Bytes:
    if not rank.model.is_moe_layer(layer):
        return 0.0 if recomputes(rank, "mlp") else block_activations(rank, layer)
    if recomputes(rank, "moe"):
        return 0.0
    return expert_activations(rank) + (0.0 if recomputes(rank, "shared_experts") else shared_activations(rank))


# --- layers and stages -----------------------------------------------------------------------------------------------


def layer_activations(rank: Rank, layer: int) -> Bytes:
    """What one layer keeps of one microbatch for its backward, without full recomputation.

    Of each norm its input, of attention and MLP their input and a dropout mask. A parallel block has one mask, and one
    input where one norm feeds both.
    """
    norms, parallel = rank.model.norms_per_layer, rank.model.parallel_block
    inputs, masks = (min(norms, 2), 1) if parallel else (2, 2)
    if recomputes(rank, "layernorm"):
        inputs = 0
    kept = rank.element * hidden_elements(rank) * (norms + inputs)
    if rank.training.dropout:
        kept += masks * hidden_elements(rank)
    return kept + _attention_activations(rank) + _kept_of_block(rank, layer)


def stage_activations(rank: Rank, stage: Stage) -> Bytes:
    """What one microbatch leaves on a stage between its forward and its backward, but for the logits."""
    if rank.training.recompute == "full":
        kept = len(stage.layers) * rank.element * hidden_elements(rank)
    else:
        kinds = [rank.model.is_moe_layer(layer) for layer in stage.layers]
        examples = dict(zip(kinds, stage.layers, strict=True))
        kept = float(sum(kinds.count(kind) * layer_activations(rank, layer) for kind, layer in examples.items()))
        if rank.training.recompute == "selective" and read_stacks()[rank.training.stack].selective == "half":
            kept = (kept + len(stage.layers) * rank.element * hidden_elements(rank)) / 2  # every other layer in full
    if stage.embedding and rank.training.dropout:
        kept += hidden_elements(rank)
    if stage.output:  # inputs of the final norm and of the output layer
        kept += (1 + rank.model.final_norm) * rank.element * hidden_elements(rank)
    return kept


def _linear_activations(rank: Rank, layer: int) -> Bytes:
    """Inputs of a layer's linears and gradients of their outputs: what the weight half of its backward needs.

    Of a GPT 32 sbh (arXiv 2401.10241, table 1): 2 + 6 of QKV, 2 + 2 of the projection, 2 + 8 and 8 + 2 of the MLP.
    """
    model, tokens = rank.model, rank.tokens
    qk_dim, v_dim = head_dims(model)
    elements = 3.0 * hidden_elements(rank)  # QKV's input, the projection's output, the MLP's output
    elements += tokens * ((rank.heads + rank.query_groups) * qk_dim + (rank.query_groups + rank.heads) * v_dim)
    if model.mla is not None:
        elements += 2.0 * rank.spread_tokens * ((model.mla.q_lora_rank or 0) + model.mla.kv_lora_rank)
    tensors = 3 if model.gated_mlp else 2
    if not model.is_moe_layer(layer):
        elements += hidden_elements(rank) + tokens * tensors * model.ffn_hidden_size / rank.parallelism.tp
    else:
        experts = LocalExperts.of(rank)
        elements += experts.rows * (2 * model.hidden_size + tensors * experts.width)
        elements += hidden_elements(rank) + tokens * tensors * shared_width(rank)
    return rank.element * elements


def stage_weight_half(rank: Rank, stage: Stage) -> Bytes:
    """What of a microbatch a stage keeps between the two halves of a split backward, but for the logits' gradient."""
    kinds = [rank.model.is_moe_layer(layer) for layer in stage.layers]
    examples = dict(zip(kinds, stage.layers, strict=True))
    kept = float(sum(kinds.count(kind) * _linear_activations(rank, layer) for kind, layer in examples.items()))
    return kept + (rank.element * hidden_elements(rank) if stage.output else 0.0)


def logits_elements(rank: Rank) -> float:
    """Logits of one microbatch; the loss keeps as many fp32 numbers (4sbv / t in arXiv 2205.05198, section 4.3)."""
    return float(rank.tokens * local_vocabulary(rank))
