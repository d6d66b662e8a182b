"""What a software stack changes in a layer's operations.

Limits: what hides behind GEMMs neither slows them nor uses links; half a layer is half of each kernel. Pinned by
tests/physics/program/test_software.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.physics.layers.rank import Rank
from simulator.physics.operations import Collective, Kernel, Operation
from simulator.scenario.stacks import Stack

_HIDEABLE = ("all_gather", "reduce_scatter")


def overlapped(operations: Sequence[Operation], share: float) -> list[Operation]:
    """Operations without the share of tensor parallelism's gathers and scatters that hides behind GEMMs.

    They are cut into pieces that run beside the GEMM's own pieces (Transformer Engine's userbuffers; asynchronous
    tensor parallelism, Wang et al., ASPLOS 2023), which all-reduces do not allow.
    """
    return [_shortened(operation, share) for operation in operations] if share else list(operations)


def _shortened(operation: Operation, share: float) -> Operation:
    if isinstance(operation, Collective) and operation.axis == "tp" and operation.op in _HIDEABLE:
        return operation._replace(size=operation.size * (1 - share))
    return operation


_FUSED_CASTS = ("qkv.cast", "mlp.up.cast", "mlp.down.cast", "mlp.up.grad_cast")


def without_fused_casts(operations: Sequence[Operation]) -> list[Operation]:
    """Operations without the casts to fp8 that the norm or the activation before them does in passing.

    Transformer Engine's LayerNormLinear and LayerNormMLP write the output of norm and activation in fp8, and backward
    the activation's gradient; compilers fuse the same.
    """
    return [operation for operation in operations if getattr(operation, "name", "") not in _FUSED_CASTS]


def repeats_half(rank: Rank, stack: Stack) -> bool:
    """Whether selective recomputation means every second matmul or layer (torchtitan) and not the attention core."""
    return rank.training.recompute == "selective" and stack.selective == "half"


def half(operations: Sequence[Operation]) -> list[Operation]:
    """Every second layer, spread evenly: half of each kernel, its collectives' results being kept."""
    return [
        operation._replace(seconds=operation.seconds / 2, flops=operation.flops / 2)
        for operation in operations
        if isinstance(operation, Kernel)
    ]
