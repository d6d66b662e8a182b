"""The cluster graph: numbered GPUs and directed links, and the routes between GPUs.

Routes go up and down: inside a scale-up domain over its NVLink switch, else over the GPU's own NIC, leaf, spines,
cores and down again, over equal paths in equal parts or over one of them by hash (ECMP). Where the family says `pxn`,
traffic for another rail first crosses NVLink to the GPU of that rail in its own node (NCCL's PXN; NVIDIA, "Doubling
all2all Performance with NVIDIA Collective Communication Library 2.12"). A torus goes dimension by dimension; an
explicit graph takes shortest paths, through GPUs too.

`simulator/physics/cluster.py` makes it. Limits: latency is that of wires and switches, without software or queues.

Pinned by tests/physics/test_cluster.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from simulator.errors import TopologyError
from simulator.physics.ports import Ports
from simulator.physics.routes import BoolArray, Fabric, FloatArray, IntArray, Routes, pair_hashes
from simulator.physics.torus import Torus
from simulator.physics.wiring.blueprint import Blueprint

if TYPE_CHECKING:
    Graph = nx.Graph[str]


_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False, repr=False)
class ClusterGraph:
    """A cluster's graph with its GPUs and directed links numbered; G GPUs, L directed links.

    Links 2i and 2i + 1 are the two directions of one cable or trunk (see `simulator/physics/routes.py`: parallel links
    between equivalent switches, which always share equally).

    Attributes
    ----------
    graph
        The networkx graph; edit a copy of it.
    gpus_per_node
        GPUs of a node.
    node_of, domain, rail, leaf
        Node, scale-up domain, rail (number of its NIC in the node) and leaf switch of every GPU; rail and leaf are
        -1 without a NIC. [G]
    capacity, latency
        Bytes/s and seconds of every directed link; the two directions differ where another job's traffic does. [L]
    in_network_reduction
        The scale-up switches can sum (NVLink SHARP).
    pxn
        Traffic for another rail crosses NVLink first.
    speed
        Compute speed of every GPU, 1.0 where it is healthy. [G]
    platform
        Name of the accelerator.
    blueprint
        The graph as arrays.
    """

    graph: Graph
    gpus_per_node: int
    node_of: IntArray
    domain: IntArray
    rail: IntArray
    leaf: IntArray
    capacity: FloatArray
    latency: FloatArray
    in_network_reduction: bool
    pxn: bool
    speed: FloatArray
    platform: str
    blueprint: Blueprint
    _ports: Ports
    _access: IntArray
    _fabric: Fabric
    _torus: Torus | None
    _labels: list[str]
    _tail: IntArray
    _link: IntArray

    @property
    def gpu_count(self) -> int:
        """GPUs in all."""
        return len(self.node_of)

    @cached_property
    def port_owner(self) -> IntArray:
        """GPU that a link is the own port of: to its NVLink switch, to its NIC, or of a NIC that it does not share [L].

        -1 for all other links.
        """
        owner = np.full(len(self.capacity), -1, dtype=np.int64)
        for port in (self._ports.scale_up, self._ports.host, self._ports.nic):
            wired = np.flatnonzero(port >= 0)
            own, first, count = np.unique(port[wired], return_index=True, return_counts=True)
            alone = own[count == 1]
            owner[alone] = owner[alone ^ 1] = wired[first[count == 1]]
        return owner

    @cached_property
    def needed(self) -> BoolArray:
        """Links that no other one implies: not the way to a NIC that one GPU has for itself, nor ample trunks [L]."""
        needed = np.ones(len(self.capacity), dtype=bool)
        if self.nonblocking:
            above = np.flatnonzero(~np.isin(self._fabric.tail, self._cards))
            needed[self._start + above[~np.isin(self._fabric.tail[above ^ 1], self._cards)]] = False
        wired = np.flatnonzero((self._ports.host >= 0) & (self._ports.nic >= 0))
        own, first, count = np.unique(self._ports.nic[wired], return_index=True, return_counts=True)
        host = self._ports.host[wired][first]
        alone = (count == 1) & (self.capacity[host] >= self.capacity[own])
        alone &= self.capacity[host ^ 1] >= self.capacity[own ^ 1]
        needed[host[alone]] = needed[host[alone] ^ 1] = False
        return needed

    @property
    def transit(self) -> bool:
        """Whether traffic may cross switches that other GPUs hang on."""
        facts = self.blueprint.facts
        return bool(facts["routing"] != "up-down" or facts.get("transit", False) or facts.get("access") == "nic")

    @cached_property
    def scale_up_links(self) -> BoolArray:
        """Whether a directed link joins GPUs of one scale-up domain [L]."""
        found = np.zeros(len(self.capacity), dtype=bool)
        nvlink = np.array([sort.kind == "nvlink" for sort in self.blueprint.sorts])
        own = self._link[nvlink[self.blueprint.sort]]
        found[own] = found[own ^ 1] = True
        return found

    @cached_property
    def nonblocking(self) -> bool:
        """Whether no link between switches can hold up what NICs let in.

        So it is where traffic is sprayed up and down, no link is missing, links of a tier are alike, and every switch
        has as much bandwidth up as down (the topmost have nothing above).
        """
        facts = self.blueprint.facts
        if facts["routing"] != "up-down" or facts.get("transit", False):
            return False
        if "ecmp_seed" in facts or facts.get("irregular", False):
            return False
        if not self._tiers_alike():
            return False
        tail, head = self._fabric.tail, self._fabric.tail.reshape(-1, 2)[:, ::-1].reshape(-1)
        level = np.full(len(self._fabric.labels), -1)
        level[self._access[self._access >= 0]] = 0
        for height in range(len(level)):
            above = head[level[tail] == height]
            if not len(above := above[level[above] < 0]):
                break
            level[above] = height + 1
        up = np.flatnonzero(level[tail] < level[head])
        trunks = self.capacity[self._start :]
        for upward in (True, False):
            capacity = trunks[up if upward else up ^ 1]
            below = np.zeros(len(level)) + np.bincount(head[up], weights=capacity, minlength=len(level))
            if not len(self._cards):
                ports, leaves, _ = self.leaf_links(upward=upward)
                below += np.bincount(leaves, weights=self.capacity[ports], minlength=len(level))
            above_it = np.bincount(tail[up], weights=capacity, minlength=len(level))
            if ((above_it > 0) & (above_it * (1 + 1e-9) < below)).any():
                return False
        return True

    def _tiers_alike(self) -> bool:
        """Whether all links of a kind between switches are equally fast."""
        fastest: dict[str, float] = {}
        used = np.unique(self.blueprint.sort).tolist()
        sorts = [self.blueprint.sorts[s] for s in used if self.blueprint.sorts[s].kind not in ("nvlink", "pcie", "nic")]
        return all(fastest.setdefault(sort.kind, sort.capacity) == sort.capacity for sort in sorts)

    @property
    def _start(self) -> int:
        """First directed link of the fabric."""
        return len(self.capacity) - len(self._fabric.capacity)

    @cached_property
    def _cards(self) -> IntArray:
        """Cells of the NICs that are part of the fabric, because they have several ports."""
        return np.unique(self._access[self._access >= 0]) if self.blueprint.facts.get("access") == "nic" else _NOTHING

    def link_name(self, link: int) -> str:
        """Name a directed link, such as ``node0.nic1 -> leaf0.1``."""
        return f"{self._labels[self._tail[link]]} -> {self._labels[self._tail[link ^ 1]]}"

    def link_between(self, tail: str, head: str) -> int:
        """Find the directed link (or trunk) from a vertex of the graph to its neighbour.

        Raises
        ------
        TopologyError
            When the graph has no such link.
        """
        if not self.graph.has_edge(tail, head):
            raise TopologyError(f"no link between {tail!r} and {head!r}")
        a, b = self._numbers[tail], self._numbers[head]
        keys, order = self._edges
        edge = order[np.searchsorted(keys, min(a, b) * len(self._numbers) + max(a, b))]
        return int(self._link[edge]) ^ int(self.blueprint.ends[edge, 0] != a)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.blueprint.names)}

    @cached_property
    def _edges(self) -> tuple[IntArray, IntArray]:
        """Links by their ends: sorted keys, and the link of each."""
        ends = self.blueprint.ends
        key = ends.min(axis=1) * len(self.blueprint.names) + ends.max(axis=1)
        order = np.argsort(key)
        return key[order], order

    def leaf_links(self, *, upward: bool) -> tuple[IntArray, IntArray, IntArray]:
        """Links between NICs and leaves, and trunks between leaves and what is above, in one direction.

        Returns
        -------
        ports, leaf_of_port, leaf_of_trunk
            The NIC links and the leaf of each [P]; for every directed link the leaf that it leaves (`upward`) or
            enters, -1 where it is no trunk of a leaf. [L]
        """
        wired = np.flatnonzero((self._ports.nic >= 0) & (self.leaf >= 0))
        start = self._start
        trunks = np.arange(len(self._fabric.capacity))
        end, far = self._fabric.tail[trunks], self._fabric.tail[trunks ^ 1]
        leaf = np.isin(end, self.leaf if len(self._cards) else self.leaf[wired])
        down = leaf & np.isin(far, self._cards)
        if len(self._cards):
            ports, leaf_of_port = start + (np.flatnonzero(down) ^ 1), end[down]
        else:
            ports, first = np.unique(self._ports.nic[wired], return_index=True)
            leaf_of_port = self.leaf[wired][first]
        leaf_of_trunk = np.full(len(self.capacity), -1, dtype=np.int64)
        leaf_of_trunk[start + (trunks if upward else trunks ^ 1)] = np.where(leaf & ~down, end, -1)
        return ports if upward else ports ^ 1, leaf_of_port, leaf_of_trunk

    def routes(self, src: IntArray, dst: IntArray) -> Routes:
        """Find the directed links between pairs of GPUs [P].

        Raises
        ------
        TopologyError
            When there is no route between two GPUs.
        ValueError
            When a pair is one GPU twice, or a number is not a GPU.
        """
        src, dst = np.asarray(src, dtype=np.int64), np.asarray(dst, dtype=np.int64)
        self._check_pairs(src, dst)
        pair, link, share = self._find(src, dst)
        self._check_found(src, dst, pair)
        latency = np.bincount(pair, weights=share * self.latency[link], minlength=len(src))
        return Routes(pair, link, share, latency.astype(np.float64))

    def reaches(self, src: IntArray, dst: IntArray) -> BoolArray:
        """Say of pairs of different GPUs [P] whether there is a route."""
        found = np.zeros(len(src), dtype=bool)
        found[self._find(src, dst)[0]] = True
        return found

    def _find(self, src: IntArray, dst: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
        rows: list[IntArray] = []
        links: list[IntArray] = []
        here = np.flatnonzero((self.domain[src] == self.domain[dst]) & (self._ports.scale_up[src] >= 0))
        _add_hop(rows, links, here, self._ports.scale_up[src[here]])
        _add_hop(rows, links, here, self._ports.scale_up[dst[here]] ^ 1)
        across = np.setdiff1d(np.arange(len(src)), here, assume_unique=True)
        via = self.forwarders(src[across], dst[across])
        moved = via != src[across]
        _add_hop(rows, links, across[moved], self._ports.scale_up[src[across[moved]]])
        _add_hop(rows, links, across[moved], self._ports.scale_up[via[moved]] ^ 1)
        landing = self._landings(via, dst[across])
        moved = landing != dst[across]
        _add_hop(rows, links, across[moved], self._ports.scale_up[landing[moved]])
        _add_hop(rows, links, across[moved], self._ports.scale_up[dst[across[moved]]] ^ 1)
        fabric_row, fabric_link, fabric_share = self._climb(rows, links, across, (via, landing), (src, dst))
        whole = np.concatenate(rows)
        share = np.concatenate([np.ones(len(whole)), fabric_share])
        return np.concatenate([whole, fabric_row]), np.concatenate([*links, fabric_link]), share

    def _climb(
        self,
        rows: list[IntArray],
        links: list[IntArray],
        across: IntArray,
        doors: tuple[IntArray, IntArray],
        pairs: tuple[IntArray, IntArray],
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Add NICs on both sides of pairs that leave their domain, and find their paths between access switches."""
        via, dst = doors
        up, down = self._access[via], self._access[dst]
        reachable = np.flatnonzero((up >= 0) & (down >= 0))
        flows = (side[across[reachable]] for side in pairs)
        row, trunk, share = self._expand(up[reachable], down[reachable], *flows)
        arrives = np.zeros(len(across), dtype=bool)
        arrives[reachable[up[reachable] == down[reachable]]] = True
        arrives[reachable[row]] = True
        for port in (self._ports.host, self._ports.nic):
            wired = arrives & (port[via] >= 0) & (port[dst] >= 0)  # elsewhere GPUs or NICs are access vertices
            _add_hop(rows, links, across[wired], port[via[wired]])
            _add_hop(rows, links, across[wired], port[dst[wired]] ^ 1)
        start = self._start
        return across[reachable[row]], trunk + start, share

    def _expand(
        self, up: IntArray, down: IntArray, src: IntArray, dst: IntArray
    ) -> tuple[IntArray, IntArray, FloatArray]:
        if self._torus is not None:
            return self._torus.expand(up, down)
        seed = self.blueprint.facts.get("ecmp_seed")
        return self._fabric.expand(up, down, None if seed is None else pair_hashes(seed, src, dst))

    def forwarders(self, src: IntArray, dst: IntArray) -> IntArray:
        """GPU through whose NIC each pair leaves: the sender, or under PXN its neighbour on the receiver's rail. [P].

        Of several neighbours on that rail, the one with the receiver's number in the node, else the first.
        """
        if not self.pxn:
            return src
        neighbour = src - src % self.gpus_per_node + dst % self.gpus_per_node
        neighbour = np.minimum(neighbour, self.gpu_count - 1)
        other = self.rail[neighbour] != self.rail[dst]
        if other.any():
            found = self._on_rail[self.node_of[src], self.rail[dst]]
            neighbour = np.where(other & (found >= 0), found, neighbour)
        fits = (
            (self.rail[src] != self.rail[dst])
            & (self.rail[neighbour] == self.rail[dst])
            & (self._access[neighbour] >= 0)
            & (self.domain[neighbour] == self.domain[src])
        )
        return np.where(fits, neighbour, src)

    def _landings(self, via: IntArray, dst: IntArray) -> IntArray:
        """GPU through whose NIC each pair arrives: the receiver, or under PXN its neighbour on the sender's rail [P].

        The neighbour only where the rails do not meet and the sender's node has lost its NIC on the receiver's rail.
        """
        landing = dst.copy()
        if not self.pxn:
            return landing
        apart = (self.rail[via] != self.rail[dst]) & (self._access[via] >= 0) & (self._access[dst] >= 0)
        lost = np.flatnonzero(apart)
        lost = lost[~self._fabric.reaches(self._access[via[lost]], self._access[dst[lost]])]
        found = self._on_rail[self.node_of[dst[lost]], self.rail[via[lost]]]
        fits = (found >= 0) & (self.domain[found] == self.domain[dst[lost]])
        landing[lost[fits]] = found[fits]
        return landing

    @cached_property
    def _on_rail(self) -> IntArray:
        """First GPU of every node on every rail, else -1. [node, rail + 1]: the last column is no rail."""
        table = np.full((int(self.node_of.max()) + 1, int(self.rail.max(initial=0)) + 2), -1, dtype=np.int64)
        backward = np.arange(self.gpu_count)[::-1]
        table[self.node_of[backward], self.rail[backward]] = backward
        table[:, -1] = -1
        return table

    def _check_pairs(self, src: IntArray, dst: IntArray) -> None:
        if src.shape != dst.shape or src.ndim != 1:
            raise ValueError(f"src and dst must be flat and equally long; they have shapes {src.shape} and {dst.shape}")
        for gpu in (src, dst):
            wrong = (gpu < 0) | (gpu >= self.gpu_count)
            if wrong.any():
                raise ValueError(f"GPU {gpu[wrong][0]} is not one of 0 to {self.gpu_count - 1}")
        if (src == dst).any():
            raise ValueError(f"GPU {src[src == dst][0]} sends to itself; a route joins two different GPUs")

    def _check_found(self, src: IntArray, dst: IntArray, pair: IntArray) -> None:
        missing = np.flatnonzero(np.bincount(pair, minlength=len(src)) == 0)
        if len(missing):
            a, b = src[missing[0]], dst[missing[0]]
            more = f" (nor between {len(missing) - 1} other pairs)" if len(missing) > 1 else ""
            raise TopologyError(f"no route from {self.gpu_name(a)} to {self.gpu_name(b)}{more}")

    def gpu_name(self, gpu: int) -> str:
        """Name a GPU with its node."""
        return f"gpu{gpu} (node {self.node_of[gpu]})"


def _add_hop(rows: list[IntArray], links: list[IntArray], row: IntArray, link: IntArray) -> None:
    rows.append(row)
    links.append(link)
