"""Constraints that can bind: the few links that say something that no other one says.

A link is a constraint: sum of usage · rate ≤ capacity over the coflows on it. Five exact reductions leave the few that
matter:

* a trunk is dropped where it can carry all that the NICs below could send (or take) over it;
* a link is dropped where all its coflows together, each at the most that it moves alone, do not fill it;
* a GPU's own port is dropped where everything on it holds that GPU's compute stream, which does one thing at a time;
* links with the same normalised usage of every coflow are one constraint;
* a constraint implied by another one (no larger a share of its capacity used by any coflow) is dropped.

All leave the set of possible rates as it is, whichever coflows are in progress: what is dropped is bounded by
constraints that stay (NICs, the coflows' own caps). The fair one among the possible rates is determined by that set.

Shapes: L directed links, N entries, C constraints. Pinned by tests/physics/program/test_constraints.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.physics.cluster import ClusterGraph
from simulator.physics.collectives.groups import FloatArray, IntArray
from simulator.physics.program.layout import Entries
from simulator.physics.symmetry import near

BoolArray = NDArray[np.bool_]
_SLACK = 1 + 1e-9


class Rows(NamedTuple):
    """A sparse matrix: row `row[i]` has `share[i]` in column `column[i]`; sorted by row, then column."""

    row: IntArray
    column: IntArray
    share: FloatArray


def can_bind(cluster: ClusterGraph, entries: Entries, serial: BoolArray) -> BoolArray:
    """Links that traffic could fill.

    Parameters
    ----------
    serial
        Entries that hold the compute stream of the GPU whose port they cross. [N]

    Returns
    -------
    ndarray [L]
    """
    size = len(cluster.capacity)
    most = np.bincount(entries.link, weights=entries.usage * entries.cap, minlength=size)
    at_once = np.bincount(entries.link, weights=~serial, minlength=size) > 0
    return at_once & (most > cluster.capacity * _SLACK) & ~_ample_trunks(cluster, entries)


def _ample_trunks(cluster: ClusterGraph, entries: Entries) -> BoolArray:
    """Find the trunks at a leaf that the NICs below cannot fill [L].

    If no coflow puts more than a share q of what crosses a leaf's NICs on a trunk, then the NICs' own constraints bound
    the trunk's load by q · (their capacity added up).
    """
    ample = np.zeros(len(cluster.capacity), dtype=bool)
    for upward in (True, False):
        ports, leaf_of_port, leaf_of_trunk = cluster.leaf_links(upward=upward)
        leaves = int(leaf_of_port.max(initial=-1)) + 1
        injected = np.bincount(leaf_of_port, weights=cluster.capacity[ports], minlength=leaves)
        trunks = np.flatnonzero(leaf_of_trunk >= 0)
        roomy = injected[leaf_of_trunk[trunks]] <= cluster.capacity[trunks] * _SLACK
        # where switches carry transit traffic, not all on a trunk has passed the NICs of its leaf
        narrow = trunks if cluster.transit else trunks[~roomy]
        ample[trunks] = True
        ample[narrow] = False
        if len(narrow):
            ample[narrow] = _share_fits(cluster, entries, (ports, leaf_of_port), narrow, leaf_of_trunk[narrow])
    return ample


def _share_fits(
    cluster: ClusterGraph, entries: Entries, ports: tuple[IntArray, IntArray], trunks: IntArray, leaves: IntArray
) -> BoolArray:
    """Whether each trunk carries so small a share of what passes its leaf's NICs that they cannot fill it."""
    size, count = len(cluster.capacity), int(ports[1].max(initial=-1)) + 1
    port_leaf, trunk_leaf = np.full(size, -1), np.full(size, -1)
    port_leaf[ports[0]], trunk_leaf[trunks] = ports[1], leaves
    coflow = entries.use * (int(entries.group.max(initial=0)) + 1) + entries.group
    at_port, at_trunk = port_leaf[entries.link] >= 0, trunk_leaf[entries.link] >= 0
    keys, place = np.unique(coflow[at_port] * count + port_leaf[entries.link[at_port]], return_inverse=True)
    through = np.bincount(place, weights=entries.usage[at_port], minlength=len(keys))
    key = coflow[at_trunk] * count + trunk_leaf[entries.link[at_trunk]]
    found = np.minimum(np.searchsorted(keys, key), max(0, len(keys) - 1))
    passing = np.where(keys[found] == key, through[found], 0.0) if len(keys) else np.zeros(len(key))
    usage = entries.usage[at_trunk]
    share = np.divide(usage, passing, out=np.full(len(usage), np.inf), where=passing > 0)
    injected = np.bincount(ports[1], weights=cluster.capacity[ports[0]], minlength=count)
    largest = np.zeros(size)
    np.maximum.at(largest, entries.link[at_trunk], share)
    return np.asarray(largest[trunks] * injected[leaves] <= cluster.capacity[trunks] * _SLACK)


# --- rows ------------------------------------------------------------------------------------------------------------


def distinct_rows(rows: Rows, count: int) -> Rows:
    """One of all rows that look the same, and none that another one implies; numbered anew."""
    return _undominated(_renumbered(rows, _first_of_equals(rows, count)))


def _renumbered(rows: Rows, kept: BoolArray) -> Rows:
    number = np.cumsum(kept) - 1
    chosen = kept[rows.row]
    return Rows(number[rows.row[chosen]], rows.column[chosen], rows.share[chosen])


def _first_of_equals(rows: Rows, count: int) -> BoolArray:
    """Whether a row is the first of those that look the same, by two random projections of it."""
    rng = np.random.default_rng(0)  # a fixed seed: the projections only have to tell rows apart
    columns = int(rows.column.max(initial=0)) + 1
    keys = [
        near(np.bincount(rows.row, weights=rows.share * weight[rows.column], minlength=count).astype(np.float64))
        for weight in rng.uniform(1.0, 2.0, size=(2, columns))
    ]
    kept = np.zeros(count, dtype=bool)
    kept[np.unique(np.stack(keys), axis=1, return_index=True)[1]] = True
    kept[np.bincount(rows.row, minlength=count) == 0] = False
    return kept


def _undominated(rows: Rows) -> Rows:
    """Drop rows that another row implies: no entry larger. Of equal rows the last stays."""
    count = int(rows.row.max(initial=-1)) + 1
    contents = [dict[int, float]() for _ in range(count)]
    users: dict[int, list[int]] = {}
    for row, column, share in zip(rows.row.tolist(), rows.column.tolist(), rows.share.tolist(), strict=True):
        contents[row][column] = share
        users.setdefault(column, []).append(row)
    kept = np.ones(count, dtype=bool)
    for row, own in enumerate(contents):
        rarest = min((users[column] for column in own), key=len)  # what implies this row uses all its columns
        kept[row] = not any(kept[other] and other != row and _implies(contents[other], own) for other in rarest)
    return _renumbered(rows, kept)


def _implies(larger: dict[int, float], row: dict[int, float]) -> bool:
    return all(larger.get(column, 0.0) >= share * (1 - 1e-12) for column, share in row.items())
