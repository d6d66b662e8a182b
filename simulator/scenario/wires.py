"""What topology descriptions share: the links of a GPU inside its scale-up domain, its NICs, and how routes are chosen.

Bandwidth is per direction and nominal; `efficiency` is the share of it that a transfer can reach (protocol, headers),
so capacity = bandwidth x efficiency.

Pinned by tests/scenario/test_topology.py.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from simulator.scenario.units import BandwidthField, SecondsField

Fraction: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Ratio: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Citation: TypeAlias = str | tuple[str, ...] | None


class Description(BaseModel):
    """Frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScaleUp(Description):
    """How a GPU reaches the others of its scale-up domain.

    Attributes
    ----------
    bandwidth
        Per GPU and direction over all its links, nominal (a datasheet's NVLink figure adds both directions).
    latency
        From GPU to GPU, over a switch (both links and the switch) or over a direct link.
    efficiency
        Share of `bandwidth` that a transfer reaches.
    in_network_reduction
        The switch can sum and multicast (NVLink SHARP: Hopper's NVSwitch and later).
    """

    bandwidth: BandwidthField
    latency: SecondsField = 0.0
    efficiency: Fraction = 1.0
    in_network_reduction: bool = False
    source: Citation = None


class Nic(Description):
    """The scale-out network cards of a node.

    Attributes
    ----------
    bandwidth
        Per NIC and direction, all its ports together.
    per_node
        NICs per node; as many as GPUs if left out. With fewer, GPU i uses NIC floor(i * per_node / gpus_per_node).
    latency
        From NIC to NIC back to back: half of it is paid at either end.
    efficiency
        Share of the line rate left for payload, on the NIC's link and on the switch links above it.
    """

    bandwidth: BandwidthField
    per_node: PositiveInt | None = None
    latency: SecondsField = 0.0
    efficiency: Fraction = 1.0
    source: Citation = None


class Routed(Description):
    """How traffic is spread over equally short paths.

    Attributes
    ----------
    routing
        `spray`: equal parts over all of them; `ecmp`: each pair of GPUs takes one, chosen by hash.
    routing_seed
        Another seed, another hash.
    """

    routing: Literal["spray", "ecmp"] = "spray"
    routing_seed: NonNegativeInt = 0


def check_nic(nic: Nic, gpus_per_node: int) -> None:
    """Refuse more NICs than GPUs."""
    if nic.per_node is not None and nic.per_node > gpus_per_node:
        raise ValueError(
            f"nic.per_node {nic.per_node} is more than gpus_per_node {gpus_per_node}; "
            "where several NICs serve one GPU, write one NIC with their bandwidth added up"
        )
