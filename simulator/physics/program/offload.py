"""The optimizer step on the host: gradients go there, Adam runs on its cores, weights come back.

Idea
----
ZeRO-Offload (arXiv 2101.06840, section 5): a rank's share of the gradients crosses the host link; then Adam walks over
the state tile by tile while the tiles before are copied back (section 5.2), so that the slowest of both counts. State
on NVMe is read and written beside it (ZeRO-Infinity, arXiv 2104.07857, section 5.2.2). Adam on a CPU is a pass over
host memory.

Limits: gradients do not cross during backward; the GPUs wait (no one-step-delayed update); drives have one bandwidth.
Pinned by tests/physics/program/test_offload.py.
"""

from __future__ import annotations

from simulator.physics.layers.rank import Rank
from simulator.physics.memory.states import host_state_bytes, weight_bytes
from simulator.physics.operations import Kernel
from simulator.scenario.training import BYTES_PER_ELEMENT

CPU_SHARE = 0.46
"""Share of the host's nominal memory bandwidth that Adam reaches. From arXiv 2101.06840, table 4 (recalled): 2.57 s for
10e9 parameters on a DGX-2 of 256 GB/s; 30 bytes each: (10e9 x 30 / 2.57) / 256e9 = 0.46. Smaller models reach 0.53."""


def host_step(rank: Rank, elements: float) -> list[Kernel]:
    """The step of `elements` parameters of one rank, once their gradients are reduced and clipped."""
    host, optimizer = rank.host, rank.training.optimizer
    assert host is not None
    gradient, weight, state = BYTES_PER_ELEMENT[optimizer.grad_dtype], weight_bytes(rank), host_state_bytes(rank)
    copy = weight if weight < 4 else 0.0  # a 16-bit weight is written beside its master
    times = [elements * (gradient + 2 * state + copy) / (CPU_SHARE * host.memory_bandwidth)]
    times.append(elements * weight / host.link_bandwidth)
    if optimizer.offload == "nvme":
        assert host.nvme_bandwidth is not None
        times.append(elements * 2 * state / host.nvme_bandwidth)
    down = Kernel("offload.gradients", elements * gradient / host.link_bandwidth)
    return [down, Kernel("offload.optimizer", max(times))]
