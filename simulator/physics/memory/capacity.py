"""Whether a job fits in its accelerators' memory.

Pinned by tests/physics/test_memory.py.
"""

from __future__ import annotations

from simulator.physics.memory.ranks import StageMemory
from simulator.scenario.hardware import Accelerator
from simulator.scenario.hosts import Host


def check_capacity(accelerator: Accelerator, stages: tuple[StageMemory, ...], host: Host | None = None) -> str | None:
    """Why the fullest stage does not fit: needed, available and the three largest parts; None if it fits."""
    fullest = max(stages, key=lambda stage: stage.needed)
    if fullest.needed <= accelerator.memory:
        return None if host is None else _check_host(host, stages)
    parts = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in fullest.largest())
    return (
        f"pipeline stage {fullest.rank} needs {fullest.needed / 1e9:.1f} GB per GPU and a {accelerator.name} has "
        f"{accelerator.memory / 1e9:.1f} GB; the largest parts: {parts}"
    )


def _check_host(host: Host, stages: tuple[StageMemory, ...]) -> str | None:
    """Why an offloaded optimizer does not fit in host memory; None if it does."""
    fullest = max(stages, key=lambda stage: stage.host)
    if fullest.host <= host.memory:
        return None
    return (
        f"the offloaded optimizer of pipeline stage {fullest.rank} needs {fullest.host / 1e9:.1f} GB of host memory per"
        f" GPU and there are {host.memory / 1e9:.1f} GB; shard it (zero_stage 1 or more), or offload to nvme"
    )
