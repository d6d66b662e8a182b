"""How long checkpoints take: who writes what, and what all writers at once get of the links and of the storage.

Every rank writes its part of what its pipeline stage holds: what ZeRO shards is written by the rank that owns it, and
what replicas hold alike they write in equal parts (Megatron-Core's fully parallel save). The storage hangs on the
topmost tier of switches: a NIC's bytes cross its ports, the links that its leaf has up, those that its pod has up, and
the storage's own bandwidth, and all writers share them max-min (`physics.sharing`) until the last has finished. NICs
that cannot be told apart are one (`physics.symmetry`), which changes nothing.

Loading reads every byte once; what replicas hold alike, one of them reads and passes on (MegaScale, arXiv 2402.15627,
section 4.4). Or every rank reads all that it needs.

Limits: storage clients reach the line rate; other traffic of the step does not slow them; outside tiers of switches
only the NICs and the storage count; without NICs only the storage.

Shapes: W ranks, F flows, L links. Pinned by tests/physics/campaign/test_saving.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ScenarioError
from simulator.physics.collectives.groups import FloatArray, IntArray
from simulator.physics.graph import ClusterGraph
from simulator.physics.memory.states import SHARDED_FROM, weight_bytes
from simulator.physics.ports import components
from simulator.physics.program.build import rank_of, schedule_table
from simulator.physics.program.placement import place
from simulator.physics.sharing import max_min_rates
from simulator.physics.stages import LocalParameters, cut_by, stage_parameters
from simulator.physics.symmetry import coarsest_partition, near
from simulator.scenario.scenario import Scenario
from simulator.scenario.units import Bytes, BytesPerSecond, Seconds

_LANES = 16
# Bytes/s of a lane: 8, 16, 32 GT/s with 128b/130b coding (PCI-SIG, PCI Express Base Specification 3.0, 4.0, 5.0),
# 64 GT/s with FLITs (6.0).
_PCIE = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.56e9}
_COPY_EFFICIENCY = 0.85
"""Assumption: what a copy from pinned memory reaches of it."""
_GENERATION = {"v100": 3, "a100": 4, "a800": 4, "tpu": 3, "b300": 6}
"""PCI Express of an accelerator, by the beginning of its name (vendors' datasheets); the others have the 5th.
Assumption: TPU hosts have the 3rd."""
_C2C = {"gb200": 225e9, "gh200": 450e9}
"""NVLink-C2C to the CPU per direction and GPU: 900 GB/s both ways a superchip, of two GPUs in a GB200 (datasheets)."""


def host_bandwidth(platform: str) -> BytesPerSecond:
    """Bytes/s that one GPU copies to the memory of its host."""
    name = platform.lower()
    for start, rate in _C2C.items():
        if name.startswith(start):
            return rate * _COPY_EFFICIENCY
    generation = next((gen for start, gen in _GENERATION.items() if name.startswith(start)), 5)
    return _LANES * _PCIE[generation] * _COPY_EFFICIENCY


@dataclass(frozen=True, slots=True, eq=False)
class RankState:
    """What every rank has to do with a checkpoint; bytes.

    Attributes
    ----------
    own
        What it writes, and reads of what nobody else reads. [W]
    shared
        What it gets from replicas that have read it: its weights, where they are not sharded. [W]
    needed
        All that it needs, whoever reads it: `own`, and of `shared` what it has not itself written. [W]
    """

    own: FloatArray
    shared: FloatArray
    needed: FloatArray


def rank_state(scenario: Scenario, bytes_per_parameter: float) -> RankState:
    """Part of the checkpoint that every rank writes: they add up to `bytes_per_parameter` of all parameters."""
    rank, split = rank_of(scenario), scenario.parallelism
    stages = cut_by(scenario.model, scenario.training.schedule, split.pp or 1)
    held = []
    for actions in schedule_table(scenario):
        parts = [stage_parameters(rank, stages[stage]) for stage in sorted({action.stage for action in actions})]
        held.append(LocalParameters(sum(part.dense for part in parts), sum(part.expert for part in parts)))
    dense, expert = (np.array([part[which] for part in held], dtype=np.float64) for which in (0, 1))
    stage_of = split.index("pp")
    own = (dense / split.replicas + expert / split.edp)[stage_of]
    # Norms and biases that every rank of a tp group holds are counted once in the model.
    own *= bytes_per_parameter * scenario.model.total_parameters / own.sum()
    stage = scenario.training.optimizer.zero_stage
    alike = 0.0 if stage >= SHARDED_FROM["optimizer"] else bytes_per_parameter
    if SHARDED_FROM["optimizer"] <= stage < SHARDED_FROM["weights"]:
        alike = min(weight_bytes(rank), bytes_per_parameter)
    dense_alike = alike * dense * (split.replicas > 1)
    others = alike * (dense * (1 - 1 / split.replicas) + expert * (1 - 1 / split.edp))
    return RankState(own, (dense_alike + alike * expert * (split.edp > 1))[stage_of], own + others[stage_of])


class Flows(NamedTuple):
    """Bytes that are moved at once over links: compressed rows as in `max_min_rates`.

    `usage` bytes of flow f cross link `links` for each byte of it. [F], [F + 1], [nnz], [nnz], [L]
    """

    size: FloatArray
    indptr: IntArray
    links: IntArray
    usage: FloatArray
    capacity: FloatArray


def drain_time(flows: Flows, *, folded: bool = True) -> Seconds:
    """Seconds until the last byte has arrived, where all flows start at once and share links max-min.

    Parameters
    ----------
    folded
        Whether flows that cannot be told apart are one; the result is the same.
    """
    busy = flows.size > 0
    if not busy.any():
        return 0.0
    if not busy.all():
        owner = np.repeat(np.arange(len(busy)), np.diff(flows.indptr))
        lengths = np.diff(flows.indptr)[busy]
        kept = busy[owner]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flows = Flows(flows.size[busy], indptr, flows.links[kept], flows.usage[kept], flows.capacity)
    if folded:
        flows = _fold(flows)
    left, clock = flows.size.astype(np.float64), 0.0
    running = np.arange(len(left))
    while len(running):
        rate = _rates(flows, running)
        times = left[running] / rate
        step = float(times.min())
        clock += step
        left[running] -= rate * step
        running = running[times > step * (1 + 1e-9)]
    return clock


def _rates(flows: Flows, running: IntArray) -> FloatArray:
    starts, ends = flows.indptr[running], flows.indptr[running + 1]
    entry = np.concatenate([np.arange(a, b) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)])
    indptr = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    entry = entry.astype(np.int64)
    weight = np.ones(len(running))
    return max_min_rates(flows.capacity, indptr, flows.links[entry], flows.usage[entry], weight)


def _fold(flows: Flows) -> Flows:
    """One flow for each class of equal ones; a link of each class carries all its members' share."""
    count = len(flows.size)
    owner = np.repeat(np.arange(count), np.diff(flows.indptr))
    kinds = [np.unique(near(part), return_inverse=True)[1] for part in (flows.size, flows.capacity)]
    colour = np.concatenate([kinds[0], kinds[1] + int(kinds[0].max()) + 1])
    found = coarsest_partition(colour, (owner, count + flows.links), near(flows.usage))
    flow_class = np.unique(found[:count], return_inverse=True)[1]
    link_class = np.unique(found[count:], return_inverse=True)[1]
    first_flow = np.unique(flow_class, return_index=True)[1]
    first_link = np.unique(link_class, return_index=True)[1]
    shown = np.zeros(len(link_class), dtype=bool)
    shown[first_link] = True
    here = shown[flows.links]
    width = len(first_link)
    key, which = np.unique(flow_class[owner[here]] * width + link_class[flows.links[here]], return_inverse=True)
    usage = np.bincount(which, weights=flows.usage[here], minlength=len(key)).astype(np.float64)
    row = key // width
    indptr = np.searchsorted(row, np.arange(len(first_flow) + 1)).astype(np.int64)
    return Flows(flows.size[first_flow], indptr, key % width, usage, flows.capacity[first_link])


@dataclass(frozen=True, slots=True, eq=False)
class Ways:
    """Ways between a job's NICs and the storage; flows are the job's NICs, then GPUs that have none.

    Attributes
    ----------
    flow_of_rank
        Flow that a rank's bytes are part of. [W]
    owner, links, usage
        Entries: flow, link, and share of the flow's bytes that crosses it. [nnz]
    capacity
        Bytes/s of every link but the storage's. [L]
    nic
        Bytes/s of the flow's NIC to its switches, infinite without one. [F]
    """

    flow_of_rank: IntArray
    owner: IntArray
    links: IntArray
    usage: FloatArray
    capacity: FloatArray
    nic: FloatArray

    def flows(self, size_of_rank: FloatArray, storage: BytesPerSecond) -> Flows:
        """All ranks' bytes on their way from or to a storage of some bandwidth."""
        count = len(self.nic)
        size = np.bincount(self.flow_of_rank, weights=size_of_rank, minlength=count).astype(np.float64)
        owner = np.concatenate([self.owner, np.arange(count)])
        links = np.concatenate([self.links, np.full(count, len(self.capacity))])
        usage = np.concatenate([self.usage, np.ones(count)])
        order = np.argsort(owner, kind="stable")
        indptr = np.searchsorted(owner[order], np.arange(count + 1)).astype(np.int64)
        return Flows(size, indptr, links[order], usage[order], np.concatenate([self.capacity, [storage]]))


def storage_ways(cluster: ClusterGraph, gpu_of_rank: IntArray) -> Ways:
    """Find the links between the ranks and a storage on the topmost tier."""
    blueprint = cluster.blueprint
    kind = np.array(blueprint.kinds)
    node, rail = cluster.node_of[gpu_of_rank], cluster.rail[gpu_of_rank]
    wired = rail >= 0
    card = np.where(wired, node * 4096 + rail, -1 - gpu_of_rank)  # a GPU without a NIC is a flow of its own
    flow_key, flow_of_rank = np.unique(card, return_inverse=True)
    both = np.concatenate([blueprint.ends, blueprint.ends[:, ::-1]])
    speed = np.tile(blueprint.capacity(), 2)
    upward = (kind[both[:, 0]] == "nic") & ~np.isin(kind[both[:, 1]], ("gpu", "nvswitch"))
    ports, speed_of_port = both[upward], speed[upward]
    columns = blueprint.columns
    own = columns["node"][ports[:, 0]] * 4096 + columns["rail"][ports[:, 0]]
    place_of = np.searchsorted(flow_key, own)
    found = (place_of < len(flow_key)) & (flow_key[np.minimum(place_of, len(flow_key) - 1)] == own)
    ports, speed_of_port, flow = ports[found], speed_of_port[found], place_of[found]
    total = np.bincount(flow, weights=speed_of_port, minlength=len(flow_key))
    nic = np.where(total > 0, total, np.inf)
    share = speed_of_port / total[flow]
    owner, links, usage, capacity = [flow], [np.arange(len(flow))], [share], [speed_of_port]
    if blueprint.facts["routing"] == "up-down":
        start = len(flow)
        for above, width in _tiers_above(kind, both, speed):
            crossing = (above[ports[:, 1]] >= 0) & np.isfinite(width[above[ports[:, 1]]])
            owner.append(flow[crossing])
            links.append(start + above[ports[crossing, 1]])
            usage.append(share[crossing])
            capacity.append(width)
            start += len(width)
    return Ways(
        flow_of_rank, np.concatenate(owner), np.concatenate(links), np.concatenate(usage), np.concatenate(capacity), nic
    )


def _tiers_above(kind: NDArray[np.str_], both: IntArray, speed: FloatArray) -> list[tuple[IntArray, FloatArray]]:
    """Of leaves, and of pods of them where there are cores: the number of each switch, and bytes/s up from it.

    Infinite where nothing is above: the storage hangs on that.
    """
    switch = ~np.isin(kind, ("gpu", "nic", "nvswitch"))
    leaf, top = kind == "leaf", kind == "core"
    if not leaf.any():
        return []
    found = []
    number = np.where(leaf, np.cumsum(leaf) - 1, -1)
    up = leaf[both[:, 0]] & switch[both[:, 1]]
    found.append((number, _width(number[both[up, 0]], speed[up], int(leaf.sum()))))
    if top.any():
        inside = switch & ~top
        within = inside[both[:, 0]] & inside[both[:, 1]]
        label = components(len(kind), both[within])
        pods, pod = np.unique(label[inside], return_inverse=True)
        number = np.full(len(kind), -1, dtype=np.int64)
        number[inside] = pod
        up = inside[both[:, 0]] & top[both[:, 1]]
        found.append((number, _width(number[both[up, 0]], speed[up], len(pods))))
    return found


def _width(number: IntArray, speed: FloatArray, count: int) -> FloatArray:
    width = np.bincount(number, weights=speed, minlength=count).astype(np.float64)
    return np.where(width > 0, width, np.inf)


class Checkpoints:
    """Times of a job's checkpoints, each found when it is first asked for.

    Parameters
    ----------
    scenario, cluster
        The job and the graph of its cluster.
    bytes_per_parameter
        Of the saved state.
    """

    def __init__(self, scenario: Scenario, cluster: ClusterGraph, bytes_per_parameter: float) -> None:
        self.scenario, self.cluster = scenario, cluster
        self.gpu_of_rank = place(scenario, cluster)
        self.state = rank_state(scenario, bytes_per_parameter)
        self._ways: Ways | None = None

    @property
    def ways(self) -> Ways:
        """To the storage and back."""
        if self._ways is None:
            self._ways = storage_ways(self.cluster, self.gpu_of_rank)
        return self._ways

    @property
    def size(self) -> Bytes:
        """Of the whole checkpoint."""
        return float(self.state.own.sum())

    def write(self, bandwidth: BytesPerSecond) -> Seconds:
        """Write it once to a storage of some bandwidth."""
        return drain_time(self.ways.flows(self.state.own, bandwidth))

    def read(self, bandwidth: BytesPerSecond, readers: Literal["once", "every"] = "once") -> Seconds:
        """Read it: every byte once and pass it on to the replicas, or every rank for itself."""
        if readers == "every":
            return drain_time(self.ways.flows(self.state.needed, bandwidth))
        passed_on = np.bincount(self.ways.flow_of_rank, weights=self.state.shared, minlength=len(self.ways.nic))
        return drain_time(self.ways.flows(self.state.own, bandwidth)) + float((passed_on / self.ways.nic).max())

    def from_replicas(self) -> Seconds:
        """New machines read all that they need from replicas of theirs, at the rate of their NICs."""
        needed = np.bincount(self.ways.flow_of_rank, weights=self.state.needed, minlength=len(self.ways.nic))
        return float((needed / self.ways.nic).max())

    def to_host(self, bandwidth: BytesPerSecond | None = None) -> Seconds:
        """Copy it to the memory of the hosts, or back; `bandwidth` is that of a node, its GPUs' links if left out."""
        if bandwidth is None:
            return float(self.state.own.max()) / host_bandwidth(self.cluster.platform)
        return self._node_bytes() / bandwidth

    def to_peer(self, copies: int = 1, bandwidth: BytesPerSecond | None = None) -> Seconds:
        """Send copies to the next nodes of the job, all at once; `bandwidth` is that of a node, its NICs' if left out.

        Raises
        ------
        ScenarioError
            A job of one node has no peer.
        """
        nodes = np.unique(self.cluster.node_of[self.gpu_of_rank])
        if len(nodes) <= copies:
            raise ScenarioError(
                f"{copies} copies with peers need a job of {copies + 1} nodes, this one has {len(nodes)}: use fewer",
                field="reliability.checkpoint.tiers",
            )
        if bandwidth is not None:
            return copies * self._node_bytes() / bandwidth
        return sum(drain_time(self._to_next(nodes, turn)) for turn in range(1, copies + 1))

    def _node_bytes(self) -> Bytes:
        return float(np.bincount(self.cluster.node_of[self.gpu_of_rank], weights=self.state.own).max())

    def _to_next(self, nodes: IntArray, turn: int) -> Flows:
        """Every GPU sends to its counterpart in the turn-th next node of the job."""
        cluster, gpus = self.cluster, self.gpu_of_rank
        place_of = np.searchsorted(nodes, cluster.node_of[gpus])
        target = nodes[(place_of + turn) % len(nodes)] * cluster.gpus_per_node + gpus % cluster.gpus_per_node
        found = cluster.routes(gpus, np.minimum(target, cluster.gpu_count - 1))
        order = np.argsort(found.pair, kind="stable")
        indptr = np.searchsorted(found.pair[order], np.arange(len(gpus) + 1)).astype(np.int64)
        return Flows(self.state.own, indptr, found.link[order], found.share[order], cluster.capacity)
