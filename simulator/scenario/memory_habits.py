"""What a training framework does by itself that costs memory, whatever the recipe says: one block per stack.

The defaults are those of Megatron-LM as its papers describe it (arXiv 2205.05198, section 4). A habit has one value per
stack, never per run.

Pinned by tests/scenario/test_stacks.py and tests/physics/test_memory.py.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from simulator.scenario.units import BytesField


class DeferredFrees(BaseModel):
    """Full-length outputs of row-parallel linears that the allocator cannot reuse yet.

    A tensor that a communication stream was told of (`record_stream`) is given back only when the GPU has passed it.
    Where the host issues work far ahead of the GPU, each layer's two such outputs, 2 sbh bytes each, pile up until its
    launch queue is full. An allocator that runs out of memory waits for them: they fill memory, but never overflow it.

    Attributes
    ----------
    per_layer
        How many a layer leaves behind, while the host runs ahead; 0 where it does not.
    most
        How many the launch queue lets pile up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_layer: float = Field(default=0.0, ge=0)
    most: float = Field(default=0.0, ge=0)


class MemoryHabits(BaseModel):
    """Memory that a software stack takes beyond what the recipe asks for.

    Attributes
    ----------
    loss_bytes
        Bytes a logit at the loss's worst moment: 4 that wait for the backward pass, and copies.
    whole_gradients
        Beside the fp32 sums every parameter's 16-bit gradient stands at the end of a backward pass; PyTorch's DDP keeps
        them in buckets.
    dummy_gradients
        Weight gradients go straight into the sums, but PyTorch is handed a 16-bit tensor of each weight's shape, kept
        for the next one of that shape; the output layer's is made anew each time.
    sequence_buffers
        Buffers of a microbatch's full length, T · h, that sequence parallelism keeps for gathering.
    packed_attention
        Queries stay in the packed output of the QKV projection, while keys and values are copied out of it.
    activation_output
        The gated MLP also keeps the activation function's output, as unfused SwiGLU does.
    context_output
        With context parallelism by all-to-all, attention's output is kept before and after the exchange.
    reduce_copy
        Before the optimizer step gradients are copied into a flat buffer to be scattered, with the shard's output.
    deferred_single, deferred_pipelined
        Without a pipeline; with one, for the microbatches in flight beyond two.
    activation_reserve
        Blocks that the allocator holds and cannot use, as a share of activations and of gradients of activations. The
        default is an assumption: the smaller of the two that were fitted (nanotron 0.1, Megatron-Core of 2026 0.25).
    stage_cut
        How published runs of the stack were cut into stages: evenly, or by running cost (`physics/memory/cuts.py`).
        Only `validate --memory` looks at it; a scenario says its own.
    outside
        Everything on the device outside PyTorch's allocator; absent: CUDA context and one buffer per communicator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss_bytes: float = Field(default=6.0, ge=2)
    whole_gradients: bool = False
    dummy_gradients: bool = False
    sequence_buffers: int = Field(default=1, ge=0)
    packed_attention: bool = False
    activation_output: bool = False
    context_output: bool = False
    reduce_copy: bool = False
    deferred_single: DeferredFrees = DeferredFrees()
    deferred_pipelined: DeferredFrees = DeferredFrees()
    activation_reserve: float = Field(default=0.1, ge=0, le=1)
    stage_cut: Literal["even", "cost_passed", "cost_reached"] = "even"
    outside: BytesField | None = None
