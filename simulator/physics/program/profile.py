"""How long a stage's actions take and what they keep, for schedules that are found from times.

The zero-bubble authors profile a few steps; here the kernels of the middle stage are added up.

Limits: messages and collectives count as free. Pinned by tests/physics/program/test_split.py.
"""

from __future__ import annotations

from simulator.physics.layers.rank import Rank
from simulator.physics.memory.activations import stage_activations, stage_weight_half
from simulator.physics.operations import Kernel
from simulator.physics.program.bodies import Bodies, Counted
from simulator.physics.schedules.zero_bubble import Times
from simulator.physics.stages import Stage
from simulator.scenario.units import Seconds


def action_times(bodies: Bodies, stage: Stage) -> Times:
    """Seconds of a stage's F, I and W on one microbatch."""
    return Times(
        forward=_seconds(bodies.forward(stage, first=False)),
        input=_seconds(bodies.backward(stage, last=False, kind="I")),
        weight=_seconds(bodies.backward(stage, last=False, kind="W")),
    )


def kept_share(rank: Rank, stage: Stage) -> float:
    """Share of a microbatch's activation memory that stays from I to W."""
    whole = stage_activations(rank, stage)
    return min(1.0, stage_weight_half(rank, stage) / whole) if whole else 1.0


def _seconds(body: list[Counted]) -> Seconds:
    return sum(each.operation.seconds for each in body if isinstance(each.operation, Kernel))
