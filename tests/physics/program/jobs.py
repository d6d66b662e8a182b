"""Layouts of small jobs, for the tests of what a program is made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.program.fold import Fold, fold
from simulator.physics.program.layout import Layout, Need
from simulator.scenario.parallelism import Parallelism
from tests.physics.shapes import cluster

MACHINE = build_cluster(cluster(nodes=4))
SIZE = 1e8


def need(axis: str, op: str, stage: int = 0, other: int = -1, size: float = SIZE) -> Need:
    """Shorten the making of a need."""
    return Need(axis, op, size, stage, other)


def message(stage: int, other: int, size: float = SIZE) -> Need:
    """A message from a stage to another."""
    return Need("pp", "send_recv", size, stage, other)


def lay_out(*needs: Need, machine: ClusterGraph = MACHINE, gpus: Any = None, **fields: Any) -> Layout:
    """Lay the needs of a split on a machine: rank r on GPU r unless said otherwise."""
    given = {
        name: fields.pop(name)
        for name in ("named", "expert_loads", "beside", "crossing", "dispatcher")
        if name in fields
    }
    split = Parallelism(**fields)
    return Layout(machine, split, np.arange(split.world_size) if gpus is None else np.array(gpus), needs, **given)


def folded(layout: Layout, programs: Any = None, *, exact: bool = True) -> Fold:
    """Fold ranks that differ by their stage, and by `programs` where given."""
    stages = layout.pipeline_rank
    own = np.zeros_like(stages) if programs is None else np.array(programs)
    return fold(layout, stages * (own.max() + 1) + own, exact=exact)
