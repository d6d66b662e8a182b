"""Blueprints of boxes, tori, dragonflies, and of graphs that are written out.

    gpu0 - gpu3                     kind nvlink      cube mesh, full mesh; a double link is one edge of twice the rate
    gpu0 - gpu1                     kind ici         torus
    node2.nic1 - router0.3          kind nic         dragonfly: router{group}.{number in the group}
    router0.3 - router0.1           kind local
    router0.3 - router5.2           kind global

Pinned by tests/physics/wiring/test_families.py: link counts of DGX-1, of TPU v4 and of the dragonfly's paper.
"""

from __future__ import annotations

import numpy as np

from simulator.errors import TopologyError
from simulator.physics.wiring.blueprint import Blueprint, IntArray, Sort
from simulator.physics.wiring.switched import add_boxes, add_gpus, add_nics, facts_of
from simulator.scenario.direct import Dragonfly, Explicit, NvlinkBox, Torus

# Links between every two GPUs of a DGX-1 with V100: six a GPU, in two quads with rungs between them; NVIDIA, "DGX-1
# With Tesla V100 System Architecture", WP-08437-002 (hybrid cube mesh); numbered as `nvidia-smi topo -m` does.
CUBE_MESH = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2, (2, 6): 1, (3, 7): 1,
    (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip
_CUBE_MESH_LINKS = 6


def nvlink_box(topology: NvlinkBox) -> Blueprint:
    """Plan boxes of GPUs, apart from each other: round an NVLink switch, or linked with one another."""
    scale_up, size = topology.scale_up, topology.gpus_per_node
    if topology.fabric == "nvswitch":
        blueprint = Blueprint(facts_of(size, in_network_reduction=scale_up.in_network_reduction))
        add_boxes(blueprint, topology.gpus, size, size, scale_up)
        return blueprint
    blueprint = Blueprint(facts_of(size, routing="shortest"))
    add_gpus(blueprint, topology.gpus, size)
    pairs = {(a, b): 1 for a in range(size) for b in range(a + 1, size)}
    links = size - 1
    if topology.fabric == "cube_mesh":
        pairs, links = CUBE_MESH, _CUBE_MESH_LINKS
    boxes = size * np.arange(topology.nodes)
    for (a, b), count in pairs.items():
        rate = scale_up.bandwidth * scale_up.efficiency * count / links
        blueprint.add_links(Sort("nvlink", rate, scale_up.latency), boxes + a, boxes + b)
    return blueprint


def torus(topology: Torus) -> Blueprint:
    """Plan a grid of chips with a link to both neighbours in every dimension."""
    routing = "torus" if topology.routing == "dimension_order" else "shortest"
    blueprint = Blueprint(
        facts_of(topology.gpus_per_node, routing=routing, dims=topology.dims, wraps=topology.wraps, one_domain=True)
    )
    chips = add_gpus(blueprint, topology.gpus, topology.gpus_per_node)
    grid = chips.reshape(topology.dims[::-1])  # x varies fastest
    sort = Sort("ici", topology.link.bandwidth * topology.link.efficiency, topology.link.latency)
    for d, wrap in enumerate(topology.wraps):
        axis = len(topology.dims) - 1 - d
        after = np.roll(grid, -1, axis=axis)
        keep = slice(None) if wrap else slice(0, -1)
        index = tuple(keep if a == axis else slice(None) for a in range(grid.ndim))
        blueprint.add_links(sort, grid[index].reshape(-1), after[index].reshape(-1))
    return blueprint


def dragonfly(topology: Dragonfly) -> Blueprint:
    """Plan groups of routers, joined inside completely and with each other by equally many global links."""
    facts = facts_of(
        topology.gpus_per_node,
        in_network_reduction=topology.scale_up.in_network_reduction,
        pxn=topology.pxn,
        transit=True,
    )
    if topology.routing == "ecmp":
        facts["ecmp_seed"] = topology.routing_seed
    blueprint, nic = Blueprint(facts), topology.nic
    add_boxes(blueprint, topology.gpus, topology.gpus_per_node, topology.gpus_per_node, topology.scale_up)
    nics = add_nics(blueprint, topology, nic)
    groups, size = topology.groups, topology.routers_per_group
    routers = blueprint.add_vertices(
        "router",
        [f"router{g}.{r}" for g in range(groups) for r in range(size)],
        group=np.repeat(np.arange(groups), size),
    )
    rate = nic.bandwidth * nic.efficiency
    own = np.repeat(routers, topology.nodes_per_router * nics.shape[1])
    blueprint.add_links(Sort("nic", rate, nic.latency / 2 + topology.switch_latency / 2), nics.reshape(-1), own)
    a, b = np.triu_indices(size, 1)
    grid = routers.reshape(groups, size)
    share = nic.efficiency * topology.fabric_efficiency
    local = (topology.local_bandwidth or nic.bandwidth) * share
    blueprint.add_links(Sort("local", local, topology.switch_latency), grid[:, a].reshape(-1), grid[:, b].reshape(-1))
    _add_global_links(blueprint, topology, grid, (topology.global_bandwidth or nic.bandwidth) * share)
    return blueprint


def _add_global_links(blueprint: Blueprint, topology: Dragonfly, routers: IntArray, rate: float) -> None:
    """Join every two groups: port k of group g goes to group g + 1 + k mod (groups - 1), round and round.

    The consecutive ("palm tree") order of Camarero, Vallejo, Beivide, "Topological characterization of Hamming and
    dragonfly networks", ACM TACO 2014; ports that do not suffice for one more link to every group stay unused.
    """
    others = topology.groups - 1
    if others == 0:
        return
    copies = topology.routers_per_group * topology.global_links // others
    cables: dict[tuple[int, int], int] = {}
    for group in range(topology.groups):
        for other in range(group + 1, topology.groups):
            for copy in range(copies):
                there = (copy * others + other - group - 1) // topology.global_links
                back = (copy * others + group - other - 1 + topology.groups) // topology.global_links
                cable = int(routers[group, there]), int(routers[other, back])
                cables[cable] = cables.get(cable, 0) + 1
    latency = topology.switch_latency + topology.global_latency
    ends, count = np.array(list(cables)), np.array(list(cables.values()))
    for parallel in np.unique(count).tolist():
        chosen = ends[count == parallel]
        blueprint.add_links(Sort("global", rate * parallel, latency), chosen[:, 0], chosen[:, 1])


def explicit(topology: Explicit) -> Blueprint:
    """Plan the graph that is written out.

    Raises
    ------
    TopologyError
        For a vertex or link named twice, a link to itself or to an unknown vertex (where the description was made
        without being checked).
    """
    facts = facts_of(topology.gpus_per_node, routing="shortest")
    if topology.routing == "ecmp":
        facts["ecmp_seed"] = topology.routing_seed
    blueprint = Blueprint(facts)
    add_gpus(blueprint, topology.gpus, topology.gpus_per_node)
    blueprint.add_vertices("switch", topology.switches)
    number = {name: i for i, name in enumerate(blueprint.names)}
    if len(number) < len(blueprint.names):
        raise TopologyError("a switch is there twice, or named as a GPU")
    wires: dict[Sort, list[tuple[int, int]]] = {}
    for link in topology.links:
        a, b = link.between
        if a not in number or b not in number:
            raise TopologyError(f"link {a} - {b} names an unknown element")
        sort = Sort(link.kind, link.bandwidth * link.efficiency, link.latency)
        wires.setdefault(sort, []).append((number[a], number[b]))
    for sort, pairs in wires.items():
        ends = np.array(pairs)
        blueprint.add_links(sort, ends[:, 0], ends[:, 1])
    return blueprint
