"""Paths through switches: equal shares over all shortest paths, for many pairs at once.

Idea
----
Ideal spraying sends an equal share of a transfer over every shortest path. The share of a link then follows from counts
of paths: with distances and paths counted from a, link u → v on the way to b carries the part paths(u) / paths(v) of
what passes v (Brandes, "A faster algorithm for betweenness centrality", 2001, Lemma 3, counts them).

Two reductions make it quick, both exact under ideal spraying:

- *Trunks.* Switches are coloured until the colouring is the coarsest equitable partition in which every access switch
  (one that GPUs hang on) stands alone. Counts of paths from an access switch are the same for all switches of a colour,
  so links between the same two colours always carry equal shares: they are one link here, a trunk, with their capacity
  added up. The twenty spines of a healthy Clos become one; a degraded link or a missing spine splits off just what it
  touches.
- *Templates.* Access switches with the same neighbours are interchangeable, so the paths of a pair are worked out once
  for each pair of such groups and copied.

ECMP by hash instead takes one path of each pair: number h mod n of the n shortest ones, h a hash of the pair and a
seed. Every shortest path is equally likely, so ECMP averaged over seeds is spraying. It needs the links unmerged
(`merge=False`).

Where vertices have regions (the groups of a dragonfly), paths keep to the regions of their ends if they can.

Limits: hop counts decide, not bandwidth: a degraded link keeps its share. Access switches do not carry transit traffic
unless `transit` says so (up-down routing has no valleys).

Shapes: V vertices, E undirected links, T trunks (2T directed), P pairs.

Pinned by tests/physics/test_cluster.py: networkx's list of all shortest paths as an oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from simulator.physics.symmetry import coarsest_partition, mix

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_FROM_SOURCE, _TO_TARGET, _FIXED = 0, 1, 2
# a neighbouring cell, the directed trunk to it, and how many of the trunk's links one member has
_Neighbour: TypeAlias = tuple[int, int, int]


class Routes(NamedTuple):
    """Directed links on the way of P pairs, in coordinate form; entries come in no particular order.

    Attributes
    ----------
    pair, link, share
        Entry i says: `share[i]` of the traffic of pair `pair[i]` crosses directed link `link[i]`. Shares of a pair add
        up to its number of hops.
    latency
        Seconds on the wire from end to end, averaged over the paths of a pair. [P]
    """

    pair: IntArray
    link: IntArray
    share: FloatArray
    latency: FloatArray


class _Step(NamedTuple):
    """A link of a template: a slot of the source's or target's own links, or a fixed link."""

    place: int
    link: int
    share: float


class Links(NamedTuple):
    """Undirected, full-duplex links: both vertices [E, 2], bytes/s per direction [E], seconds [E], quality [E].

    Links of one quality have equal capacity and latency.
    """

    ends: IntArray
    capacity: FloatArray
    latency: FloatArray
    quality: IntArray


class Fabric:
    """Switches and the links between them, reduced to cells and trunks; finds and remembers paths.

    Parameters
    ----------
    names
        Name of every vertex. [V]
    access
        Where paths may start and end. [V]
    links
        Links between the vertices.
    merge
        Merge links that always share equally into trunks; False keeps every link for itself.
    transit
        Whether paths may lead through access vertices.
    region
        Region of every vertex, where there are any. [V]

    Attributes
    ----------
    cell
        Cell of every vertex; access vertices are cells 0, 1, ... in order. [V]
    labels
        Name of every cell: of its only vertex, or of its first and last.
    tail, capacity, latency
        Of every directed trunk: the cell that it leaves, bytes/s, seconds. Trunk t ^ 1 is the way back. [2T]
    trunk
        Directed trunk of every link, in the direction `links.ends[:, 0]` to `links.ends[:, 1]`. [E]
    """

    def __init__(
        self,
        names: list[str],
        access: NDArray[np.bool_],
        links: Links,
        *,
        merge: bool,
        transit: bool,
        region: IntArray | None = None,
    ) -> None:
        ends, capacity, latency, quality = links
        self._access_count = int(access.sum())
        self._transit = transit
        self.cell = _merged_cells(access, ends, quality) if merge else _single_cells(access)
        self._region: list[int] | None = None
        cells = int(self.cell.max(initial=-1)) + 1
        members = np.bincount(self.cell, minlength=cells)
        self.labels = _labels(names, self.cell, members)
        if region is not None:
            own = np.empty(cells, dtype=np.int64)
            own[self.cell] = region
            self._region = own.tolist()

        between = self.cell[ends]
        low, high = between.min(axis=1), between.max(axis=1)
        key = (low * cells + high) * (int(quality.max(initial=0)) + 1) + quality
        _, first, inverse, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
        self.tail = np.stack([low[first], high[first]], axis=1).reshape(-1)
        self.capacity = np.repeat(np.bincount(inverse, weights=capacity, minlength=len(count)), 2)
        self.latency = np.repeat(latency[first], 2)
        self.trunk = 2 * inverse + (between[:, 0] > between[:, 1])
        self._connect(members, count)
        self._reached: dict[tuple[int, int], tuple[dict[int, float], dict[int, list[_Neighbour]]]] = {}
        self._templates: dict[int, list[_Step]] = {-1: []}

    def _connect(self, members: IntArray, count: IntArray) -> None:
        """Fill the neighbour lists, the slots of access cells and the groups of interchangeable ones."""
        self._widths = (np.repeat(count, 2) // members[self.tail]).tolist()
        neighbours: list[list[_Neighbour]] = [[] for _ in members]
        tails = self.tail.tolist()
        for out, tail in enumerate(tails):
            head = tails[out ^ 1]
            if tail != head:  # links inside a cell join vertices at equal distance from everywhere: never on a path
                neighbours[tail].append((head, out, self._widths[out]))
        access = neighbours[: self._access_count]
        self._slots = np.full((len(access), max((len(own) for own in access), default=0)), -1, dtype=np.int64)
        groups: dict[object, list[int]] = {}
        for cell, own in enumerate(access):
            self._slots[cell, : len(own)] = [out for _, out, _ in own]
            alone = self._transit or any(head < self._access_count for head, _, _ in own)
            twin = cell if alone else tuple(head for head, _, _ in own)
            groups.setdefault(twin, []).append(cell)
        self._members = list(groups.values())
        self._group = np.empty(len(access), dtype=np.int64)
        for group, cells in enumerate(self._members):
            self._group[cells] = group
        # Paths are only counted between the first two of each group; the others forward nothing.
        shown = set(range(self._access_count, len(members))).union(*(cells[:2] for cells in self._members))
        self._neighbours = [[entry for entry in own if entry[0] in shown] for own in neighbours]

    def group_of(self, access: IntArray) -> IntArray:
        """Group of interchangeable access cells that each is in; -1 stays. [P]."""
        return np.where(access >= 0, self._group[access], -1) if len(self._group) else access

    def reaches(self, source: IntArray, target: IntArray) -> BoolArray:
        """Say of pairs of access cells [P] whether a path joins them."""
        code = self._group[source] * len(self._members) + self._group[target]
        code[source == target] = -1
        kinds, kind = np.unique(code, return_inverse=True)
        known = np.ones(len(kinds), dtype=bool)
        for i, each in enumerate(kinds.tolist()):
            if each >= 0:
                start, end = self._ends(each)
                known[i] = end in self._reach(start, end)[0]
        found: BoolArray = known[kind.reshape(-1)]
        return found

    def expand(
        self, source: IntArray, target: IntArray, hashes: NDArray[np.uint64] | None = None
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Find the trunks on the way of pairs of access cells [P], over one path each where there are hashes [P].

        Returns
        -------
        row, trunk, share
            Entry i: `share[i]` of the traffic of pair `row[i]` crosses `trunk[i]`. Equal cells and pairs without a path
            have no entries.
        """
        code = self._group[source] * len(self._members) + self._group[target]
        code[source == target] = -1  # already there: the template of code -1 is empty
        kinds, kind = np.unique(code, return_inverse=True)
        if hashes is not None:
            return self._choose(source, target, kinds, kind, hashes)
        templates = [self._template(c) for c in kinds.tolist()]
        length = np.array([len(steps) for steps in templates], dtype=np.int64)
        start = np.cumsum(length) - length
        flat = [step for steps in templates for step in steps]
        if not flat:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        place, link = np.array([step[:2] for step in flat], dtype=np.int64).T
        share = np.array([step.share for step in flat])

        row = np.repeat(np.arange(len(code)), length[kind])
        before = np.cumsum(length[kind]) - length[kind]
        step = np.arange(len(row)) + (start[kind] - before)[row]
        return row, self._fill(place[step], link[step], source[row], target[row]), share[step]

    def _fill(self, place: IntArray, link: IntArray, source: IntArray, target: IntArray) -> IntArray:
        """Replace slots of a template by the pair's own trunks."""
        trunk = link.copy()
        leaving, arriving = place == _FROM_SOURCE, place == _TO_TARGET
        trunk[leaving] = self._slots[source[leaving], trunk[leaving]]
        trunk[arriving] = self._slots[target[arriving], trunk[arriving]] ^ 1
        return trunk

    def _choose(
        self, source: IntArray, target: IntArray, kinds: IntArray, kind: IntArray, hashes: NDArray[np.uint64]
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Take path number hash mod n of the n shortest paths of every pair."""
        order = np.argsort(kind, kind="stable")
        starts = np.searchsorted(kind[order], np.arange(len(kinds) + 1))
        rows: list[IntArray] = [np.empty(0, np.int64)]
        places: list[IntArray] = [np.empty(0, np.int64)]
        links: list[IntArray] = [np.empty(0, np.int64)]
        for i, code in enumerate(kinds.tolist()):
            if code < 0:
                continue
            own = order[starts[i] : starts[i + 1]]
            for chosen, step in self._walk(*self._ends(code), own, hashes):
                rows.append(chosen)
                places.append(np.full(len(chosen), step.place))
                links.append(np.full(len(chosen), step.link))
        row = np.concatenate(rows)
        trunk = self._fill(np.concatenate(places), np.concatenate(links), source[row], target[row])
        return row, trunk, np.ones(len(row))

    def _walk(
        self, source: int, target: int, rows: IntArray, hashes: NDArray[np.uint64]
    ) -> Iterator[tuple[IntArray, _Step]]:
        """Walk back from the target for all pairs of a template at once, each along its own path."""
        paths, before = self._reach(source, target)
        if target not in paths:
            return
        number = (hashes[rows] % np.uint64(int(paths[target]))).astype(np.float64)
        here = {target: (rows, number)}
        while source not in here:
            arriving: dict[int, list[tuple[IntArray, FloatArray]]] = {}
            for cell, (own, rank) in here.items():
                upper = np.cumsum([paths[previous] * width for previous, _, width in before[cell]])
                choice = np.searchsorted(upper, rank, side="right")
                for j, (previous, back, width) in enumerate(before[cell]):
                    mine = np.flatnonzero(choice == j)
                    if len(mine):
                        yield own[mine], self._step(source, target, back ^ 1, 1.0)
                        left = (rank[mine] - (upper[j] - paths[previous] * width)) % paths[previous]
                        arriving.setdefault(previous, []).append((own[mine], left))
            here = {
                cell: (np.concatenate([own for own, _ in parts]), np.concatenate([rank for _, rank in parts]))
                for cell, parts in arriving.items()
            }

    def _template(self, code: int) -> list[_Step]:
        if code not in self._templates:
            self._templates[code] = self._paths(*self._ends(code))
        return self._templates[code]

    def _ends(self, code: int) -> tuple[int, int]:
        """Access cells that stand for the pairs of a template."""
        groups = len(self._members)
        start, end = self._members[code // groups], self._members[code % groups]
        return start[0], end[0] if start is not end else end[1]

    def _paths(self, source: int, target: int) -> list[_Step]:
        """Walk back from the target, splitting the flow over predecessors by their number of paths."""
        paths, before = self._reach(source, target)
        steps: list[_Step] = []
        flow = {target: 1.0} if target in paths else {}
        while flow and source not in flow:
            arriving: dict[int, float] = {}
            for cell, amount in flow.items():
                for previous, back, width in before[cell]:
                    part = amount * width * paths[previous] / paths[cell]
                    steps.append(self._step(source, target, back ^ 1, part))
                    arriving[previous] = arriving.get(previous, 0.0) + part
            flow = arriving
        return steps

    def _step(self, source: int, target: int, link: int, share: float) -> _Step:
        for place, cell, out in ((_FROM_SOURCE, source, link), (_TO_TARGET, target, link ^ 1)):
            for slot, (_, own, _) in enumerate(self._neighbours[cell]):
                if own == out:
                    return _Step(place, slot, share)
        return _Step(_FIXED, link, share)

    def _reach(self, source: int, target: int) -> tuple[dict[int, float], dict[int, list[_Neighbour]]]:
        """Count shortest paths from the source to one member of every cell, and list each cell's predecessors.

        Paths keep to the regions of source and target where that reaches the target.
        """
        region = self._region
        if region is None:
            return self._flood(source, -1)
        found = self._flood(source, region[target])
        return found if target in found[0] else self._flood(source, -1)

    def _flood(self, source: int, region: int) -> tuple[dict[int, float], dict[int, list[_Neighbour]]]:
        """Search breadth first, within the source's region and another one, or everywhere (-1)."""
        if (source, region) in self._reached:
            return self._reached[source, region]
        inside = None if self._region is None or region < 0 else {region, self._region[source]}
        paths: dict[int, float] = {source: 1.0}
        before: dict[int, list[_Neighbour]] = {}
        frontier = [source]
        while frontier:
            found: dict[int, list[_Neighbour]] = {}
            for cell in frontier:
                if self._transit or cell == source or cell >= self._access_count:
                    for after, out, _ in self._neighbours[cell]:
                        if after not in paths and self._is_inside(after, inside):
                            found.setdefault(after, []).append((cell, out ^ 1, self._widths[out ^ 1]))
            for cell, previous in found.items():
                before[cell] = previous
                paths[cell] = sum(width * paths[p] for p, _, width in previous)
            frontier = list(found)
        self._reached[source, region] = paths, before
        return paths, before

    def _is_inside(self, cell: int, regions: set[int] | None) -> bool:
        return regions is None or self._region is None or self._region[cell] in regions


def _single_cells(access: NDArray[np.bool_]) -> IntArray:
    cell = np.empty(len(access), dtype=np.int64)
    cell[access] = np.arange(access.sum())
    cell[~access] = np.arange(access.sum(), len(access))
    return cell


def _merged_cells(access: NDArray[np.bool_], ends: IntArray, quality: IntArray) -> IntArray:
    """Coarsest equitable cells in which every access vertex stands alone; those come first, in order."""
    first = np.full(len(access), len(access), dtype=np.int64)
    first[access] = np.arange(access.sum())
    cell = coarsest_partition(first, (ends[:, 0], ends[:, 1]), quality.astype(np.uint64))
    order = np.concatenate([cell[access], np.setdiff1d(cell[~access], cell[access])])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place[cell]


def _labels(names: list[str], cell: IntArray, members: IntArray) -> list[str]:
    first: dict[int, str] = {}
    last: dict[int, str] = {}
    for name, own in zip(names, cell.tolist(), strict=True):
        first.setdefault(own, name)
        last[own] = name
    return [first[c] if members[c] == 1 else f"{first[c]}..{last[c]}" for c in range(len(members))]


def pair_hashes(seed: int, src: IntArray, dst: IntArray) -> NDArray[np.uint64]:
    """Hash pairs of GPUs [P], as a switch hashes the addresses of a flow; another seed gives other numbers."""
    base = mix(np.array([seed], dtype=np.uint64))
    return mix(mix(base ^ src.astype(np.uint64)) ^ mix(dst.astype(np.uint64) + np.uint64(1 << 40)))
