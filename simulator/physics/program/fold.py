"""Folding: ranks, groups and links that cannot be told apart become one class each, with the traffic of all of them.

The incidence structure has the ranks, the groups and the links that can bind as vertices. A rank starts with the colour
of its program (pipeline rank, load, speed), a group with that of its axis, site, latencies and rates, and a link
with its capacity. The coarsest equitable partition (`physics.symmetry`) then tells which are equal. A class of links is
a constraint with the usage of one of its members; each class of coflows counts as often as it uses that link.

Without folding every rank and group is a class of its own; the rest is the same.

Shapes: W ranks, G groups of all axes, L directed links. Pinned by tests/physics/program/test_fold.py, and by
tests/test_folding.py: folded = unfolded on every span.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.physics.collectives.algorithms import phase_latency, rate_cap
from simulator.physics.collectives.groups import FloatArray, IntArray
from simulator.physics.program.constraints import Rows, can_bind, distinct_rows
from simulator.physics.program.layout import PAIRS, Layout
from simulator.physics.symmetry import HashArray, coarsest_partition, mix, near


class Fold(NamedTuple):
    """Classes and their traffic.

    Attributes
    ----------
    rank_class
        By pipeline rank, then by first member. [W]
    group_class
        [G]
    group_of_class
        First group of each class.
    rows
        Constraints: shares of capacity per byte/s of rate. Columns are `use · G' + class`, of G' group classes.
    link_classes
        Links that could bind, as far as they differ.
    """

    rank_class: IntArray
    group_class: IntArray
    group_of_class: IntArray
    rows: Rows
    link_classes: int


def fold(layout: Layout, programs: IntArray, *, exact: bool = True) -> Fold:
    """Partition a job.

    Parameters
    ----------
    programs
        Ranks with equal numbers do the same at the same speed; they rise with the pipeline rank. [W]
    exact
        False leaves every rank and every group for itself.
    """
    entries = layout.entries
    kept = can_bind(layout.cluster, entries, layout.serial)[entries.link]
    links, link = np.unique(entries.link[kept], return_inverse=True)
    traffic = _Traffic(
        entries.use[kept], entries.group[kept], link, entries.usage[kept], layout.cluster.capacity[links]
    )
    if exact:
        rank_class, group_class, link_class = _partition(layout, programs, traffic)
    else:
        rank_class, group_class, link_class = (
            np.arange(len(programs)),
            np.arange(layout.group_count),
            np.arange(len(links)),
        )
    link_classes = int(link_class.max(initial=-1)) + 1
    rows = distinct_rows(_quotient(traffic, group_class, link_class), link_classes)
    group_of_class = np.unique(group_class, return_index=True)[1]
    return Fold(_ordered(rank_class, programs), group_class, group_of_class, rows, link_classes)


class _Traffic(NamedTuple):
    """What is on the links that can bind, and their capacity; links are numbered anew."""

    use: IntArray
    group: IntArray
    link: IntArray
    usage: FloatArray
    capacity: FloatArray


def _partition(layout: Layout, programs: IntArray, traffic: _Traffic) -> tuple[IntArray, IntArray, IntArray]:
    """Classes of ranks, groups and links."""
    ranks, groups = len(programs), layout.group_count
    colour = _colours(programs, _group_colours(layout), near(traffic.capacity))
    members = _memberships(layout)
    ends = (
        np.concatenate([members[0], ranks + traffic.group]),
        np.concatenate([ranks + members[1], ranks + groups + traffic.link]),
    )
    used = mix(traffic.use.astype(np.uint64) + np.uint64(2)) ^ near(traffic.usage)
    classes = coarsest_partition(colour, ends, np.concatenate([members[2], used]))
    parts = np.split(classes, [ranks, ranks + groups])
    return tuple(np.unique(part, return_inverse=True)[1] for part in parts)  # type: ignore[return-value]


def _quotient(traffic: _Traffic, group_class: IntArray, link_class: IntArray) -> Rows:
    """Traffic of each class of groups on the first link of each class of links."""
    shown = np.zeros(len(link_class), dtype=bool)
    shown[np.unique(link_class, return_index=True)[1]] = True
    here = shown[traffic.link]
    link, count = traffic.link[here], int(group_class.max(initial=-1)) + 1
    column = traffic.use[here] * count + group_class[traffic.group[here]]
    return _summed(link_class[link], column, traffic.usage[here] / traffic.capacity[link])


def _colours(ranks: IntArray, groups: HashArray, links: HashArray) -> IntArray:
    """Start colours of all vertices, no two kinds alike."""
    parts = [np.unique(part, return_inverse=True)[1] for part in (ranks, groups, links)]
    starts = np.cumsum([0, *(int(part.max(initial=-1)) + 1 for part in parts)])
    return np.concatenate([part + start for part, start in zip(parts, starts[:-1], strict=True)])


def _group_colours(layout: Layout) -> HashArray:
    """What tells groups apart before their traffic is compared: axis, shape, site, latencies and rates alone [G]."""
    colours = np.zeros(layout.group_count, dtype=np.uint64)
    for number, axis in enumerate(layout.axes.values()):
        own = np.uint64(number + 1) * np.uint64(1 << 40) + (axis.batch_of * (1 << 20) + axis.site).astype(np.uint64)
        colours[axis.first : axis.first + len(axis.ranks)] = mix(own)
    for need, batch, plan in layout.planned():
        axis = layout.axes[need.axis]
        members = axis.batches[batch].members
        here = axis.site[members] == axis.sites.index(need.site)
        members = axis.first + members[here]
        for phase in plan.phases:
            terms = [phase_latency(plan, phase, need.size)]
            terms += [rate_cap(plan, pattern, need.size) for pattern, _ in phase.traffic]
            for values in terms:
                colours[members] = mix(colours[members] ^ near(values[here]))
    return colours


def _memberships(layout: Layout) -> tuple[IntArray, IntArray, HashArray]:
    """Rank, group and role of every membership; only the two ends of a message have different roles."""
    ranks, groups, roles = [], [], []
    for name, axis in layout.axes.items():
        count, size = axis.ranks.shape
        ranks.append(axis.ranks.ravel())
        groups.append(axis.first + np.repeat(np.arange(count), size))
        role = np.tile(np.arange(size), count) if name in PAIRS else np.zeros(count * size, dtype=np.int64)
        roles.append(role.astype(np.uint64))
    if not ranks:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing.astype(np.uint64)
    return np.concatenate(ranks), np.concatenate(groups), np.concatenate(roles)


def _ordered(classes: IntArray, programs: IntArray) -> IntArray:
    """Number classes by their program, then by their first member."""
    first = np.unique(classes, return_index=True)[1]
    number = np.empty(len(first), dtype=np.int64)
    number[np.lexsort((first, programs[first]))] = np.arange(len(first))
    return number[classes]


def _summed(row: IntArray, column: IntArray, share: FloatArray) -> Rows:
    """Add up entries of the same place."""
    width = int(column.max(initial=0)) + 1
    key, place = np.unique(row * width + column, return_inverse=True)
    total = np.bincount(place, weights=share, minlength=len(key)).astype(np.float64)
    rows, columns = np.divmod(key, width)
    return Rows(rows, columns, total)
