"""Dimension-ordered routes in a torus: first along x, then y, then z, each the shorter way round.

Where both ways round are equally long, half of the traffic takes either. Routes are arithmetic on coordinates, so that
thousands of chips cost little; a pair whose way is broken by a missing link takes all its shortest paths in equal parts
instead.

Pinned by tests/physics/test_torus.py: hops are networkx's shortest distances, flow is conserved.
"""

from __future__ import annotations

import numpy as np

from simulator.physics.routes import Fabric, FloatArray, IntArray


class Torus:
    """Chips in a grid and the directed links to their neighbours; G chips.

    Parameters
    ----------
    dims, wraps
        Size of every dimension, and whether its ends are joined.
    fabric
        All links, and the way round broken ones; its access cells are the chips in order.
    """

    def __init__(self, dims: tuple[int, ...], wraps: tuple[bool, ...], fabric: Fabric) -> None:
        self._dims, self._wraps, self._fabric = dims, wraps, fabric
        chips = int(np.prod(dims))
        self._strides = np.cumprod([1, *dims[:-1]])
        self._out = np.full((chips, 2 * len(dims)), -1, dtype=np.int64)
        links = np.arange(len(fabric.tail))
        tail, head = fabric.tail[links], fabric.tail[links ^ 1]
        for d, size in enumerate(dims):
            place = np.arange(chips) // self._strides[d] % size
            for way, step in ((0, 1), (1, -1)):
                if wraps[d]:
                    to = np.arange(chips) + ((place + step) % size - place) * self._strides[d]
                else:
                    to = np.where((place + step) % size == place + step, np.arange(chips) + step * self._strides[d], -1)
                found = links[to[tail] == head]
                self._out[tail[found], 2 * d + way] = found

    def expand(self, source: IntArray, target: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
        """Find the links on the way of pairs of chips [P]: (pair, link, share) in coordinate form."""
        here = source.copy()
        rows, links, shares = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
        for d, size in enumerate(self._dims):
            stride = self._strides[d]
            a, b = here // stride % size, target // stride % size
            ahead, back = (b - a) % size, (a - b) % size
            if not self._wraps[d]:
                ahead, back = np.where(b >= a, b - a, size), np.where(a >= b, a - b, size)
            for way, step, hops, other in ((0, 1, ahead, back), (1, -1, back, ahead)):
                share = np.where(hops < other, 1.0, np.where(hops == other, 0.5, 0.0))
                pairs = np.flatnonzero((share > 0) & (hops > 0))
                row = np.repeat(pairs, hops[pairs])
                nth = np.arange(len(row)) - np.repeat(np.cumsum(hops[pairs]) - hops[pairs], hops[pairs])
                place = (a[row] + step * nth) % size
                rows.append(row)
                links.append(self._out[here[row] + (place - a[row]) * stride, 2 * d + way])
                shares.append(share[row])
            here = here + (b - a) * stride
        row, link, portion = np.concatenate(rows), np.concatenate(links), np.concatenate(shares)
        return self._mend(source, target, row, link, portion)

    def _mend(
        self, source: IntArray, target: IntArray, row: IntArray, link: IntArray, share: FloatArray
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Replace the ways that are broken."""
        broken = np.unique(row[link < 0])
        if not len(broken):
            return row, link, share
        whole = ~np.isin(row, broken)
        again, others, parts = self._fabric.expand(source[broken], target[broken])
        return (
            np.concatenate([row[whole], broken[again]]),
            np.concatenate([link[whole], others]),
            np.concatenate([share[whole], parts]),
        )
