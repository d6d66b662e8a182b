"""One collective on a cluster over a range of sizes, as nccl-tests prints it.

Pinned by tests/studies/test_collectives.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simulator.errors import LayoutError, ScenarioError
from simulator.physics.cluster import ClusterGraph, build_cluster, require_connected
from simulator.physics.collectives.algorithms import ALGORITHMS, NCCL, OPS, candidates
from simulator.physics.collectives.groups import Groups
from simulator.physics.collectives.plans import busbw_factor, choose, solo_time
from simulator.physics.collectives.tuning import architecture_of
from simulator.scenario.scenario import load_cluster
from simulator.scenario.units import Bytes, BytesPerSecond, Seconds, parse_quantity

ALIASES = {"alltoall": "all_to_all", "sendrecv": "send_recv", "allreduce": "all_reduce", "allgather": "all_gather"}
MAX_SIZES = 64


class SizeRow(NamedTuple):
    """A size with the plan that was chosen for it, its time, and bandwidths as nccl-tests defines them."""

    size: Bytes
    algorithm: str
    protocol: str
    time: Seconds
    algbw: BytesPerSecond
    busbw: BytesPerSecond


class CollectiveTable(NamedTuple):
    """A collective over sizes.

    Attributes
    ----------
    domains
        Scale-up domains that the GPUs lie in.
    tuning
        Architecture whose fitted numbers were used; empty where NCCL's constants were.
    """

    cluster: str
    op: str
    gpus: int
    domains: int
    tuning: str
    rows: list[SizeRow]

    def figures(self) -> dict[str, Any]:
        """As JSON: seconds, bytes and bytes/s."""
        return {**self._asdict(), "rows": [row._asdict() for row in self.rows]}


def collective_table(
    name: str,
    op: str,
    gpus: int | None = None,
    smallest: str = "1 KiB",
    largest: str = "8 GiB",
    algorithm: str | None = None,
) -> CollectiveTable:
    """Predict a collective between the first `gpus` of a cluster, alone on it, for sizes from smallest to largest.

    Parameters
    ----------
    name
        A topology file or the name of a shipped one.
    gpus
        All of the cluster if left out.
    smallest, largest
        With units; every size is twice the one before.

    Raises
    ------
    ScenarioError
        For sizes that cannot be read, or an unknown operation or algorithm.
    LayoutError
        For fewer than two GPUs or more than there are, or an algorithm that cannot run the operation on them.
    """
    op = _known("op", ALIASES.get(op, op), OPS)
    if algorithm is not None:
        _known("algorithm", algorithm, tuple(ALGORITHMS))
    sizes = _sizes(smallest, largest)
    description = load_cluster(name)
    count = description.gpus if gpus is None else gpus
    if count < 2:
        raise LayoutError(f"gpus {count}: a collective needs at least two")
    if count > description.gpus:
        raise LayoutError(f"gpus {count} is more than the {description.gpus} of {description.name}")
    if op == "send_recv" and count != 2:
        raise LayoutError(f"gpus {count}: send_recv is between two; use gpus 2")
    cluster = build_cluster(description)
    require_connected(cluster)
    return _table(description.name, cluster, op, count, sizes, NCCL if algorithm is None else (algorithm,))


def _table(
    name: str, cluster: ClusterGraph, op: str, count: int, sizes: Sequence[Bytes], algorithms: tuple[str, ...]
) -> CollectiveTable:
    groups = Groups(cluster, np.arange(count)[None])
    plans = candidates(groups, op, algorithms)
    rows = []
    for size in sizes:
        plan = choose(plans, size)
        seconds = float(solo_time(plan, size)[0])
        algbw = size / seconds
        rows.append(SizeRow(size, plan.algorithm, plan.protocol, seconds, algbw, algbw * busbw_factor(op, count)))
    tuning = architecture_of(cluster.platform)
    return CollectiveTable(name, op, count, groups.shape.domains, tuning, rows)


def _known(field: str, name: str, known: tuple[str, ...]) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ScenarioError(f"{name!r} is not one of {', '.join(known)}{hint}", field=field)


def _sizes(smallest: str, largest: str) -> list[Bytes]:
    low, high = _bytes("min", smallest), _bytes("max", largest)
    if low > high:
        raise ScenarioError(f"{smallest} is more than max {largest}", field="min")
    sizes = [low]
    while sizes[-1] * 2 <= high:
        sizes.append(sizes[-1] * 2)
    if len(sizes) > MAX_SIZES:
        raise ScenarioError(f"{smallest} to {largest} are {len(sizes)} doublings; at most {MAX_SIZES}", field="min")
    return sizes


def _bytes(field: str, text: str) -> Bytes:
    try:
        size = parse_quantity(text, "bytes")
    except ValueError as error:
        raise ScenarioError(str(error), field=field) from None
    if size < 1:
        raise ScenarioError(f"{text} must be at least one byte", field=field)
    return size
