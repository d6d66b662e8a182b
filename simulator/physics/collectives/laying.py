"""Edges of groups laid on the directed links of their routes: the rows of a `Pattern`.

Edges are taken in blocks, of whole groups unless one is very large, so that memory stays flat however many groups there
are. Links that a caller knows to be implied by others (a PCIe link beside its NIC) may be left out.

Pinned by tests/physics/collectives/test_groups.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.physics.cluster import ClusterGraph

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_BLOCK = 60_000
_LARGEST = 500_000
"""Edges of a block: as many groups as reach the first, and no more than the second."""


class Edges(NamedTuple):
    """Directed edges between GPUs: the group that each belongs to, its ends, and its share of the group's rate. [E]."""

    group: IntArray
    src: IntArray
    dst: IntArray
    share: FloatArray


class Rows(NamedTuple):
    """Links and usage of every group in order, and the longest wires inside a domain and across. [nnz] × 3, [2, G]."""

    group: IntArray
    link: IntArray
    usage: FloatArray
    longest: FloatArray


def chosen(edges: Edges, which: BoolArray | IntArray | slice) -> Edges:
    """Some of the edges."""
    return Edges(edges.group[which], edges.src[which], edges.dst[which], edges.share[which])


def together(*parts: Edges) -> Edges:
    """Concatenate edges."""
    group, src, dst, share = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Edges(group.astype(np.int64), src.astype(np.int64), dst.astype(np.int64), share.astype(np.float64))


def lay_edges(cluster: ClusterGraph, edges: Edges, count: int, kept: BoolArray | None = None) -> Rows:
    """Lay edges on links.

    Parameters
    ----------
    count
        G, groups in all.
    kept
        Links to record; all if left out. [L]
    """
    longest = np.zeros((2, count))
    parts = [_block(cluster, block, kept, longest) for block in _blocks(edges)]
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return Rows(nothing, nothing, np.zeros(0), longest)
    group, link, usage = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if any(first[0][-1:] == then[0][:1] for first, then in pairwise(parts)):  # a group was cut
        group, link, usage = _added_up(group, link, usage, len(cluster.capacity))
    return Rows(group, link, usage, longest)


def _added_up(group: IntArray, link: IntArray, usage: FloatArray, size: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Add up what several blocks of one group put on a link."""
    key, place = np.unique(group * size + link, return_inverse=True)
    whole, found = np.divmod(key, size)
    return whole, found, np.bincount(place, weights=usage, minlength=len(key)).astype(np.float64)


def _blocks(edges: Edges) -> Iterator[Edges]:
    """Edges by group, cut between groups, and within one only where it is very large."""
    if (np.diff(edges.group) < 0).any():
        order = np.argsort(edges.group, kind="stable")
        edges = chosen(edges, order)
    starts = np.flatnonzero(edges.group[1:] != edges.group[:-1]) + 1
    at = 0
    while at < len(edges.group):
        later = np.searchsorted(starts, at + _BLOCK)
        end = int(starts[later]) if later < len(starts) else len(edges.group)
        end = min(end, at + _LARGEST)
        yield chosen(edges, slice(at, end))
        at = end


def _block(
    cluster: ClusterGraph, edges: Edges, kept: BoolArray | None, longest: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    routes = cluster.routes(edges.src, edges.dst)
    inside = cluster.domain[edges.src] == cluster.domain[edges.dst]
    np.maximum.at(longest, (np.where(inside, 0, 1), edges.group), routes.latency)
    pair, link, share = routes.pair, routes.link, routes.share
    if kept is not None:
        recorded = kept[link]
        pair, link, share = pair[recorded], link[recorded], share[recorded]
    size, first_group = len(cluster.capacity), int(edges.group[0])
    key = (edges.group[pair] - first_group) * size + link
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else order
    usage = np.add.reduceat((share * edges.share[pair])[order], first) if len(key) else np.zeros(0)
    group, found = np.divmod(key[first], size)
    return group + first_group, found, usage
