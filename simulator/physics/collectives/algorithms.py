"""Algorithms of reductions and gathers: rings, trees, NVLS, two levels; and the list of candidates.

Every algorithm is a function (groups, op, tuning) → one plan per protocol, or none where it does not apply. Messages
are exchanged in `exchanges`; time is what `plans` makes of it all.

Pinned by tests/physics/collectives/test_algorithms.py.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable

import numpy as np

from simulator.errors import LayoutError
from simulator.physics.collectives.exchanges import OPS as EXCHANGES
from simulator.physics.collectives.exchanges import direct, pairwise, two_hop
from simulator.physics.collectives.groups import FloatArray, Groups, Pattern, rails
from simulator.physics.collectives.plans import Phase as Phase
from simulator.physics.collectives.plans import Plan as Plan
from simulator.physics.collectives.plans import Ramp, Traffic
from simulator.physics.collectives.plans import busbw_factor as busbw_factor
from simulator.physics.collectives.plans import choose as choose
from simulator.physics.collectives.plans import phase_latency as phase_latency
from simulator.physics.collectives.plans import rate_cap as rate_cap
from simulator.physics.collectives.plans import solo_time as solo_time
from simulator.physics.collectives.tuning import PLAIN, Tuning, tuning_of
from simulator.scenario.units import BytesPerSecond, Seconds

# --- NCCL's constants ------------------------------------------------------------------------------------------------

PROTOCOLS = ("simple", "ll128", "ll")
TREE_SHARE = {"simple": 0.92, "ll128": 0.92 * 120 / 128, "ll": 0.92 / 3.8}
"""Bandwidth that a tree leaves in each protocol. Source: NVIDIA/nccl, src/graph/tuning.cc, ncclTopoTuneModel."""

BASE = {
    ("ring", "simple"): 8.4e-6, ("ring", "ll128"): 14.0e-6, ("ring", "ll"): 6.6e-6,
    ("tree", "simple"): 8.4e-6, ("tree", "ll128"): 14.0e-6, ("tree", "ll"): 6.8e-6,
    ("pat", "simple"): 8.0e-6,
}  # fmt: skip
NVLINK_HOP = {
    ("ring", "simple"): 3.4e-6, ("ring", "ll128"): 1.9e-6, ("ring", "ll"): 0.6e-6,
    ("tree", "simple"): 4.0e-6, ("tree", "ll128"): 1.25e-6, ("tree", "ll"): 0.6e-6,
}  # fmt: skip
NETWORK_HOP = {
    ("ring", "simple"): 14.0e-6, ("ring", "ll128"): 4.0e-6, ("ring", "ll"): 2.7e-6,
    ("tree", "simple"): 14.0e-6, ("tree", "ll128"): 8.5e-6, ("tree", "ll"): 5.0e-6,
    ("nvls_tree", "simple"): 20.9e-6, ("pat", "simple"): 14.0e-6,
}  # fmt: skip
"""Seconds of set-up and per hop. Source: NVIDIA/nccl, src/graph/tuning.cc, baseLat and hwLat tables."""

LL_BUS_BANDWIDTH = (30.7e9, 19.7e9)
"""Bytes/s of bus bandwidth that LL moves over two domains, and over more. Source: NVIDIA/nccl, src/graph/tuning.cc,
llMaxBws, the mean of hosts by Intel and AMD."""

USUAL_WIRE: Seconds = 1.0e-6
"""Wire between two NICs that NCCL's constants hold already. Assumption: two InfiniBand NICs (0.6 µs) and three switches
of 130 ns (NVIDIA QM9700 datasheet); a longer wire adds what it has more."""


LL128_WIRE: Seconds = 10e-6
"""Longest wire of a network on which LL128 runs: it needs 128-byte stores to arrive whole, which longer ones (EFA,
through libfabric) do not promise. Assumption: as aws-ofi-nccl sets protocols on its older instances."""


# --- latency ---------------------------------------------------------------------------------------------------------


def _hops(groups: Groups, key: tuple[str, str], edges: Pattern, tuning: Tuning) -> tuple[FloatArray, FloatArray]:
    """Seconds of a hop inside a domain and across [G]: NCCL's constants hold a usual wire, a longer one adds to it."""
    factor = tuning.hop if key[1] == "ll" else tuning.bulk_hop
    inside = np.maximum(factor * NVLINK_HOP[key], edges.inside)
    return inside, _network_hop(tuning.network_hop * NETWORK_HOP[key], edges)


def _network_hop(constant: Seconds, edges: Pattern) -> FloatArray:
    return constant + np.maximum(0.0, edges.across - USUAL_WIRE)


def _network_fill(edges: Pattern, tuning: Tuning) -> Seconds:
    """Time to fill a hop across the network: a chunk's own, and a round trip of a wire longer than usual."""
    return tuning.network_fill + 2 * max(0.0, float(edges.across.max(initial=0.0)) - USUAL_WIRE)


def _most(groups: Groups, protocol: str, bus: float) -> BytesPerSecond:
    """Largest rate of a pattern whose bus bandwidth is `bus` times its rate."""
    domains = groups.shape.domains
    return math.inf if protocol != "ll" or domains == 1 else LL_BUS_BANDWIDTH[min(domains, 3) - 2] / bus


def _protocols(edges: Pattern) -> tuple[str, ...]:
    return PROTOCOLS if edges.across.max(initial=0.0) <= LL128_WIRE else ("simple", "ll")


def _depth(domains: int) -> int:
    return math.floor(math.log2(domains))


# --- algorithms ------------------------------------------------------------------------------------------------------

RING_ROUNDS = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "broadcast": 1}


def _ring_phase(groups: Groups, edges: Pattern, op: str, protocol: str, tuning: Tuning, part: float = 1.0) -> Phase:
    """A ring on a part of the size. The tail are copies that no other GPU waits for but the last."""
    key, shape, rounds = ("ring", protocol), groups.shape, RING_ROUNDS[op]
    steps, across = rounds * (shape.members - 1), rounds * (shape.domains - 1)
    inside_hop, network_hop = _hops(groups, key, edges, tuning)
    latency = tuning.base * BASE[key] + (steps - across) * inside_hop + across * network_hop
    wire = 1.0 if op == "broadcast" else steps / shape.members
    share = {"simple": 1.0, "ll128": tuning.ll128_share, "ll": tuning.ll_share}[protocol]
    tail = steps / (steps + tuning.ring_tail) if op != "broadcast" else 1.0
    fill, knee = 0.0, 0.0
    if protocol == "simple":
        fill = (steps - across) * tuning.ring_fill + across * _network_fill(edges, tuning)
    elif protocol == "ll128":
        fill = across * _network_fill(edges, tuning)
    if fill:
        knee = shape.members * tuning.ring_knee / part
    most = _most(groups, protocol, 1.0)
    ramp = Ramp(share * tail * tuning.ring_efficiency, share * tuning.network_efficiency, fill, knee, most)
    return Phase((Traffic(edges, wire * part),), latency, (ramp,))


def ring(groups: Groups, op: str, tuning: Tuning = PLAIN) -> list[Plan]:
    """Ring: each edge carries (n-1)/n of the size, twice for an all-reduce; a broadcast's carries all of it."""
    if op not in RING_ROUNDS:
        return []
    edges = groups.ring_edges
    return [Plan(op, "ring", each, (_ring_phase(groups, edges, op, each, tuning),)) for each in _protocols(edges)]


def tree(groups: Groups, op: str, tuning: Tuning = PLAIN) -> list[Plan]:
    """Double binary tree over domains, chains inside: all-reduce only, every byte goes up and down once."""
    shape = groups.shape
    if op != "all_reduce" or shape.domains == 1 or not shape.regular:
        return []
    edges, plans, depth = groups.tree_edges, [], _depth(shape.domains)
    for protocol in _protocols(edges):
        key = ("tree", protocol)
        hop, network_hop = _hops(groups, key, edges, tuning)
        latency = tuning.base * BASE[key] + 2 * ((shape.local - 1) * hop + depth * network_hop)
        share = TREE_SHARE[protocol]
        fill = 2 * (depth * _network_fill(edges, tuning) + (shape.local - 1) * tuning.ring_fill)
        inside, across = share * tuning.ring_efficiency, share * tuning.network_efficiency
        ramp = Ramp(
            inside, across, fill if protocol != "ll" else 0.0, tuning.network_knee, _most(groups, protocol, 2.0)
        )
        plans.append(Plan(op, "tree", protocol, (Phase((Traffic(edges, 1.0),), latency, (ramp,)),)))
    return plans


NVLS_WIRE: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 1 + 1 / rails(n),
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
}


def nvls(groups: Groups, op: str, tuning: Tuning = PLAIN) -> list[Plan]:
    """NVLink SHARP inside one scale-up domain: the switch sums and multicasts, each GPU moves (1 + 1/n) of the size."""
    if op not in NVLS_WIRE or groups.shape.domains > 1 or not groups.cluster.in_network_reduction:
        return []
    edges = groups.ring_edges
    more = groups.shape.members / 8
    ramp = Ramp(tuning.nvls_efficiency, tuning.nvls_efficiency, more * tuning.nvls_fill, more * tuning.nvls_knee)
    latency = np.maximum(tuning.nvls_latency, edges.inside)
    traffic = Traffic(edges, NVLS_WIRE[op](groups.shape.members))
    return [Plan(op, "nvls", "simple", (Phase((traffic,), latency, (ramp,)),))]


def nvls_tree(groups: Groups, op: str, tuning: Tuning = PLAIN) -> list[Plan]:
    """NVLink SHARP inside the domains, a double binary tree between them on every rail: all-reduce."""
    shape = groups.shape
    if op != "all_reduce" or shape.domains == 1 or shape.local == 1 or not shape.regular:
        return []
    if not groups.cluster.in_network_reduction:
        return []
    edges, depth = groups.nvls_tree_edges, _depth(shape.domains)
    hop = _network_hop(tuning.network_hop * NETWORK_HOP["nvls_tree", "simple"], edges)
    latency = tuning.nvls_latency + 2 * depth * hop
    more = shape.local / 8
    fill = more * tuning.nvls_fill + 2 * depth * _network_fill(edges, tuning)
    knee = more * tuning.nvls_knee + tuning.network_knee
    ramp = Ramp(tuning.nvls_efficiency, tuning.network_efficiency, fill, knee)
    return [Plan(op, "nvls_tree", "simple", (Phase((Traffic(edges, 1.0),), latency, (ramp,)),))]


def pat(groups: Groups, op: str, tuning: Tuning = PLAIN) -> list[Plan]:
    """Parallel aggregated trees over domains of one member each, in about log2 n steps: all-gather and its mirror.

    Source of latency and of the 3/4 of the bandwidth: NVIDIA/nccl, src/graph/tuning.cc.
    """
    shape = groups.shape
    if op not in ("all_gather", "reduce_scatter") or shape.domains < shape.members:
        return []
    edges, n = groups.jump_edges, shape.members
    hop = _network_hop(tuning.network_hop * NETWORK_HOP["pat", "simple"], edges)
    latency = tuning.base * BASE["pat", "simple"] + _depth(n) * hop / 3.5 + 2.8e-6 * n
    share = 0.75 * tuning.network_efficiency
    return [Plan(op, "pat", "simple", (Phase((Traffic(edges, (n - 1) / n),), latency, (Ramp(share, share),)),))]


def hierarchical(groups: Groups, op: str, tuning: Tuning = PLAIN) -> list[Plan]:
    """Reduce-scatter inside each domain, the collective across domains rail by rail, all-gather inside."""
    shape = groups.shape
    if op not in NVLS_WIRE or shape.domains == 1 or shape.local == 1 or not shape.regular:
        return []
    plans = []
    for protocol in _protocols(groups.outer.ring_edges):
        inner = [
            _on_behalf(_ring_phase(groups.inner, groups.inner.ring_edges, each, protocol, tuning), groups, 0, 1.0)
            for each in ("reduce_scatter", "all_gather")
        ]
        outer = _ring_phase(groups.outer, groups.outer.ring_edges, op, protocol, tuning, 1 / shape.local)
        across = _on_behalf(outer, groups, 1, 1.0)
        before = inner[:1] if op != "all_gather" else []
        after = inner[1:] if op != "reduce_scatter" else []
        plans.append(Plan(op, "hierarchical", protocol, (*before, across, *after)))
    return plans


def _on_behalf(phase: Phase, groups: Groups, level: int, part: float) -> Phase:
    """A phase of the inner (level 0) or outer (1) groups of each of ours, as a phase of ours."""
    pattern = (groups.inner_ring_edges, groups.outer_ring_edges)[level]
    latency = phase.latency.reshape(len(groups.gpus), -1).max(axis=1)
    return Phase((Traffic(pattern, phase.traffic[0].wire * part),), latency, phase.ramps)


# --- the candidates --------------------------------------------------------------------------------------------------

ALGORITHMS: dict[str, Callable[..., list[Plan]]] = {
    "ring": ring,
    "tree": tree,
    "nvls": nvls,
    "nvls_tree": nvls_tree,
    "pat": pat,
    "hierarchical": hierarchical,
    "direct": direct,
    "pairwise": pairwise,
    "two_hop": two_hop,
}

NCCL = ("ring", "tree", "nvls", "nvls_tree", "pat", "direct")
"""What NCCL chooses from; the others have to be asked for."""

OPS = (*RING_ROUNDS, *EXCHANGES)


def candidates(groups: Groups, op: str, algorithms: Iterable[str] = NCCL, tuning: Tuning | None = None) -> list[Plan]:
    """Every way in which these algorithms run `op` on the groups.

    Raises
    ------
    LayoutError
        For an unknown operation or algorithm, or where none of the algorithms can run it on groups of this shape.
    """
    names = tuple(algorithms)
    if op not in OPS:
        raise LayoutError(_unknown("collective", op, OPS))
    for name in names:
        if name not in ALGORITHMS:
            raise LayoutError(_unknown("algorithm", name, tuple(ALGORITHMS)))
    tuning = tuning_of(groups.cluster.platform) if tuning is None else tuning
    plans = [plan for name in names for plan in ALGORITHMS[name](groups, op, tuning)]
    if plans:
        return plans
    able = [name for name, algorithm in ALGORITHMS.items() if name not in names and algorithm(groups, op, tuning)]
    shape = groups.shape
    lie = f"{shape.members} GPUs over {shape.domains} scale-up domains"
    even = "" if shape.regular else ", unevenly"
    raise LayoutError(f"{' and '.join(names)} cannot run {op} on {lie}{even}; able to: {', '.join(able) or 'none'}")


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is not a known {what}: {', '.join(known)}{hint}"
