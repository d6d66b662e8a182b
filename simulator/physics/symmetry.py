"""Symmetry: which vertices of a coloured graph cannot be told apart.

Idea
----
The coarsest *equitable partition* that respects the colours: any two vertices of a class have, for every class and
label, equally many edges of that label into that class. Ranks, groups of ranks and links are the vertices; a rank is
joined to its groups (the label is its role), a group to the links of its traffic (the label is the use). Max-min fair
rates are unique, so whatever cannot be told apart at the start of a step behaves the same to its end: one simulated
member stands for its whole class, and the simulation is exact (see docs/design.md for the conditions).

Refinement: a vertex's new colour is its colour and the multiset of (label, colour) of its neighbours, as a 64-bit hash
of the one and the sum of the hashes of the others; repeat until the number of colours stays. Sums are the same in any
order, so no lists are sorted: a round costs a few passes over arrays. Two multisets with equal sums are taken for
equal; with 2^20 vertices that goes wrong once in 2^24 graphs.

The switches of a fabric are reduced in the same way (`physics.routes`, `physics.census`).

Shapes: V vertices, E edges. Pinned by tests/physics/test_symmetry.py and tests/physics/test_refinement.py: refinement
by whole sights and networkx's as oracles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
HashArray = NDArray[np.uint64]

_KEPT_BITS = 32


def coarsest_partition(colour: IntArray, ends: tuple[IntArray, IntArray], label: HashArray) -> IntArray:
    """Refine colours to the coarsest equitable partition.

    Parameters
    ----------
    colour
        Classes to start from. [V]
    ends
        Both vertices of every edge. [E], [E]
    label
        Edges with different labels are of different kinds. [E]

    Returns
    -------
    ndarray [V]
        Class of every vertex, numbered in the order of their first members.
    """
    tail = np.concatenate(ends)
    order = np.argsort(tail, kind="stable")
    tail, head, label = tail[order], np.concatenate(ends[::-1])[order], np.concatenate([label, label])[order]
    start = np.flatnonzero(np.concatenate([[True], tail[1:] != tail[:-1]])) if len(tail) else order
    reached, label = tail[start], mix(label)
    hashes = mix(np.unique(colour, return_inverse=True)[1].astype(np.uint64))
    count = -1
    while True:
        found, first, classes = np.unique(hashes, return_index=True, return_inverse=True)
        if len(found) == count:
            return _by_first_member(first, classes)
        count = len(found)
        if len(start):
            seen = np.zeros(len(colour), dtype=np.uint64)
            seen[reached] = np.add.reduceat(mix(hashes[head] + label), start)
            hashes = mix(mix(hashes) + seen)


def in_order_of_first(label: IntArray | HashArray) -> IntArray:
    """Renumber labels by where they first occur."""
    _, first, classes = np.unique(label, return_index=True, return_inverse=True)
    return _by_first_member(first, classes)


def _by_first_member(first: IntArray, classes: IntArray) -> IntArray:
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    return number[classes]


def mix(values: HashArray) -> HashArray:
    """Spread 64-bit numbers (the finalizer of SplitMix64: Steele, Lea, Flood, OOPSLA 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def near(values: NDArray[np.float64]) -> HashArray:
    """Numbers that are equal but for rounding, to 2^-32 of their size, become equal integers."""
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    dropped = 52 - _KEPT_BITS
    return (bits + np.uint64(1 << (dropped - 1))) >> np.uint64(dropped)
