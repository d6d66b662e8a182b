"""Exchanges of messages: direct and pairwise all-to-alls, two-hop expert dispatch, send and receive.

A dispatch of tokens to experts is an all-to-all in which member j receives `loads[j]` times the mean from everybody; a
combine sends the same bytes back. Either way bytes are conserved: member i keeps its own part.

Limits: experts' loads are those of one mean step, not draws; a two-hop exchange forwards over NVLink while it receives
(DeepEP), without a limit from its buffers.

Pinned by tests/physics/collectives/test_exchanges.py.
"""

from __future__ import annotations

import numpy as np

from simulator.errors import LayoutError
from simulator.physics.cluster import ClusterGraph
from simulator.physics.collectives.groups import Groups, Pattern
from simulator.physics.collectives.laying import Edges, FloatArray, IntArray, chosen, together
from simulator.physics.collectives.plans import Phase, Plan, Ramp, Traffic
from simulator.physics.collectives.tuning import PLAIN, Tuning
from simulator.scenario.units import Bytes, Seconds

OPS = ("all_to_all", "send_recv", "dispatch", "combine")

_MOST_PAIRS = 30_000_000
"""Assumption: about 3 GB and a minute."""

_INSIDE, _BELOW_LEAF, _ACROSS = range(3)


def _reach(cluster: ClusterGraph, src: IntArray, dst: IntArray) -> IntArray:
    """How far apart pairs are: 0 in one scale-up domain, 1 below one leaf switch, 2 across.

    Under PXN traffic enters the network at the sender's neighbour on the receiver's rail.
    """
    entry = cluster.forwarders(src, dst)
    below = (cluster.leaf[dst] >= 0) & (cluster.leaf[entry] == cluster.leaf[dst])
    return np.where(cluster.domain[src] == cluster.domain[dst], _INSIDE, np.where(below, _BELOW_LEAF, _ACROSS))


def _pairs(groups: Groups, op: str) -> Edges:
    """Every ordered pair of members of every group, with the part of the sender's buffer that it carries."""
    count, n = groups.gpus.shape
    if op != "send_recv" and count * n * (n - 1) > _MOST_PAIRS:
        pairs = f"{count * n * (n - 1):,} pairs; at most {_MOST_PAIRS:,} are laid on the links"
        raise LayoutError(f"{op} of {count} groups of {n} GPUs has {pairs}: use smaller groups")
    if op == "send_recv":
        first, second, part = np.array([0]), np.array([1]), np.ones(1)
    else:
        first, second = np.nonzero(~np.eye(n, dtype=bool))
        part = groups.loads[first if op == "combine" else second] / n
    kept = part > 0
    first, second, part = first[kept], second[kept], part[kept]
    src, dst = groups.gpus[:, first].ravel(), groups.gpus[:, second].ravel()
    return Edges(np.repeat(np.arange(count), len(first)), src, dst, np.tile(part, count))


def _scaled(edges: Edges) -> tuple[Edges, float]:
    """Shares relative to the largest, which the rate stands for, and that largest."""
    top = float(edges.share.max(initial=0.0)) or 1.0
    return edges._replace(share=edges.share / top), top


def direct(groups: Groups, op: str, tuning: Tuning = PLAIN) -> list[Plan]:
    """All pairs at once, one pattern for each reach. Small messages run under the LL protocol inside a domain."""
    if op not in OPS:
        return []
    edges = _pairs(groups, op)
    reach = _reach(groups.cluster, edges.src, edges.dst)
    if op == "send_recv" or groups.cluster.nonblocking:
        # a single edge has no one to wait for, and where nothing above the NICs can be full both run alike
        reach[reach == _BELOW_LEAF] = _ACROSS
    parts = []
    for each in np.unique(reach).tolist():
        part, wire = _scaled(chosen(edges, reach == each))
        parts.append((each == _INSIDE, part, Traffic(groups.lay(part), wire)))
    n = groups.shape.members
    plans = []
    for protocol, setup in (("simple", tuning.direct_latency), ("ll", tuning.direct_ll_latency)):
        share = 1.0 if protocol == "simple" else tuning.ll_share
        tail = (n - 1) / (n - 1 + tuning.direct_tail) if op != "send_recv" else 1.0
        latency, ramps = np.zeros(len(groups.gpus)), []
        for inside, part, traffic in parts:
            floor = np.zeros(len(groups.gpus))
            floor[part.group] = setup if inside else tuning.network_latency
            wires = traffic.pattern.inside, traffic.pattern.across
            latency = np.max([latency, floor, *wires], axis=0)
            fill, knee = _fill(tuning, n, inside=inside)
            if op == "send_recv" or (inside and protocol == "ll"):
                fill = 0.0
            ramps.append(Ramp(share * tail * tuning.direct_efficiency, tuning.pair_efficiency, fill, knee))
        plans.append(Plan(op, "direct", protocol, (Phase(tuple(t for _, _, t in parts), latency, tuple(ramps)),)))
    return plans


def pairwise(groups: Groups, op: str, tuning: Tuning = PLAIN) -> list[Plan]:
    """Rounds in lock-step: in round r of n - 1 member i sends to member i + r, and the slowest pair ends the round."""
    count, n = groups.gpus.shape
    if op not in OPS or op == "send_recv":
        return []
    own, here = np.repeat(np.arange(count), n), np.tile(np.arange(n), count)
    phases = []
    for distance in range(1, n):
        there = (here + distance) % n
        share = groups.loads[here if op == "combine" else there] / n
        edges, wire = _scaled(Edges(own, groups.gpus.ravel(), groups.gpus[own, there], share))
        pattern = groups.lay(chosen(edges, edges.share > 0))
        latency = _set_up(pattern, tuning)
        ramp = Ramp(tuning.direct_efficiency, tuning.network_efficiency)
        phases.append(Phase((Traffic(pattern, wire),), latency, (ramp,)))
    return [Plan(op, "pairwise", "simple", tuple(phases))]


def two_hop(groups: Groups, op: str, tuning: Tuning = PLAIN) -> list[Plan]:
    """Each token crosses the network once per domain, to the member of equal position, and NVLink from there (DeepEP).

    A combine goes the same way back, summed before it crosses. Network and NVLink work at once on different tokens.
    `groups.crossing` is the part of the copies that cross. Source: DeepEP, normal kernels; DeepSeek-V3, arXiv
    2412.19437, section 3.2.2.
    """
    if op not in ("dispatch", "combine", "all_to_all") or not groups.shape.regular:
        return []
    edges = _pairs(groups, op)
    domain = groups.cluster.domain
    same = domain[edges.src] == domain[edges.dst]
    local = chosen(edges, same)
    far = chosen(edges, ~same)
    relays = _relays(groups, far, combine=op == "combine")
    traffic, ramps, latency = [], [], np.zeros(len(groups.gpus))
    first, second = (Edges(far.group, far.src, relays, far.share), Edges(far.group, relays, far.dst, far.share))
    forwards, crossing = (second, first) if op != "combine" else (first, second)
    moving = forwards.src != forwards.dst
    inside = together(local, chosen(forwards, moving))
    crossing = crossing._replace(share=crossing.share * groups.crossing)
    # NVLink sends one copy a destination, the network one a domain
    for part, (fill, knee) in (
        (inside, _fill(tuning, groups.shape.members, inside=True)),
        (crossing, _fill(tuning, groups.shape.members, inside=False)),
    ):
        if len(part.src):
            scaled, wire = _scaled(part)
            pattern = groups.lay(scaled)
            traffic.append(Traffic(pattern, wire))
            ramps.append(Ramp(tuning.direct_efficiency, tuning.network_efficiency, fill, knee))
            latency = np.maximum(latency, _set_up(pattern, tuning))
    return [Plan(op, "two_hop", "simple", (Phase(tuple(traffic), latency, tuple(ramps)),))]


def _relays(groups: Groups, far: Edges, *, combine: bool) -> IntArray:
    """The member of the far end's domain (of the near end's in a combine) in the other end's position."""
    ordered, count = groups.by_domain, groups.cluster.gpu_count
    position, block = np.full((len(groups.gpus), count), -1), np.full((len(groups.gpus), count), -1)
    own, blocks, places = np.indices(ordered.shape)
    position[own, ordered], block[own, ordered] = places, blocks
    at, towards = (far.dst, far.src) if combine else (far.src, far.dst)
    relays: IntArray = ordered[far.group, block[far.group, towards], position[far.group, at]]
    return relays


def _fill(tuning: Tuning, members: int, *, inside: bool) -> tuple[Seconds, Bytes]:
    if inside:
        return (members - 1) / members * tuning.direct_fill, tuning.direct_knee
    return tuning.network_fill, tuning.network_knee


def _set_up(pattern: Pattern, tuning: Tuning) -> FloatArray:
    floor = np.where(np.isfinite(pattern.solo_across), tuning.network_latency, tuning.direct_latency)
    longest: FloatArray = np.max([floor, pattern.inside, pattern.across], axis=0)
    return longest


def crossing_share(top_k: int, domains: int, limit: int | None = None) -> float:
    """Copies that cross in a two-hop dispatch over all copies to other domains.

    `top_k` experts drawn evenly over `domains`: a token reaches domains (1 - (1 - 1/domains)^top_k) of them at least
    once; node-limited routing (DeepSeek-V3, arXiv 2412.19437, section 2.1.2) draws them from `limit` domains.

    Examples
    --------
    >>> crossing_share(8, 8, 4)  # 256 experts on 8 nodes, at most 4 nodes: 4 · (1 - (3/4)^8) = 3.6 of 8 copies
    0.449943...
    """
    drawn = domains if limit is None else min(limit, domains)
    return min(1.0, drawn * (1 - (1 - 1 / drawn) ** top_k) / top_k)
