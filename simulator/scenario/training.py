"""The training recipe: batch, precision, schedule, recomputation, optimizer sharding.

A recipe says what is asked of the machine, never how long it takes. What a software stack does by itself
(whether a pipeline send blocks the compute stream, how much an overlapped collective slows the kernels
beside it) is in `stacks.py`, named by `stack`.

Limits: one phase per scenario; batch ramps and changes of sequence length belong to a campaign.
Pinned by tests/scenario/test_training.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.scenario.phases import Phase, Stretch, stretches, whole_steps
from simulator.scenario.pipeline import Schedule as Schedule
from simulator.scenario.units import Tokens, TokensField

Precision = Literal["fp32", "tf32", "fp16", "bf16", "fp8"]
GradientDtype = Literal["fp32", "fp16", "bf16"]
RecomputeModule = Literal["core_attn", "mlp", "moe", "layernorm", "moe_act", "shared_experts", "mla_up_proj"]

BYTES_PER_ELEMENT: dict[str, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1}

_CLOSED = ConfigDict(frozen=True, extra="forbid")

# Strict: `true` is no number, "12" and 12.5 are no counts, and 1 is no switch.
Count = Annotated[int, Field(strict=True, gt=0)]
Switch = Annotated[bool, Field(strict=True)]


class Optimizer(BaseModel):
    """The optimizer and what of its state, the gradients and the parameters is sharded (ZeRO, arXiv 1910.02054).

    Attributes
    ----------
    zero_stage
        1 shards optimizer state, 2 gradients too (reduce-scatter every microbatch), 3 parameters too (gathered per
        layer in both directions, every microbatch).
    grad_dtype
        Of the gradient buffer and of what is reduced.
    param_gather_dtype
        Of gathered parameters; as the weights if left out.
    state_dtype
        Of the moments; the master copy of 16-bit weights is fp32 (as DeepSeek-V3, arXiv 2412.19437, section 3.3.3).
    overlap_grad_reduce, overlap_param_gather
        Beside the last backward passes, and beside the first forward passes of the next step.
    shard_group
        Ranks that share one copy of what is sharded (HSDP, arXiv 2304.11277, section 3.2.2); groups of them are equal
        and add their gradients up with an all-reduce. All data-parallel ranks if left out.
    no_sync
        ZeRO-2 and ZeRO-3 keep gradients whole between the microbatches of a step and scatter them once, with the last
        (PyTorch FSDP's `no_sync`).
    offload
        Optimizer state lives in host memory (`cpu`) or on the node's drives (`nvme`), and its step runs on the host
        (ZeRO-Offload, arXiv 2101.06840; ZeRO-Infinity, arXiv 2104.07857).
    reshard_after_forward
        ZeRO-3 gives gathered parameters back after forward and gathers them again in backward.
    """

    model_config = _CLOSED

    kind: Literal["adam", "sgd"] = "adam"
    zero_stage: Annotated[int, Field(strict=True, ge=0, le=3)] = 0
    grad_dtype: GradientDtype = "fp32"
    param_gather_dtype: Literal["fp32", "fp16", "bf16", "fp8"] | None = None
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    overlap_grad_reduce: Switch = True
    overlap_param_gather: Switch = False
    reshard_after_forward: Switch = True
    shard_group: Count | None = None
    no_sync: Switch = False
    offload: Literal["cpu", "nvme"] | None = None

    @model_validator(mode="after")
    def _something_to_put_off(self) -> Self:
        if self.no_sync and self.zero_stage < 2:
            raise ValueError(
                f"no_sync true with zero_stage {self.zero_stage}: gradients are reduced once a step anyway; leave"
                " no_sync out, or use zero_stage 2 or 3"
            )
        return self


Algorithm = Literal["ring", "tree", "pat", "nvls", "nvls_tree", "hierarchical", "direct", "pairwise", "two_hop"]


class Collectives(BaseModel):
    """Algorithm of an axis' collectives, where it is not to be the one with the least predicted time."""

    model_config = _CLOSED

    tp: Algorithm | None = None
    cp: Algorithm | None = None
    ep: Algorithm | None = None
    etp: Algorithm | None = None
    dp: Algorithm | None = None
    edp: Algorithm | None = None


def _all_phases(fields: dict[str, Any]) -> Tokens | None:
    phases = fields.get("phases")
    return math.fsum(phase.tokens for phase in phases) if phases else None


class Training(BaseModel):
    """How the model is trained.

    `global_batch_size` and `micro_batch_size` are in sequences, `sequence_length` in tokens. `tokens` is the
    length of the run, of all `phases` together: without it there is a step but no campaign.

    Attributes
    ----------
    recompute_modules
        What `recompute: selective` drops and runs again, by Megatron-Core's names (`--recompute-modules`).
    cp_split
        How the sequence is cut over cp: `zigzag` gives every rank an early and a late piece, so that causal attention
        is even; `contiguous` gives the last rank the most.
    expert_imbalance
        The busiest rank of an ep group receives this much more tokens than the mean; the others share the rest evenly.
    expert_capacity_factor
        An expert takes at most this many times its even share of each rank's tokens, rounded up; what is above is
        dropped (Megatron-Core's `--moe-expert-capacity-factor`). Without it no token is dropped.
    expert_padding
        Each expert's input is filled up to its capacity (`--moe-pad-expert-input-to-capacity`).
    collectives
        Algorithm by axis.
    cross_entropy
        The loss in one kernel each way, or operation by operation; as the stack does, if left out. What it keeps in
        memory is a habit of the stack.
    cuda_graphs
        Kernels are launched by the GPU, so that a slow host does not hold them up; as the stack does, if left out.
    phases
        Stretches of the run with a recipe of their own, in order.
    """

    model_config = _CLOSED

    sequence_length: Count
    global_batch_size: Count
    micro_batch_size: Count = 1
    precision: Precision = "bf16"
    schedule: Schedule = Schedule()
    recompute: Literal["none", "selective", "full"] = "none"
    recompute_modules: tuple[RecomputeModule, ...] = ("core_attn",)
    attention: Literal["flash", "unfused"] = "flash"
    dropout: Switch = False
    cp_split: Literal["zigzag", "contiguous"] = "zigzag"
    expert_imbalance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    expert_capacity_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    expert_padding: Switch = False
    collectives: Collectives = Collectives()
    optimizer: Optimizer = Optimizer()
    stack: str = "generic"
    cross_entropy: Literal["fused", "unfused"] | None = None
    cuda_graphs: Switch | None = None
    phases: tuple[Phase, ...] = ()
    tokens: TokensField | None = Field(default_factory=_all_phases)

    @model_validator(mode="before")
    @classmethod
    def _schedule_by_name(cls, content: Any) -> Any:
        # `schedule: 1f1b` is short for `schedule: {kind: 1f1b}`.
        if isinstance(content, dict) and isinstance(content.get("schedule"), str):
            return {**content, "schedule": {"kind": content["schedule"]}}
        return content

    @model_validator(mode="before")
    @classmethod
    def _no_tokens_are_those_of_the_phases(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("tokens", 0) is None:
            return {name: value for name, value in content.items() if name != "tokens"}
        return content

    @model_validator(mode="after")
    def _phases_add_up(self) -> Self:
        if not self.phases:
            return self
        names = [phase.name for phase in self.phases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"phases: {name!r} is the name of {names.count(name)} phases; each needs its own")
        total, stated = math.fsum(phase.tokens for phase in self.phases), self.tokens or 0.0
        if abs(stated - total) > 1e-9 * total:
            raise ValueError(f"tokens: {stated:.9g}, but the phases have {total:.9g} together; leave tokens out")
        self.stretches()  # refuses impossible ramps
        return self

    @model_validator(mode="after")
    def _padding_has_a_capacity(self) -> Self:
        if self.expert_padding and self.expert_capacity_factor is None:
            raise ValueError(
                "expert_padding true needs a capacity to pad to: give expert_capacity_factor, such as 1.25, or leave"
                " expert_padding out"
            )
        return self

    def stretches(self) -> list[Stretch]:
        """The run as stretches of one recipe each, in order; empty without `phases`."""
        recipe = {
            "sequence_length": self.sequence_length,
            "global_batch_size": self.global_batch_size,
            "micro_batch_size": self.micro_batch_size,
        }
        return [each for number, phase in enumerate(self.phases) for each in stretches(phase, number, recipe)]

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; the last one of a phase may be partly filled. None without `tokens`."""
        if self.phases:
            return sum(stretch.steps for stretch in self.stretches())
        return None if self.tokens is None else whole_steps(self.tokens, self.tokens_per_step)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step consumes."""
        return self.global_batch_size * self.sequence_length
