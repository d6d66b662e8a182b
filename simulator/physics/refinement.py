"""Colour refinement: the coarsest equitable partition of a graph with links of several qualities.

A colouring is equitable when all vertices of a colour see equally many links of each quality to each colour. Refining
any first colouring until that holds gives the coarsest such one (Paige and Tarjan 1987; McKay 1981). Vertices are told
apart by sums of 64-bit hashes of what they see, so that a round is a few array operations; two different sights have
equal sums with a chance of 2^-64 a pair.

Pinned by tests/physics/test_refinement.py: the definition itself, and networkx's quotient as an oracle.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def mixed(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64-bit numbers: the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    z = number + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def equitable_cells(first: IntArray, ends: IntArray, quality: IntArray) -> IntArray:
    """Refine a colouring until it is equitable.

    Parameters
    ----------
    first
        Colours to begin with. [V]
    ends, quality
        Both vertices of every undirected link, and its quality. [E, 2], [E]

    Returns
    -------
    IntArray
        Cell of every vertex, numbered 0, 1, ... in the order of their first vertices. [V]
    """
    tail, head = ends.T.reshape(-1), ends[:, ::-1].T.reshape(-1)
    order = np.argsort(tail, kind="stable")
    head = head[order]
    start = np.searchsorted(tail[order], np.arange(len(first)))
    seen = np.flatnonzero(np.bincount(tail, minlength=len(first)))  # vertices that have links
    flavour = mixed(np.tile(quality, 2)[order].astype(np.uint64))
    cell = in_order_of_first(first)
    count = int(cell.max(initial=-1)) + 1
    while True:
        sight = mixed(cell.astype(np.uint64))
        if len(seen):
            what = mixed(mixed(cell.astype(np.uint64) + np.uint64(1))[head] ^ flavour)
            sight[seen] += np.add.reduceat(what, start[seen])
        cell = in_order_of_first(sight)
        refined = int(cell.max(initial=-1)) + 1
        if refined == count:
            return cell
        count = refined


def in_order_of_first(label: NDArray[np.int64] | NDArray[np.uint64]) -> IntArray:
    """Renumber labels by where they first occur."""
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]
