"""Descriptions of machines whose nodes meet in tiers of switches: Clos networks, fat trees, dual planes.

Switch counts may be given or left to `switch_ports`: the counts then follow from the ports, as they do in NVIDIA's
SuperPOD tables.

Limits: every node alike; one NIC serves one or more GPUs, never the other way round.

Pinned by tests/scenario/test_topology.py.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, PositiveInt, model_validator

from simulator.scenario.units import SecondsField
from simulator.scenario.wires import Citation, Fraction, Nic, Ratio, Routed, ScaleUp, check_nic


class _Tiers(Routed):
    """Leaf, spine and core switches above the NICs.

    Attributes
    ----------
    nodes_per_leaf
        Nodes under one leaf switch (fat tree) or one group of leaf switches, one per rail (the scalable unit).
    tiers
        1: leaves only; 2: leaves and spines; 3: leaves, spines and cores.
    nodes_per_pod
        Nodes whose leaves share spines; all of them if left out. More than one pod needs a core tier.
    spines
        Spine switches in one spine group: per pod, and per rail if `spine_groups` says so, or per plane.
    cores
        Core switches in all.
    switch_ports
        Ports of a switch at NIC speed: gives `spines` and `cores` where they are left out.
    oversubscription
        Bandwidth down over bandwidth up, of a leaf and (three tiers) of a spine; 1 where left out.
    switch_latency
        Port to port, with its share of the cables.
    fabric_efficiency
        Share of the links between switches that load balancing reaches, on top of the NIC's efficiency.
    """

    nodes_per_leaf: PositiveInt
    tiers: Literal[1, 2, 3] = 2
    nodes_per_pod: PositiveInt | None = None
    spines: PositiveInt | None = None
    cores: PositiveInt | None = None
    switch_ports: PositiveInt | None = None
    oversubscription: tuple[Ratio, ...] = ()
    switch_latency: SecondsField = 0.0
    fabric_efficiency: Fraction = 1.0
    source: Citation = None


class _Nodes(_Tiers):
    """Nodes of one scale-up domain each, all with NICs."""

    nodes: PositiveInt
    gpus_per_node: PositiveInt = 8
    scale_up: ScaleUp
    nic: Nic

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node


class _Rails(_Tiers):
    """One leaf switch per rail: NIC number r of every node of a group hangs on leaf r.

    Attributes
    ----------
    spine_groups
        `shared`: every leaf of a pod reaches all its spines; `per_rail`: only the spines of its own rail.
    pxn
        To reach another rail, hand over through NVLink to the GPU of that rail in the own node first (NCCL's PXN,
        since NCCL 2.12). Without it the traffic changes rail in the spines.
    """

    spine_groups: Literal["shared", "per_rail"] = "shared"
    pxn: bool = True


class RailClos(_Nodes, _Rails):
    """A rail-optimised Clos of nodes with one scale-up domain each (DGX and HGX SuperPODs)."""

    kind: Literal["rail_clos"]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _check_fabric(self, self.nic)
        return self


class DualPlane(_Nodes):
    """A rail-optimised Clos in planes: each NIC has a port in every plane, each to a leaf of its own (dual ToR).

    Leaves of a plane reach only the spines of that plane; traffic splits over the planes. As in Alibaba HPN (Qian et
    al., SIGCOMM 2024). `nodes_per_leaf` are the nodes of a segment; `spines` counts per pod and plane.
    """

    kind: Literal["dual_plane"]
    planes: Annotated[int, Field(ge=2)] = 2
    pxn: bool = True

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _check_fabric(self, self.nic)
        return self


class Nvl72(_Rails):
    """Racks whose GPUs are one NVLink domain, over trays of a few GPUs, in a rail-optimised Clos.

    `nodes_per_leaf` and `nodes_per_pod` count trays; the rails are the NICs of a tray. Racks without `nic` are not
    connected with each other.
    """

    kind: Literal["nvl72"]
    racks: PositiveInt = 1
    gpus_per_rack: PositiveInt = 72
    gpus_per_node: PositiveInt = 4
    scale_up: ScaleUp
    nic: Nic | None = None
    nodes_per_leaf: PositiveInt = 18

    @property
    def nodes(self) -> int:
        """Trays in all."""
        return self.gpus // self.gpus_per_node

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.racks * self.gpus_per_rack

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.gpus_per_rack % self.gpus_per_node:
            raise ValueError(
                f"gpus_per_rack {self.gpus_per_rack} is not a multiple of gpus_per_node {self.gpus_per_node}"
            )
        if self.nic is not None:
            _check_fabric(self, self.nic)
        return self


class FatTree(_Nodes):
    """A fat tree: one leaf (top-of-rack) switch serves all NICs of its nodes. `spines` counts per pod."""

    kind: Literal["fat_tree"]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _check_fabric(self, self.nic)
        return self


Switched: TypeAlias = RailClos | DualPlane | Nvl72 | FatTree
"""Every family with tiers of switches."""


def _check_fabric(topology: Switched, nic: Nic) -> None:
    """Refuse counts that contradict each other, and a top tier that leaves nodes apart."""
    check_nic(nic, topology.gpus_per_node)
    _check_tiers(topology)
    nodes, pod = topology.nodes, topology.nodes_per_pod
    if topology.nodes_per_leaf > nodes and not isinstance(topology, Nvl72):
        raise ValueError(
            f"nodes_per_leaf {topology.nodes_per_leaf} is more than the {nodes} nodes; use at most {nodes}"
        )
    if topology.tiers == 1 and nodes > topology.nodes_per_leaf:
        raise ValueError(
            f"tiers: 1 connects nodes_per_leaf {topology.nodes_per_leaf} of {nodes} nodes; "
            "use tiers: 2, or nodes_per_leaf of all nodes"
        )
    if topology.tiers == 2 and pod is not None and nodes > pod:
        raise ValueError(
            f"tiers: 2 leaves pods of {pod} among {nodes} nodes apart; use tiers: 3, or leave nodes_per_pod out"
        )


def _check_tiers(fabric: Switched) -> None:
    """Refuse counts and ratios for tiers that are not there, and tiers without counts."""
    upper = fabric.tiers - 1
    if len(fabric.oversubscription) > upper:
        raise ValueError(
            f"oversubscription {list(fabric.oversubscription)} has {len(fabric.oversubscription)} ratios; "
            f"tiers: {fabric.tiers} has room for {upper}, bottom first"
        )
    for name, tier in (("spines", 2), ("cores", 3)):
        count = getattr(fabric, name)
        if count is not None and fabric.tiers < tier:
            raise ValueError(f"{name}: {count} needs tiers of at least {tier}, not {fabric.tiers}")
        if count is None and fabric.tiers >= tier and fabric.switch_ports is None:
            raise ValueError(f"tiers: {fabric.tiers} needs {name}, or switch_ports to count them from")
    if fabric.nodes_per_pod is not None and fabric.nodes_per_pod % fabric.nodes_per_leaf:
        raise ValueError(
            f"nodes_per_pod {fabric.nodes_per_pod} is not a multiple of nodes_per_leaf {fabric.nodes_per_leaf}"
        )
