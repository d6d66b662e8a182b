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
from simulator.scenario.hardware import ENTRY_SUFFIXES, find_accelerator, read_accelerators
from simulator.scenario.hosts import Host, read_hosts
from simulator.scenario.switched import DualPlane, FatTree, Nvl72, RailClos
from simulator.scenario.units import BandwidthField, EnergyPriceField, HourlyPriceField, PowerField, Watts
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


class Power(Description):
    """What a GPU of the cluster draws, with its share of everything around it.

    Attributes
    ----------
    per_gpu
        While training; left out: the accelerator's thermal design power. [W]
    host_per_gpu
        A GPU's share of its node beside the GPUs, and of the network. [W]
    idle
        Part of both that is drawn while the GPU does not train.
    pue
        Power of the whole site over that of its computers.
    price_per_kwh
        Of energy. [USD/kWh]
    """

    per_gpu: PowerField | None = None
    # A DGX H100 draws 10.2 kW at most (NVIDIA's datasheet), 8 x 700 W of it in its GPUs: 575 W a GPU for the rest.
    # Assumption: half of that in training.
    host_per_gpu: PowerField = 300.0
    # Assumption: an idle H100 draws some 100 W of 700 W, its host and fans more than that part.
    idle: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.3
    # GPT-3's site as estimated by Patterson et al. 2021 (arXiv 2104.10350, Table 4).
    pue: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] = 1.1
    price_per_kwh: EnergyPriceField | None = None
    source: Citation = None

    def drawn(self, tdp: Watts) -> tuple[Watts, Watts]:
        """Watts of the site per GPU that trains, and per one that does not.

        Parameters
        ----------
        tdp
            Thermal design power of the accelerator, where `per_gpu` is left out. [W]
        """
        gpu = tdp if self.per_gpu is None else self.per_gpu
        busy = (gpu + self.host_per_gpu) * self.pue
        return busy, busy * self.idle


class Cluster(Description):
    """A machine: what computes, what connects, what stores, what it draws, what it costs.

    Attributes
    ----------
    accelerator
        Name in the catalogue of accelerators, a file that `trainsim calibrate` wrote, or its description inline (kept
        as given).
    host
        A GPU's share of its node, for optimizers that are offloaded; that of the accelerator's catalogue if left out.
    source
        Where the numbers come from, or that they are assumed.
    """

    name: str
    description: str = ""
    accelerator: str | dict[str, Any]
    topology: Topology
    storage: Storage | None = None
    price_per_gpu_hour: HourlyPriceField | None = None
    power: Power = Power()
    host: Host | None = None
    source: Citation = None

    @property
    def known_host(self) -> Host | None:
        """The host as given, or the catalogue's for this accelerator; None where neither is."""
        known = read_accelerators().get(self.platform.lower())
        return self.host or read_hosts().get(known.name if known else self.platform.lower())

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.topology.gpus

    @property
    def platform(self) -> str:
        """Name of the accelerator in the catalogue, or of the one there that it is like."""
        given = self.accelerator
        if not isinstance(given, str):
            return str(given.get("like") or given.get("name", "inline"))
        if not given.endswith(ENTRY_SUFFIXES):
            return given
        measured = find_accelerator(given)
        return measured.like or measured.name
