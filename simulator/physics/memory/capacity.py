"""Whether a job fits in its accelerators' memory.

Pinned by tests/physics/test_memory.py.
"""

from __future__ import annotations

from simulator.physics.memory.ranks import StageMemory
from simulator.scenario.hardware import Accelerator


def check_capacity(accelerator: Accelerator, stages: tuple[StageMemory, ...]) -> str | None:
    """Why the fullest stage does not fit: needed, available and the three largest parts; None if it fits."""
    fullest = max(stages, key=lambda stage: stage.needed)
    if fullest.needed <= accelerator.memory:
        return None
    parts = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in fullest.largest())
    return (
        f"pipeline stage {fullest.rank} needs {fullest.needed / 1e9:.1f} GB per GPU and a {accelerator.name} has "
        f"{accelerator.memory / 1e9:.1f} GB; the largest parts: {parts}"
    )
