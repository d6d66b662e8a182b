"""The machine: which GPUs there are and what connects them, as one frozen description per topology family.

A topology is told by `kind`; simulator/scenario/switched.py and simulator/scenario/direct.py describe the families. It
counts nodes, NICs and switches and gives bandwidths, latencies and efficiencies; `simulator/physics/wiring/` turns it
into a graph. A cluster adds the accelerator, storage and price.

Limits: every node alike; latency is that of wires and switches, not of the software.

Pinned by tests/scenario/test_topology.py.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field

from simulator.scenario.direct import Dragonfly, Explicit, NvlinkBox, Torus
from simulator.scenario.switched import DualPlane, FatTree, Nvl72, RailClos
from simulator.scenario.units import BandwidthField, HourlyPriceField
from simulator.scenario.wires import Citation, Description

Topology: TypeAlias = Annotated[
    NvlinkBox | Nvl72 | RailClos | FatTree | DualPlane | Torus | Dragonfly | Explicit, Field(discriminator="kind")
]
"""Every family; `kind` tells them apart."""


class Storage(Description):
    """Bandwidth of the shared file system over all nodes together."""

    write_bandwidth: BandwidthField
    read_bandwidth: BandwidthField
    source: Citation = None


class Cluster(Description):
    """A machine: what computes, what connects, what stores, what it costs.

    Attributes
    ----------
    accelerator
        Name in the catalogue of accelerators, or its description inline (kept as given).
    source
        Where the numbers come from, or that they are assumed.
    """

    name: str
    description: str = ""
    accelerator: str | dict[str, Any]
    topology: Topology
    storage: Storage | None = None
    price_per_gpu_hour: HourlyPriceField | None = None
    source: Citation = None

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.topology.gpus

    @property
    def platform(self) -> str:
        """Name of the accelerator."""
        given = self.accelerator
        return given if isinstance(given, str) else str(given.get("name", "inline"))
