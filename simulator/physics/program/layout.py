"""Which groups run which collectives, and the traffic that they lay on the cluster's links.

Every axis has its groups of ranks; a pipeline rank's groups run the collectives that its bodies need, and pairs of
pipeline ranks their messages. Groups of one shape are a batch and choose one algorithm.

Shapes: W ranks, G groups of an axis with n members each. Pinned by tests/physics/program/test_layout.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from simulator.errors import LayoutError
from simulator.physics.cluster import ClusterGraph
from simulator.physics.collectives.algorithms import NCCL, Plan, candidates, choose, rate_cap
from simulator.physics.collectives.groups import Groups, Pattern, by_shape
from simulator.physics.collectives.laying import BoolArray, FloatArray, IntArray
from simulator.scenario.parallelism import Parallelism

GROUP_AXES = {"tp": "tp", "cp": "cp", "dp": "dp-cp", "ep": "ep", "etp": "etp", "edp": "edp"}
"""Which ranks a collective of each axis spans; gradients are reduced over dp and cp together."""

SHARD, REPLICA = "dp_shard", "dp_replica"
"""Axes of data parallelism in shard groups: `dp_shard8` are groups of 8 neighbours, `dp_replica8` go across them."""


def axis_groups(split: Parallelism, name: str) -> IntArray:
    """Groups of an axis, [G, n].

    Raises
    ------
    LayoutError
        The shard groups do not divide the data-parallel ranks.
    """
    for kind in (SHARD, REPLICA):
        if name.startswith(kind):
            size, ranks = int(name.removeprefix(kind)), split.groups(GROUP_AXES["dp"])
            if ranks.shape[1] % size:
                raise LayoutError(f"shard_group {size} does not divide the {ranks.shape[1]} ranks of dp x cp")
            parts = ranks.reshape(len(ranks), -1, size)
            return parts.reshape(-1, size) if kind == SHARD else parts.transpose(0, 2, 1).reshape(-1, parts.shape[1])
    return split.groups(GROUP_AXES[name])


PAIRS = ("pp", "embedding", "copies")
"""Axes whose groups are two pipeline ranks of one pipeline."""


class Need(NamedTuple):
    """A collective that some body uses: `stage` is the pipeline rank whose groups run it.

    For messages, the embedding tie and the two copies of DualPipe's stages the two ends are `stage` and `other`.
    """

    axis: str
    op: str
    size: float
    stage: int
    other: int = -1

    @property
    def site(self) -> tuple[int, int]:
        """Where it happens."""
        return self.stage, self.other


class Batch(NamedTuple):
    """Groups of one shape: their numbers in the axis, and themselves."""

    members: IntArray
    groups: Groups


@dataclass(frozen=True, eq=False)
class Axis:
    """All groups of an axis.

    Attributes
    ----------
    ranks
        Members of every group. [G, n]
    site
        Where each group is: an index into `sites`. [G]
    first
        Number of its first group among those of all axes.
    batch_of, place
        Batch of each group, and its number there. [G]
    """

    ranks: IntArray
    sites: tuple[tuple[int, int], ...]
    site: IntArray
    first: int
    batches: tuple[Batch, ...]
    batch_of: IntArray
    place: IntArray


@dataclass(eq=False)
class Use:
    """A pattern that some collectives use: at which sites, and the most that any of them moves for each group.

    `alone`: no other pattern of the same collective runs at once.
    """

    axis: str
    batch: int
    pattern: Pattern
    cap: FloatArray
    alone: bool = True
    sites: set[tuple[int, int]] = field(default_factory=set)


class Entries(NamedTuple):
    """Traffic in coordinate form: entry i says that `group[i]` takes `usage[i]` of `link[i]` by pattern `use[i]`."""

    use: IntArray
    group: IntArray
    link: IntArray
    usage: FloatArray
    cap: FloatArray


class Layout:
    """Groups, plans and traffic of a program.

    Parameters
    ----------
    gpu_of_rank
        Placement. [W]
    needs
        Every collective of the program.
    named
        Algorithm by axis, where the scenario names one.
    expert_loads
        Tokens that each member of an ep group receives, over their mean; None where routing is even. [ep]
    beside
        Axes whose collectives do not hold the compute stream of their members, or not alone.
    crossing
        Copies that a two-hop dispatch over so many scale-up domains sends across, over all copies that go there.
    dispatcher
        How the software stack sends tokens to experts, where the scenario does not say: `alltoall` or `deepep`.
    """

    def __init__(
        self,
        cluster: ClusterGraph,
        split: Parallelism,
        gpu_of_rank: IntArray,
        needs: Iterable[Need],
        named: Mapping[str, str] | None = None,
        expert_loads: tuple[float, ...] | None = None,
        beside: Collection[str] = (),
        crossing: Callable[[int], float] | None = None,
        dispatcher: str = "alltoall",
    ) -> None:
        self.crossing, self.dispatcher = crossing, dispatcher
        self.expert_loads, self.beside = expert_loads, beside
        self.cluster, self.split, self.gpu_of_rank, self.named = cluster, split, gpu_of_rank, named or {}
        self.pipelines: IntArray = split.groups("pp")
        self.pipeline_rank = np.empty(split.world_size, dtype=np.int64)
        self.pipeline_rank[self.pipelines] = np.arange(split.pp or 1)
        self.needs = tuple(dict.fromkeys(needs))
        self.axes: dict[str, Axis] = {}
        self.group_count = 0
        sites: dict[str, dict[tuple[int, int], None]] = {}
        for need in self.needs:
            sites.setdefault(need.axis, {})[need.site] = None
        for name, found in sites.items():
            self.axes[name] = self._axis(name, tuple(found))
            self.group_count += len(self.axes[name].ranks)
        self._groups_of: dict[str, IntArray] = {}
        self._plans: dict[tuple[str, int, str, float], Plan] = {}
        self._candidates: dict[tuple[str, int, str], list[Plan]] = {}

    def _axis(self, name: str, sites: tuple[tuple[int, int], ...]) -> Axis:
        if name in PAIRS:
            ranks = np.concatenate([self.pipelines[:, list(site)] for site in sites])
            site = np.repeat(np.arange(len(sites)), len(self.pipelines))
        else:
            ranks = axis_groups(self.split, name)
            stages = self.pipeline_rank[ranks[:, 0]]
            number = np.full(self.split.pp or 1, -1)
            number[[stage for stage, _ in sites]] = np.arange(len(sites))
            ranks, site = ranks[number[stages] >= 0], number[stages][number[stages] >= 0]
        batches = tuple(Batch(*found) for found in self._batches(name, self.gpu_of_rank[ranks]))
        batch_of, place = np.empty((2, len(ranks)), dtype=np.int64)
        for index, batch in enumerate(batches):
            batch_of[batch.members], place[batch.members] = index, np.arange(len(batch.members))
        return Axis(ranks, sites, site, self.group_count, batches, batch_of, place)

    def _batches(self, name: str, gpus: IntArray) -> list[tuple[IntArray, Groups]]:
        found = by_shape(self.cluster, gpus)
        if name == "ep":
            loads = None if self.expert_loads is None else np.array(self.expert_loads)
            share = {groups.shape.domains: 1.0 for _, groups in found}
            if self.crossing is not None:
                share = {domains: self.crossing(domains) if domains > 1 else 1.0 for domains in share}
            found = [
                (members, Groups(self.cluster, gpus[members], loads, share[groups.shape.domains]))
                for members, groups in found
            ]
        for _, groups in found:
            groups.kept = self.cluster.needed
        return found

    def group(self, need: Need, rank: int) -> int:
        """Group of a rank that runs a need."""
        axis = self.axes[need.axis]
        if need.axis in PAIRS:
            return axis.sites.index(need.site) * len(self.pipelines) + int(self._pipeline[rank])
        return int(self._group_of(need.axis)[rank])

    @cached_property
    def _pipeline(self) -> IntArray:
        number = np.empty(self.split.world_size, dtype=np.int64)
        number[self.pipelines] = np.arange(len(self.pipelines))[:, None]
        return number

    def _group_of(self, name: str) -> IntArray:
        if name not in self._groups_of:
            number = np.full(self.split.world_size, -1)
            number[self.axes[name].ranks] = np.arange(len(self.axes[name].ranks))[:, None]
            self._groups_of[name] = number
        return self._groups_of[name]

    def plan(self, need: Need, batch: int) -> Plan:
        """Algorithm of a need on the groups of a batch."""
        key = (need.axis, batch, need.op, need.size)
        if key not in self._plans:
            kind = key[:3]
            if kind not in self._candidates:
                groups = self.axes[need.axis].batches[batch].groups
                named = self.named.get("dp" if need.axis.startswith((SHARD, REPLICA)) else need.axis)
                names = self._usual(need, groups) if named is None else (named,)
                self._candidates[kind] = candidates(groups, need.op, names)
            self._plans[key] = choose(self._candidates[kind], need.size)
        return self._plans[key]

    def _usual(self, need: Need, groups: Groups) -> tuple[str, ...]:
        """Algorithms of an axis that the scenario does not name one for: NCCL's, or the stack's way to experts."""
        far = need.axis == "ep" and groups.shape.domains > 1 and groups.shape.regular
        return ("two_hop",) if far and self.dispatcher == "deepep" else NCCL

    @cached_property
    def uses(self) -> dict[int, tuple[int, Use]]:
        """Every pattern in use by its identity, numbered."""
        found: dict[int, tuple[int, Use]] = {}
        for need, batch, plan in self.planned():
            for phase in plan.phases:
                for pattern, _ in phase.traffic:
                    cap = rate_cap(plan, pattern, need.size)
                    _, use = found.setdefault(id(pattern), (len(found), Use(need.axis, batch, pattern, cap)))
                    use.cap = np.maximum(use.cap, cap)
                    use.alone &= len(phase.traffic) == 1
                    use.sites.add(need.site)
        return found

    def planned(self) -> Iterator[tuple[Need, int, Plan]]:
        """Every need on every batch that has groups at its site, with its plan."""
        for need in self.needs:
            axis = self.axes[need.axis]
            for batch in np.unique(axis.batch_of[axis.site == axis.sites.index(need.site)]).tolist():
                yield need, batch, self.plan(need, batch)

    @cached_property
    def entries(self) -> Entries:
        """All traffic of the groups that use each pattern."""
        parts = [self._entries_of(number, use) for number, use in self.uses.values()]
        if not parts:
            nothing, none = np.zeros(0, dtype=np.int64), np.zeros(0)
            return Entries(nothing, nothing, nothing, none, none)
        return Entries(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    @cached_property
    def serial(self) -> BoolArray:
        """Entries that hold the compute stream of the GPU whose port they cross, and have no company there [N]."""
        entries = self.entries
        rank_of_gpu = np.full(self.cluster.gpu_count, -1)
        rank_of_gpu[self.gpu_of_rank] = np.arange(len(self.gpu_of_rank))
        owner = self.cluster.port_owner[entries.link]
        rank = np.where(owner >= 0, rank_of_gpu[owner], -1)
        found = np.zeros(len(rank), dtype=bool)
        for name, axis in self.axes.items():
            if name in self.beside:
                continue
            number = entries.group - axis.first
            mine = np.flatnonzero((number >= 0) & (number < len(axis.ranks)) & (rank >= 0))
            found[mine] = self._contains(name, number[mine], rank[mine])
        alone = np.array([use.alone for _, use in self.uses.values()], dtype=bool)
        return np.asarray(found & alone[entries.use])

    def _contains(self, name: str, group: IntArray, rank: IntArray) -> BoolArray:
        """Whether each rank is a member of each group of an axis."""
        if name not in PAIRS:
            return np.asarray(self._group_of(name)[rank] == group)
        axis = self.axes[name]
        ends = np.array(axis.sites)[axis.site[group]]
        at_end = (ends == self.pipeline_rank[rank][:, None]).any(axis=1)
        return np.asarray(at_end & (self._pipeline[rank] == group % len(self.pipelines)))

    def _entries_of(self, number: int, use: Use) -> Entries:
        axis, pattern = self.axes[use.axis], use.pattern
        members = axis.batches[use.batch].members
        owner = np.repeat(np.arange(len(members)), np.diff(pattern.indptr))
        busy = np.array([site in use.sites for site in axis.sites])[axis.site[members]]
        chosen = busy[owner]
        owner, link, usage = owner[chosen], pattern.links[chosen], pattern.usage[chosen]
        return Entries(np.full(len(owner), number), axis.first + members[owner], link, usage, use.cap[owner])
