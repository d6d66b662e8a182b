"""Blueprints of machines whose nodes meet in tiers of switches.

    gpu17 - node2.nvswitch          kind nvlink      (nvl72: rack0.nvswitch)
    gpu17 - node2.nic1              kind pcie        Assumption: as fast as the NIC, so never the bottleneck alone
    node2.nic1 - leaf0.1            kind nic         leaf{group}.{rail}; leaf{n} in a fat tree
    node2.nic1 - leaf0.1.a          kind nic         dual plane: leaf{segment}.{rail}.{plane a, b, ...}
    leaf0.1 - spine3                kind leaf-spine  parallel cables are one edge with their capacity added up
    spine3 - core5                  kind spine-core

A switch's own latency is paid half on either side, so latencies add up along a path.

Limits: PCIe, CPU sockets and storage have no links of their own; a partly filled leaf has all its uplinks (as NVIDIA's
reference architectures advise); switch counts say how capacity is cut, ports need not come out whole.

Pinned by tests/physics/test_cluster.py and tests/physics/wiring/: published switch counts, capacities by hand.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from simulator.physics.wiring.blueprint import Blueprint, IntArray, Sort
from simulator.scenario.switched import DualPlane, FatTree, Nvl72, RailClos, Switched
from simulator.scenario.wires import Nic, ScaleUp


def facts_of(gpus_per_node: int, **facts: Any) -> dict[str, Any]:
    """What a graph as a whole is told; up-down routing by default."""
    return {"gpus_per_node": gpus_per_node, "in_network_reduction": False, "pxn": False, "routing": "up-down", **facts}


def _start(topology: Switched, per_domain: int, **facts: Any) -> Blueprint:
    if topology.routing == "ecmp":
        facts["ecmp_seed"] = topology.routing_seed
    blueprint = Blueprint(
        facts_of(topology.gpus_per_node, in_network_reduction=topology.scale_up.in_network_reduction, **facts)
    )
    add_boxes(blueprint, topology.gpus, topology.gpus_per_node, per_domain, topology.scale_up)
    return blueprint


def rail_clos(topology: RailClos) -> Blueprint:
    """Plan a rail-optimised Clos."""
    blueprint = _start(topology, topology.gpus_per_node, pxn=topology.pxn)
    _add_rails(blueprint, topology, topology.nic)
    return blueprint


def nvl72(topology: Nvl72) -> Blueprint:
    """Plan racks of one NVLink domain each, joined by rails where there are NICs."""
    blueprint = _start(topology, topology.gpus_per_rack, pxn=topology.pxn)
    if topology.nic is not None:
        _add_rails(blueprint, topology, topology.nic)
    return blueprint


def fat_tree(topology: FatTree) -> Blueprint:
    """Plan a fat tree over leaf switches that serve all NICs of their nodes."""
    blueprint = _start(topology, topology.gpus_per_node)
    count = math.ceil(topology.nodes / topology.nodes_per_leaf)
    nics = add_nics(blueprint, topology, topology.nic)
    leaves = blueprint.add_vertices("leaf", [f"leaf{i}" for i in range(count)])
    sort = _nic_sort(topology, topology.nic, ports=1)
    blueprint.add_links(sort, nics.reshape(-1), np.repeat(leaves[_groups(topology)], nics.shape[1]))
    pod = _leaf_groups_per_pod(topology)
    size = _Size(pod, topology.nodes_per_leaf * nics.shape[1], _port(topology, topology.nic))
    _add_upper_tiers(blueprint, topology, [leaves[start : start + pod] for start in range(0, count, pod)], size)
    return blueprint


def dual_plane(topology: DualPlane) -> Blueprint:
    """Plan a Clos in planes; NICs are where paths begin and end, as they choose the plane."""
    blueprint = _start(topology, topology.gpus_per_node, pxn=topology.pxn, access="nic")
    nics = add_nics(blueprint, topology, topology.nic)
    planes, rails, segments = topology.planes, nics.shape[1], math.ceil(topology.nodes / topology.nodes_per_leaf)
    names = [f"leaf{s}.{r}.{_letter(p)}" for s in range(segments) for r in range(rails) for p in range(planes)]
    leaves = blueprint.add_vertices("leaf", names).reshape(segments, rails, planes)
    own = leaves[_groups(topology)]  # [node, rail, plane]
    sort = _nic_sort(topology, topology.nic, ports=planes)
    for plane in range(planes):
        blueprint.add_links(sort, nics.reshape(-1), own[:, :, plane].reshape(-1))
    pod = _leaf_groups_per_pod(topology)
    groups = [
        leaves[start : start + pod, :, plane].reshape(-1)
        for start in range(0, segments, pod)
        for plane in range(planes)
    ]
    size = _Size(pod * rails, topology.nodes_per_leaf, _port(topology, topology.nic) / planes)
    _add_upper_tiers(blueprint, topology, groups, size)
    return blueprint


def _letter(plane: int) -> str:
    return chr(ord("a") + plane) if plane < 26 else str(plane)


class _Size(NamedTuple):
    """Leaves of a full spine group, ports down of a leaf, and bytes/s of a port of the fabric."""

    leaves: int
    ports_down: int
    port: float


def _port(topology: Switched, nic: Nic) -> float:
    return nic.bandwidth * nic.efficiency * topology.fabric_efficiency


def _nic_sort(topology: Switched, nic: Nic, *, ports: int) -> Sort:
    latency = nic.latency / 2 + topology.switch_latency / 2
    return Sort("nic", nic.bandwidth * nic.efficiency / ports, latency)


def _groups(topology: Switched) -> IntArray:
    """Group of leaves of every node."""
    return np.arange(topology.nodes) // topology.nodes_per_leaf


def _leaf_groups_per_pod(topology: Switched) -> int:
    return math.ceil((topology.nodes_per_pod or topology.nodes) / topology.nodes_per_leaf)


def add_boxes(blueprint: Blueprint, gpus: int, per_node: int, per_domain: int, scale_up: ScaleUp) -> None:
    """Add GPUs and the NVLink switch of every scale-up domain (a node, or a rack of nodes)."""
    box = "node" if per_domain == per_node else "rack"
    numbers = add_gpus(blueprint, gpus, per_node)
    switches = blueprint.add_vertices("nvswitch", [f"{box}{d}.nvswitch" for d in range(gpus // per_domain)])
    sort = Sort("nvlink", scale_up.bandwidth * scale_up.efficiency, scale_up.latency / 2)
    blueprint.add_links(sort, numbers, np.repeat(switches, per_domain))


def add_gpus(blueprint: Blueprint, gpus: int, per_node: int) -> IntArray:
    """Add GPUs; GPU g is number g % per_node of node g // per_node."""
    return blueprint.add_vertices("gpu", [f"gpu{g}" for g in range(gpus)], node=np.arange(gpus) // per_node)


def add_nics(blueprint: Blueprint, topology: Any, nic: Nic) -> IntArray:
    """Add NICs and their links to the GPUs, which have numbers 0, 1, ...; returns them. [node, NIC in it]."""
    count, per_node = nic.per_node or topology.gpus_per_node, topology.gpus_per_node
    nodes = topology.nodes
    numbers = blueprint.add_vertices(
        "nic",
        [f"node{n}.nic{i}" for n in range(nodes) for i in range(count)],
        node=np.repeat(np.arange(nodes), count),
        rail=np.tile(np.arange(count), nodes),
    ).reshape(nodes, count)
    own = np.arange(per_node) * count // per_node
    sort = Sort("pcie", nic.bandwidth * nic.efficiency, 0.0)
    blueprint.add_links(sort, np.arange(topology.gpus), numbers[:, own].reshape(-1))
    return numbers


def _add_rails(blueprint: Blueprint, topology: RailClos | Nvl72, nic: Nic) -> None:
    """Add NICs, a leaf per rail and group of nodes, and the tiers above."""
    nics = add_nics(blueprint, topology, nic)
    rails, groups = nics.shape[1], math.ceil(topology.nodes / topology.nodes_per_leaf)
    names = [f"leaf{q}.{r}" for q in range(groups) for r in range(rails)]
    leaves = blueprint.add_vertices("leaf", names).reshape(groups, rails)
    sort = _nic_sort(topology, nic, ports=1)
    blueprint.add_links(sort, nics.reshape(-1), leaves[_groups(topology)].reshape(-1))
    pod = _leaf_groups_per_pod(topology)
    planes = [[r] for r in range(rails)] if topology.spine_groups == "per_rail" else [list(range(rails))]
    spine_groups = [
        leaves[start : start + pod, plane].reshape(-1) for start in range(0, groups, pod) for plane in planes
    ]
    size = _Size(pod * len(planes[0]), topology.nodes_per_leaf, _port(topology, nic))
    _add_upper_tiers(blueprint, topology, spine_groups, size)


def _add_upper_tiers(blueprint: Blueprint, topology: Switched, groups: list[IntArray], size: _Size) -> None:
    """Add spines over every group of leaves and cores over the spines, every switch sized as in a full group."""
    if topology.tiers == 1:
        return
    down_over_up = (*topology.oversubscription, 1.0, 1.0)
    leaf_up = size.ports_down / down_over_up[0]
    spines = topology.spines or _count_spines(topology, size.leaves, leaf_up, down_over_up[1])
    names = [f"spine{j}" for j in range(spines * len(groups))]
    numbers = blueprint.add_vertices("spine", names).reshape(len(groups), spines)
    blueprint.add_links(
        Sort("leaf-spine", size.port * leaf_up / spines, topology.switch_latency),
        np.concatenate([np.repeat(leaves, spines) for leaves in groups]),
        np.concatenate([np.tile(own, len(leaves)) for own, leaves in zip(numbers, groups, strict=True)]),
    )
    if topology.tiers == 2:
        return
    spine_up = size.leaves * leaf_up / spines / down_over_up[1]
    cores = topology.cores or _count_cores(topology, len(groups), spines, spine_up)
    # Spine j of a group meets the cores c with c = j mod planes: as planes divides both counts, every core meets
    # equally many spines of every group.
    planes = math.gcd(spines, cores)
    tops = blueprint.add_vertices("core", [f"core{c}" for c in range(cores)])
    own = tops.reshape(-1, planes).T[np.arange(spines) % planes]  # cores of spine j [spines, cores / planes]
    blueprint.add_links(
        Sort("spine-core", size.port * spine_up * planes / cores, topology.switch_latency),
        np.repeat(numbers.reshape(-1), cores // planes),
        np.tile(own.reshape(-1), len(groups)),
    )


def _count_spines(topology: Switched, leaves: int, leaf_up: float, down_over_up: float) -> int:
    """Spines of a group by ports: enough of them, and as many cables of a leaf to each where that is possible.

    Gives the counts of NVIDIA's DGX H100 and B200 SuperPOD reference architectures (compute fabric component counts).
    """
    ports = topology.switch_ports or 1
    ports_down = ports if topology.tiers == 2 else ports * down_over_up / (1 + down_over_up)
    least = math.ceil(leaves * leaf_up / ports_down - 1e-9)
    cables = round(leaf_up)
    return next((s for s in range(least, cables + 1) if cables % s == 0), least)


def _count_cores(topology: Switched, groups: int, spines: int, spine_up: float) -> int:
    """Core switches by ports; where a spine has too few cables for all cores of its class, whole planes of them."""
    least = math.ceil(groups * spines * spine_up / (topology.switch_ports or 1) - 1e-9)
    if least / math.gcd(spines, least) <= math.ceil(spine_up - 1e-9):
        return least
    return math.ceil(least / spines) * spines
