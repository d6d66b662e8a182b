"""The groups of one class on the cluster, and the traffic of their rings and trees on the links.

Pinned by tests/physics/collectives/test_groups.py.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from simulator.physics.cluster import ClusterGraph
from simulator.physics.collectives.laying import BoolArray, Edges, lay_edges, together
from simulator.physics.collectives.laying import FloatArray as FloatArray
from simulator.physics.collectives.laying import IntArray as IntArray


class Pattern(NamedTuple):
    """Traffic of G groups on directed links, in compressed rows.

    Attributes
    ----------
    indptr, links, usage
        Group g takes ``usage[i]`` bytes/s of ``links[i]`` per byte/s of its rate, for i from ``indptr[g]`` to
        ``indptr[g + 1]``; links of a row rise. [G + 1], [nnz], [nnz]
    weight
        The rate over that of one connection.
    solo
        Rate of each group that has its links to itself, bytes/s on its busiest edge; infinite where it uses none. [G]
    inside, across
        Longest wire latency of an edge within a scale-up domain, and between two. [G]
    solo_inside, solo_across
        `solo` by the scale-up links alone, and by all others alone. [G]
    """

    indptr: IntArray
    links: IntArray
    usage: FloatArray
    weight: float
    solo: FloatArray
    inside: FloatArray
    across: FloatArray
    solo_inside: FloatArray
    solo_across: FloatArray

    def row(self, group: int) -> tuple[IntArray, FloatArray]:
        """Links and usage of one group."""
        part = slice(int(self.indptr[group]), int(self.indptr[group + 1]))
        return self.links[part], self.usage[part]


_MOST_RAILS = 8
"""Fitted: what NVL72 racks show. Bus bandwidth of 8 and of 64 GPUs is that of equal algorithm bandwidth (841 and 930
GB/s on GB300), and racks talk through eight 400G NICs each: 800 GB/s between two, where a tree's NICs carry the data
once, 381 between twenty, where they carry it twice (Oracle's GB200 and GB300 quick starts, coreweave/nccl-tests)."""


def rails(members: int) -> int:
    """Members of a domain by whose NICs rings and trees leave, and over whom an NVLS collective is cut."""
    return min(members, _MOST_RAILS)


class Shape(NamedTuple):
    """How a group lies on the machine: n members over `domains` scale-up domains, at least `local` in each."""

    members: int
    domains: int
    local: int

    @property
    def regular(self) -> bool:
        """Whether every domain holds the same number of members."""
        return self.domains * self.local == self.members


def by_shape(cluster: ClusterGraph, gpus: IntArray) -> list[tuple[IntArray, Groups]]:
    """Sort groups [G, n] into batches of one shape: which groups are in it, and the batch."""
    _, domains = _by_domain(cluster, gpus)
    starts = _domain_starts(domains)
    count = starts.sum(axis=1)
    sizes = np.diff(np.append(np.flatnonzero(starts.ravel()), starts.size))
    least = np.minimum.reduceat(sizes, np.cumsum(count) - count)
    key = count * (gpus.shape[1] + 1) + least
    return [(found, Groups(cluster, gpus[found])) for found in (np.flatnonzero(key == k) for k in np.unique(key))]


class Groups:
    """Groups of one shape on the cluster, with the patterns that their algorithms share.

    Parameters
    ----------
    cluster
        The graph.
    gpus
        Members in rank order; all groups have the same shape (see `by_shape`). [G, n]
    loads
        What each member receives in a dispatch of tokens to experts (and sends in a combine), relative to the mean;
        all alike where left out. [n]
    crossing
        Copies of a token that cross the network in a two-hop dispatch, over those that a direct one would send.
    kept
        Links to record; all if None. Set it before any pattern is asked for. [L]

    Raises
    ------
    ValueError
        For loads that are not n numbers of mean 1, none negative, or a crossing outside (0, 1].
    """

    def __init__(
        self, cluster: ClusterGraph, gpus: IntArray, loads: FloatArray | None = None, crossing: float = 1.0
    ) -> None:
        self.cluster = cluster
        self.gpus = gpus
        self.loads = np.ones(gpus.shape[1]) if loads is None else np.asarray(loads, dtype=np.float64)
        self.crossing = crossing
        self.kept: BoolArray | None = None
        if self.loads.shape != (gpus.shape[1],) or (self.loads < 0).any() or abs(self.loads.mean() - 1) > 1e-6:
            raise ValueError(f"loads must be {gpus.shape[1]} numbers of mean 1, none negative; they are {loads}")
        if not 0 < crossing <= 1:
            raise ValueError(f"crossing must lie in (0, 1]; it is {crossing}")

    @cached_property
    def ordered(self) -> tuple[IntArray, IntArray]:
        """Members sorted by domain (NCCL numbers ranks node by node) and their domains, [G, n] each."""
        return _by_domain(self.cluster, self.gpus)

    @cached_property
    def shape(self) -> Shape:
        """Shape of every group."""
        starts = _domain_starts(self.ordered[1])
        sizes = np.diff(np.append(np.flatnonzero(starts.ravel()), starts.size))
        return Shape(self.gpus.shape[1], int(starts[0].sum()), int(sizes.min()))

    @cached_property
    def by_domain(self) -> IntArray:
        """Members of regular groups [G, domains, local]."""
        return self.ordered[0].reshape(len(self.gpus), self.shape.domains, self.shape.local)

    @cached_property
    def ring_edges(self) -> Pattern:
        """All channels of all rings: as many as a domain has rails."""
        channels = rails(self.shape.local)
        return self.lay(_ring_edges(*self.ordered, channels), weight=channels)

    @cached_property
    def tree_edges(self) -> Pattern:
        """Both trees over the domains and the chains inside."""
        return self.lay(_tree_edges(self.by_domain), weight=2 * rails(self.shape.local))

    @cached_property
    def nvls_tree_edges(self) -> Pattern:
        """Sums and multicasts inside the domains of regular groups, both trees between them."""
        return self.lay(_nvls_tree_edges(self.by_domain), weight=2 * rails(self.shape.local))

    @cached_property
    def jump_edges(self) -> Pattern:
        """Members 1, 2, 4, ... further on (PAT): what crosses each distance, of the n - 1 parts that a member sends."""
        n = self.shape.members
        return self.lay(_jump_edges(self.ordered[0]), weight=(n - 1).bit_length())

    @cached_property
    def inner_ring_edges(self) -> Pattern:
        """Rings inside the domains of regular groups, as traffic of the groups themselves."""
        return merged(self.inner.ring_edges, self.shape.domains)

    @cached_property
    def outer_ring_edges(self) -> Pattern:
        """Rings of the rails of regular groups, as traffic of the groups themselves."""
        return merged(self.outer.ring_edges, self.shape.local)

    @cached_property
    def inner(self) -> Groups:
        """Of regular groups, the members of each domain: `domains` groups for each of ours."""
        return self._other(self.by_domain.reshape(-1, self.shape.local))

    @cached_property
    def outer(self) -> Groups:
        """Of regular groups, the members of equal position in their domains, the rails: `local` groups for each."""
        return self._other(self.by_domain.transpose(0, 2, 1).reshape(-1, self.shape.domains))

    def _other(self, gpus: IntArray) -> Groups:
        groups = Groups(self.cluster, gpus)
        groups.kept = self.kept
        return groups

    def lay(self, edges: Edges, weight: float = 1.0) -> Pattern:
        """Lay edges on the directed links of their routes."""
        cluster, count = self.cluster, len(self.gpus)
        rows = lay_edges(cluster, edges, count, self.kept)
        scale_up = cluster.scale_up_links[rows.link]
        solo = np.full((2, count), np.inf)
        np.minimum.at(solo, (np.where(scale_up, 0, 1), rows.group), cluster.capacity[rows.link] / rows.usage)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows.group, minlength=count))])
        return Pattern(indptr, rows.link, rows.usage, float(weight), solo.min(axis=0), *rows.longest, *solo)


def merged(pattern: Pattern, times: int) -> Pattern:
    """Rows of `times` neighbouring groups added up: the traffic of a group's inner or outer groups as its own."""
    count = len(pattern.solo) // times
    owner = np.repeat(np.arange(len(pattern.solo)), np.diff(pattern.indptr)) // times
    size = int(pattern.links.max(initial=0)) + 1
    key, place = np.unique(owner * size + pattern.links, return_inverse=True)
    usage = np.bincount(place, weights=pattern.usage, minlength=len(key)).astype(np.float64)
    group, link = np.divmod(key, size)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=count))])
    slowest, solo_inside, solo_across = (
        values.reshape(count, times).min(axis=1) for values in (pattern.solo, pattern.solo_inside, pattern.solo_across)
    )
    inside, across = (values.reshape(count, times).max(axis=1) for values in (pattern.inside, pattern.across))
    return Pattern(indptr, link, usage, pattern.weight, slowest, inside, across, solo_inside, solo_across)


# --- edges of rings and trees ----------------------------------------------------------------------------------------


def _by_domain(cluster: ClusterGraph, gpus: IntArray) -> tuple[IntArray, IntArray]:
    order = np.argsort(cluster.domain[gpus], axis=1, kind="stable")
    members = np.take_along_axis(gpus, order, axis=1)
    return members, cluster.domain[members]


def _domain_starts(domains: IntArray) -> BoolArray:
    """Whether a member is the first of its domain [G, n]."""
    return np.concatenate([np.ones((len(domains), 1), bool), domains[:, 1:] != domains[:, :-1]], axis=1)


def _ring_edges(members: IntArray, domains: IntArray, channels: int) -> Edges:
    """Edges of every channel of every ring, with the share of the rate on each.

    Channels rotate through a domain's members, and each leaves the domain at another one. So an edge inside a domain of
    k members is missing from one channel in k, and carries (k - 1) / k of the rate. A ring that never leaves closes.
    """
    starts = _domain_starts(domains)
    own = np.repeat(np.arange(len(members)), members.shape[1])
    if starts.sum() == len(domains):  # one domain each: a plain ring
        return Edges(own, members.ravel(), np.roll(members, -1, axis=1).ravel(), np.ones(members.size))
    head = np.maximum.accumulate(np.where(starts, np.arange(members.size).reshape(members.shape), 0), axis=1)
    flat, domain_of = members.ravel(), np.cumsum(starts.ravel()) - 1
    heads = np.flatnonzero(starts.ravel())  # flat index of each domain's first member
    sizes = np.diff(np.append(heads, flat.size))
    size = sizes[domain_of]
    position = np.arange(flat.size) - head.ravel()
    inner = size > 1
    following = flat[head.ravel() + (position + 1) % size]
    # the next domain of the same group; the last one's next is the group's first
    group_of = heads // members.shape[1]
    first_of_group = np.searchsorted(group_of, np.arange(len(members)))
    nxt = np.arange(1, len(heads) + 1)
    last = np.append(group_of[1:] != group_of[:-1], True)
    nxt[last] = first_of_group[group_of[last]]
    crossing = nxt != np.arange(len(heads))  # not so for a group within one domain beside groups that are not
    carried = np.where(crossing[domain_of], (size - 1) / size, 1.0)
    group, src, dst, share = [own[inner]], [flat[inner]], [following[inner]], [carried[inner]]
    for channel in range(channels):
        group.append(group_of[crossing])
        leaving, entering = crossing, nxt[crossing]
        src.append(flat[heads[leaving] + channel * sizes[leaving] // channels])
        dst.append(flat[heads[entering] + channel * sizes[entering] // channels])
        share.append(np.full(int(crossing.sum()), 1.0 / channels))
    return Edges(np.concatenate(group), np.concatenate(src), np.concatenate(dst), np.concatenate(share))


def _tree_parents(count: int) -> list[int]:
    """Parent of each node of NCCL's binary tree, the root's being -1 (src/graph/trees.cc, ncclGetBtree)."""
    parents = [-1] * count
    for node in range(1, count):
        bit = node & -node
        up = (node ^ bit) | (bit << 1)
        parents[node] = node ^ bit if up >= count else up
    return parents


def _double_tree(count: int) -> list[tuple[int, int]]:
    """Child → parent edges of both trees; the second is mirrored (even count) or shifted by one (odd)."""
    edges = [(node, parent) for node, parent in enumerate(_tree_parents(count)) if parent >= 0]
    if count % 2 == 0:
        return edges + [(count - 1 - child, count - 1 - parent) for child, parent in edges]
    return edges + [((child + 1) % count, (parent + 1) % count) for child, parent in edges]


def _trunk_edges(by_domain: IntArray) -> Edges:
    """Edges of both trees over the domains, per byte/s of data; `by_domain` are the members [G, domains, local]."""
    groups, domains, local = by_domain.shape
    each = np.repeat(np.arange(groups), local)
    group, src, dst, share = [], [], [], []
    for child, parent in _double_tree(domains):
        a, b = by_domain[:, child, :].ravel(), by_domain[:, parent, :].ravel()
        group += [each, each]
        src += [a, b]
        dst += [b, a]
        share += [np.full(a.size, 0.5 / local)] * 2  # half of the data per tree, one channel per member
    return Edges(np.concatenate(group), np.concatenate(src), np.concatenate(dst), np.concatenate(share))


def _spread(local: int) -> IntArray:
    """Positions of the rails in a domain."""
    return np.arange(rails(local)) * local // rails(local)


def _tree_edges(by_domain: IntArray) -> Edges:
    """Both trees over the domains, and chains inside them."""
    groups, domains, local = by_domain.shape
    trees = _trunk_edges(by_domain[:, :, _spread(local)])
    if local == 1:
        return trees
    here, there = by_domain.ravel(), np.roll(by_domain, -1, axis=2).ravel()
    own, part = np.repeat(np.arange(groups), domains * local), np.full(here.size, (local - 1) / local)
    return together(trees, Edges(own, here, there, part), Edges(own, there, here, part))


def _nvls_tree_edges(by_domain: IntArray) -> Edges:
    """Trees over the domains from the NICs of the heads; inside, each member moves (1 + 1 / heads) bytes over its link.

    Per byte/s of data.
    """
    groups, domains, local = by_domain.shape
    heads = rails(local)
    here, there = by_domain.ravel(), np.roll(by_domain, -1, axis=2).ravel()
    own = np.repeat(np.arange(groups), domains * local)
    return together(
        _trunk_edges(by_domain[:, :, _spread(local)]), Edges(own, here, there, np.full(here.size, 1 + 1 / heads))
    )


def _jump_edges(members: IntArray) -> Edges:
    """Member i to member i + 2^k, which passes on min(2^k, n - 2^k) of the n - 1 parts."""
    groups, n = members.shape
    own = np.repeat(np.arange(groups), n)
    return together(
        *(
            Edges(own, members.ravel(), np.roll(members, -jump, axis=1).ravel(), np.full(members.size, part))
            for jump in (1 << k for k in range((n - 1).bit_length()))
            for part in [min(jump, n - jump) / (n - 1)]
        )
    )
