"""How every GPU hangs on the rest of a cluster: its ports, scale-up domain, rail and access switch.

Pinned by tests/physics/test_cluster.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.errors import TopologyError
from simulator.physics.symmetry import in_order_of_first
from simulator.physics.wiring.blueprint import Blueprint, IntArray, kind_codes

GPU, NVSWITCH, NIC, SWITCH = range(4)
KINDS = ("gpu", "nvswitch", "nic")  # every other kind is a network switch


class Ports(NamedTuple):
    """Directed links, -1 where there is none: GPU to its NVLink switch, GPU to its NIC, that NIC to its leaf [G]."""

    scale_up: IntArray
    host: IntArray
    nic: IntArray


class Hanging(NamedTuple):
    """How GPUs hang on the rest; all [G].

    `access` is the vertex where paths through the fabric begin and end, `leaf` the (first) leaf switch above; -1
    without a NIC.
    """

    ports: Ports
    domain: IntArray
    rail: IntArray
    access: IntArray
    leaf: IntArray


def number_gpus(blueprint: Blueprint, kind: IntArray) -> IntArray:
    """Vertices of gpu0, gpu1, ... [G]."""
    own = np.flatnonzero(kind == GPU)
    names = [blueprint.names[v] for v in own.tolist()]
    wanted = [f"gpu{g}" for g in range(len(names))]
    if names == wanted:
        return own
    found = dict(zip(names, own.tolist(), strict=True))
    gpus = [found.get(name, -1) for name in wanted]
    if -1 in gpus:
        missing, last = gpus.index(-1), len(found) - 1
        raise TopologyError(f"gpu{missing} is missing: {len(found)} GPUs must be numbered gpu0 to gpu{last}")
    return np.array(gpus, dtype=np.int64)


def vertex_kinds(blueprint: Blueprint) -> IntArray:
    """GPU, NVSWITCH, NIC or SWITCH of every vertex. [V]."""
    return kind_codes(blueprint.kinds, KINDS)


def hang_up_down(blueprint: Blueprint, kind: IntArray, gpus: IntArray, outer: IntArray) -> Hanging:
    """Follow every GPU to its NVLink switch and through its NIC to its access switch.

    Parameters
    ----------
    kind, gpus
        Of every vertex [V]; vertex of every GPU [G].
    outer
        Links that are not inside the fabric; link outer[i] becomes directed links 2i and 2i + 1. [O]
    """
    names, ends = blueprint.names, blueprint.ends[outer]
    swap = kind[ends[:, 0]] > kind[ends[:, 1]]
    tail, head = np.where(swap, ends[:, 1], ends[:, 0]), np.where(swap, ends[:, 0], ends[:, 1])
    out = 2 * np.arange(len(ends)) + swap
    at_nics = blueprint.facts.get("access") == "nic"
    known = np.zeros(len(ends), dtype=bool)
    found: list[tuple[IntArray, IntArray]] = []
    for a, b in ((GPU, NVSWITCH), (GPU, NIC), (NIC, SWITCH)):
        chosen = (kind[tail] == a) & (kind[head] == b)
        known |= chosen
        found.append(_single(names, tail[chosen], head[chosen], out[chosen]))
    for i in np.flatnonzero(~known)[:1]:
        raise TopologyError(f"up-down routing knows no link like {names[ends[i, 0]]} - {names[ends[i, 1]]}")
    (scale_up, box), (host, card), (uplink, leaf) = found
    nic = card[gpus]
    has = nic >= 0
    alone = -1 - np.arange(len(gpus))  # a GPU without NVLink is a domain of its own
    domain = in_order_of_first(np.where(box[gpus] >= 0, box[gpus], alone))
    above = np.where(has, leaf[nic], -1)
    access = above
    if at_nics:
        above = np.where(has, _first_switch(blueprint, kind)[nic], -1)
        access = np.where(above >= 0, nic, -1)
    ports = Ports(scale_up[gpus], host[gpus], np.where(has, uplink[nic], -1))
    return Hanging(ports, domain, np.where(has, blueprint.columns["rail"][nic], -1), access, above)


def _first_switch(blueprint: Blueprint, kind: IntArray) -> IntArray:
    """First network switch that every NIC hangs on, else -1. [V]."""
    first = np.full(len(kind), -1, dtype=np.int64)
    for a, b in ((0, 1), (1, 0)):
        tail, head = blueprint.ends[:, a], blueprint.ends[:, b]
        chosen = np.flatnonzero((kind[tail] == NIC) & (kind[head] == SWITCH))[::-1]
        first[tail[chosen]] = head[chosen]
    return first


def _single(names: list[str], tail: IntArray, head: IntArray, out: IntArray) -> tuple[IntArray, IntArray]:
    """Link and neighbour of every vertex that has one, else -1 [V]."""
    link, neighbour = np.full(len(names), -1), np.full(len(names), -1)
    link[tail], neighbour[tail] = out, head
    for i in np.flatnonzero(neighbour[tail] != head)[:1]:
        raise TopologyError(
            f"{names[tail[i]]} hangs on both {names[head[i]]} and {names[neighbour[tail[i]]]}; one only"
        )
    return link, neighbour


def hang_directly(blueprint: Blueprint, gpus: IntArray) -> Hanging:
    """GPUs are their own access vertices; domains are what `nvlink` links connect, or everything in a torus."""
    none = np.full(len(gpus), -1)
    domain = np.zeros(len(gpus), dtype=np.int64)
    if not blueprint.facts.get("one_domain", False):
        nvlink = np.array([sort.kind == "nvlink" for sort in blueprint.sorts], dtype=bool)
        chosen = nvlink[blueprint.sort] if len(nvlink) else np.zeros(0, dtype=bool)
        domain = in_order_of_first(components(len(blueprint.names), blueprint.ends[chosen])[gpus])
    return Hanging(Ports(none, none, none), domain, none, gpus, gpus)


def components(count: int, ends: IntArray) -> IntArray:
    """Label the connected components of a graph of `count` vertices by their lowest vertex. [V]."""
    label = np.arange(count)
    while True:
        low = np.minimum(label[ends[:, 0]], label[ends[:, 1]])
        new = label.copy()
        np.minimum.at(new, label[ends[:, 0]], low)
        np.minimum.at(new, label[ends[:, 1]], low)
        new = new[new]
        if (new == label).all():
            return label
        label = new
