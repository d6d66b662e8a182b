"""Model states: weights, gradients and optimizer state of one rank, sharded as ZeRO does.

ZeRO (arXiv 1910.02054, section 3.1 and figure 1): mixed-precision Adam keeps 2 bytes of weight, a gradient, and 12
bytes of fp32 master weight and two moments per parameter; stage 1 divides the 12 over the data-parallel ranks, stage 2
the gradient, stage 3 the weight. Hybrid sharding divides over a shard group, which each group of replicas repeats.
`no_sync` keeps gradients whole; an offloaded optimizer keeps its state with the host.

Pinned by tests/physics/test_memory.py.
"""

from __future__ import annotations

from simulator.physics.layers.rank import Rank
from simulator.physics.stages import LocalParameters
from simulator.scenario.training import BYTES_PER_ELEMENT
from simulator.scenario.units import Bytes

MOMENTS = {"adam": 2, "sgd": 1}
"""Numbers that the optimizer keeps of each parameter, beside the master weight."""

SHARDED_FROM = {"optimizer": 1, "gradients": 2, "weights": 3}
"""ZeRO stage from which a part is sharded."""


def weight_bytes(rank: Rank) -> Bytes:
    """Bytes of one weight; fp8 recipes keep theirs in bf16."""
    return 4.0 if rank.training.precision in ("fp32", "tf32") else 2.0


def optimizer_bytes(rank: Rank) -> Bytes:
    """Optimizer state of one parameter: an fp32 master copy of a 16-bit weight, and the moments."""
    optimizer = rank.training.optimizer
    master = 4.0 if weight_bytes(rank) < 4.0 else 0.0
    return master + MOMENTS[optimizer.kind] * BYTES_PER_ELEMENT[optimizer.state_dtype]


def host_state_bytes(rank: Rank) -> Bytes:
    """What an offloaded optimizer keeps of one parameter: its state, and an fp32 copy of an fp32 weight."""
    return optimizer_bytes(rank) + (4.0 if weight_bytes(rank) >= 4.0 else 0.0)


def host_bytes(rank: Rank, parameters: LocalParameters) -> Bytes:
    """Host memory of one rank's offloaded optimizer: state and the gradients that it is handed; on NVMe the latter."""
    optimizer = rank.training.optimizer
    if optimizer.offload is None:
        return 0.0
    dense, expert = shards(rank) if optimizer.zero_stage else (1, 1)
    elements = parameters.dense / dense + parameters.expert / expert
    state = host_state_bytes(rank) if optimizer.offload == "cpu" else 0.0
    return elements * (state + BYTES_PER_ELEMENT[optimizer.grad_dtype])


def shards(rank: Rank) -> tuple[int, int]:
    """Over how many ranks dense and expert states are divided, where they are."""
    group = rank.training.optimizer.shard_group
    dense, expert = rank.parallelism.replicas, rank.parallelism.edp
    return (dense, expert) if group is None else (min(dense, group), min(expert, group))


def model_state_bytes(rank: Rank, parameters: LocalParameters) -> dict[str, Bytes]:
    """Weights, gradients and optimizer state of one rank."""
    optimizer = rank.training.optimizer
    per_parameter = {
        "weights": weight_bytes(rank),
        "gradients": float(BYTES_PER_ELEMENT[optimizer.grad_dtype]),
        "optimizer": optimizer_bytes(rank) if optimizer.offload is None else 0.0,
    }
    over_dense, over_expert = shards(rank)
    parts = {}
    for part, size in per_parameter.items():
        spread = optimizer.zero_stage >= SHARDED_FROM[part]
        if part == "gradients":
            spread = not rank.keeps_whole_gradients
        dense = parameters.dense / (over_dense if spread else 1)
        expert = parameters.expert / (over_expert if spread else 1)
        parts[part] = size * (dense + expert)
    return parts
