"""Descriptions of machines beside the tiers of switches: boxes, tori, dragonflies, and graphs written out.

Pinned by tests/scenario/test_topology.py.
"""

from __future__ import annotations

import difflib
import math
from typing import Literal, Self

from pydantic import Field, PositiveInt, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails

from simulator.scenario.units import BandwidthField, SecondsField
from simulator.scenario.wires import Citation, Description, Fraction, Nic, Routed, ScaleUp, check_nic

_CUBE_MESH_GPUS = 8


class NvlinkBox(Description):
    """Stand-alone boxes of GPUs. Boxes are not connected with each other: asking for a route between two fails.

    Attributes
    ----------
    fabric
        `nvswitch`: all GPUs meet in a switch that blocks nothing; `cube_mesh`: the hybrid cube mesh of DGX-1, eight
        GPUs with single and double links that forward for each other; `full_mesh`: a link between every two GPUs.
    """

    kind: Literal["nvlink_box"]
    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = 8
    fabric: Literal["nvswitch", "cube_mesh", "full_mesh"] = "nvswitch"
    scale_up: ScaleUp
    source: Citation = None

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.fabric == "cube_mesh" and self.gpus_per_node != _CUBE_MESH_GPUS:
            raise ValueError(
                f"fabric: cube_mesh joins {_CUBE_MESH_GPUS} GPUs, not gpus_per_node {self.gpus_per_node};"
                " use full_mesh or nvswitch"
            )
        if self.fabric == "full_mesh" and self.gpus_per_node == 1:
            raise ValueError("fabric: full_mesh needs gpus_per_node of at least 2, not 1")
        if self.fabric != "nvswitch" and self.scale_up.in_network_reduction:
            raise ValueError(f"in_network_reduction needs a switch that sums; fabric: {self.fabric} has none")
        return self


class Torus(Description):
    """Chips in a grid with a link to both neighbours in every dimension (TPU pods); chips forward.

    Chip number = x + X * (y + Y * z). A dimension of size 2 has one link, not two.

    Attributes
    ----------
    dims
        Sizes X, Y, Z, ...: one to five of them.
    gpus
        Chips in all; checked against the product of `dims` where given.
    wrap
        Whether the ends of a dimension are joined: one word for all, or one for each.
    link
        Bandwidth per direction, efficiency and latency of one link.
    routing
        `dimension_order`: first along x, then y, then z, each the shorter way round, in halves where both are equally
        long; `spray`: equal parts over all shortest paths (slow beyond some hundred chips).
    """

    kind: Literal["torus"]
    dims: tuple[PositiveInt, ...] = Field(min_length=1, max_length=5)
    chips: PositiveInt | None = None
    gpus_per_node: PositiveInt = 4
    wrap: bool | tuple[bool, ...] = True
    link: ScaleUp
    routing: Literal["dimension_order", "spray"] = "dimension_order"
    source: Citation = None

    @property
    def gpus(self) -> int:
        """Chips in all."""
        return math.prod(self.dims)

    @property
    def nodes(self) -> int:
        """Hosts in all."""
        return self.gpus // self.gpus_per_node

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether the ends of each dimension are joined."""
        given = self.wrap if isinstance(self.wrap, tuple) else (self.wrap,) * len(self.dims)
        return tuple(wrap and size > 2 for wrap, size in zip(given, self.dims, strict=True))

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        product = " x ".join(map(str, self.dims))
        if self.chips is not None and self.gpus != self.chips:
            raise ValueError(f"dims {product} are {self.gpus} chips, not the {self.chips} of chips; change one of them")
        if isinstance(self.wrap, tuple) and len(self.wrap) != len(self.dims):
            raise ValueError(
                f"wrap has {len(self.wrap)} entries for {len(self.dims)} dims; write one each, or one word"
            )
        if self.gpus % self.gpus_per_node:
            raise ValueError(
                f"dims {product} = {self.gpus} chips are no multiple of gpus_per_node {self.gpus_per_node}"
            )
        if self.link.in_network_reduction:
            raise ValueError("in_network_reduction needs a switch that sums; a torus has none")
        return self


class Dragonfly(Routed):
    """Groups of routers: all routers of a group are joined, and every two groups by equally many global links.

    As in Kim, Dally, Scott, Abts, "Technology-driven, highly-scalable dragonfly topology", ISCA 2008. Minimal routing:
    at most one global link, sprayed over (or hashed to one of) the shortest such paths.

    Attributes
    ----------
    nodes_per_router
        All NICs of a node hang on one router.
    global_links
        Global links of every router; a group's must reach every other group.
    local_bandwidth, global_bandwidth
        Of one link and direction; as the NIC's where left out.
    """

    kind: Literal["dragonfly"]
    groups: PositiveInt
    routers_per_group: PositiveInt
    nodes_per_router: PositiveInt
    global_links: PositiveInt
    gpus_per_node: PositiveInt = 8
    scale_up: ScaleUp
    nic: Nic
    local_bandwidth: BandwidthField | None = None
    global_bandwidth: BandwidthField | None = None
    switch_latency: SecondsField = 0.0
    global_latency: SecondsField = 0.0
    fabric_efficiency: Fraction = 1.0
    pxn: bool = False
    source: Citation = None

    @property
    def nodes(self) -> int:
        """Nodes in all."""
        return self.groups * self.routers_per_group * self.nodes_per_router

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        check_nic(self.nic, self.gpus_per_node)
        ports = self.routers_per_group * self.global_links
        if ports < self.groups - 1:
            raise ValueError(
                f"routers_per_group {self.routers_per_group} x global_links {self.global_links} = {ports} links leave"
                f" a group, too few for the {self.groups - 1} other groups; use more of them, or fewer groups"
            )
        return self


class Link(Description):
    """A full-duplex link of an explicit topology; `kind: nvlink` makes its GPUs one scale-up domain."""

    between: tuple[str, str]
    bandwidth: BandwidthField
    latency: SecondsField = 0.0
    efficiency: Fraction = 1.0
    kind: str = "link"


class Explicit(Routed):
    """A graph written out: GPUs `gpu0`, `gpu1`, ..., the named switches, and every link.

    Traffic takes the paths with the fewest links, in equal parts; GPUs may forward.
    """

    kind: Literal["explicit"]
    gpus: PositiveInt
    gpus_per_node: PositiveInt = 8
    switches: tuple[str, ...] = ()
    links: tuple[Link, ...]
    source: Citation = None

    @property
    def nodes(self) -> int:
        """Nodes in all; the last may hold fewer GPUs."""
        return -(-self.gpus // self.gpus_per_node)

    @field_validator("switches")
    @classmethod
    def _named_once(cls, switches: tuple[str, ...], earlier: ValidationInfo) -> tuple[str, ...]:
        known = {f"gpu{g}" for g in range(earlier.data.get("gpus", 0))}
        for i, name in enumerate(switches):
            if name in known:
                raise _at(i, name, f"{name!r} is there twice, or is a GPU; give every switch a name of its own")
            known.add(name)
        return switches

    @field_validator("links")
    @classmethod
    def _sound(cls, links: tuple[Link, ...], earlier: ValidationInfo) -> tuple[Link, ...]:
        if "gpus" not in earlier.data or "switches" not in earlier.data:
            return links  # they are wrong themselves
        gpus = earlier.data["gpus"]
        known = {f"gpu{g}" for g in range(gpus)}.union(earlier.data["switches"])
        seen: set[frozenset[str]] = set()
        for i, link in enumerate(links):
            a, b = link.between
            for name in sorted({a, b} - known):
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise _at(i, name, f"{name!r} is neither a switch nor one of gpu0 to gpu{gpus - 1}{hint}")
            if a == b:
                raise _at(i, a, f"{a} - {b} is a loop; a link joins two different ends")
            if frozenset(link.between) in seen:
                raise _at(i, a, f"{a} - {b} is there twice; keep one and add their bandwidths up")
            seen.add(frozenset(link.between))
        return links


def _at(place: int, value: object, message: str) -> ValidationError:
    """Complain about one entry of a list, so that the message points at its line."""
    details = InitErrorDetails(type="value_error", loc=(place,), input=value, ctx={"error": ValueError(message)})
    return ValidationError.from_exception_data("Explicit", [details])
