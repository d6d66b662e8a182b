"""Tuning: how fast a kind of GPU and its library run collectives, as a few fitted numbers per architecture.

Idea
----
NCCL's own structure (`base + steps · hop`, three protocols, the least predicted time) says how time depends on the
group; the numbers here say how far a machine is from NCCL's constants, and how much of its links it reaches. They are
fitted by `benchmarks/fit_collectives.py` to published kernel times, one set per architecture and never per row, and
live in the catalogue with their sources and errors. A platform without rows takes a stated prior.

A training job launches collectives asynchronously, so a simulated step pays the kernel's time (as graph-captured
benchmarks measure it) and nothing of a benchmark's host: `floor` belongs to validation alone.

Limits: one set for all NCCL versions; clocks, drivers and the number of channels that a user forces are not seen.

Pinned by tests/physics/collectives/test_tuning.py.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field

from simulator.scenario.hardware import read_accelerators
from simulator.scenario.units import SecondsField

CATALOGUE = Path(__file__).parents[2] / "scenario" / "catalogue" / "collectives.yaml"

Factor: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class Tuning(BaseModel):
    """Numbers of one architecture; the defaults are NCCL's constants on perfect links.

    Attributes
    ----------
    base, hop, bulk_hop, network_hop
        Factors on NCCL's set-up, hop inside a domain under LL and under the other protocols, and hop across the
        network.
    ll_share, ll128_share
        Bandwidth that the LL and LL128 protocols of a ring leave.
    ring_efficiency, nvls_efficiency, direct_efficiency
        Share of a scale-up link's capacity that large transfers reach.
    network_efficiency
        Share of a NIC's capacity that large transfers reach.
    pair_efficiency
        The same of a direct all-to-all, whose flows to many peers meet in the network.
    ring_tail, direct_tail
        Copies inside a GPU, in steps of a ring or messages to a peer: an all-gather over n ranks costs n - 1 + tail.
    ring_fill, nvls_fill, direct_fill, network_fill
        Seconds to fill the pipeline of large messages: of a step of the ring, an NVLS collective, an all-to-all, a
        hop across the network. Messages below the knee fill it in part.
    ring_knee, nvls_knee, direct_knee, network_knee
        Size at which half of the fill is paid, bytes; of a ring per member.
    nvls_latency, direct_latency, direct_ll_latency, network_latency
        Set-up of an NVLS collective, of messages inside a domain (large, and small ones under LL), and of messages
        across the network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Factor = 1.0
    hop: Factor = 1.0
    bulk_hop: Factor = 1.0
    network_hop: Factor = 1.0
    ll_share: Share = 0.5
    ll128_share: Share = 0.92
    ring_efficiency: Share = 1.0
    nvls_efficiency: Share = 0.85
    direct_efficiency: Share = 1.0
    network_efficiency: Share = 1.0
    pair_efficiency: Share = 1.0
    ring_tail: Factor = 0.0
    direct_tail: Factor = 0.0
    ring_fill: SecondsField = 0.0
    nvls_fill: SecondsField = 0.0
    direct_fill: SecondsField = 0.0
    network_fill: SecondsField = 0.0
    ring_knee: Factor = 0.0
    nvls_knee: Factor = 0.0
    direct_knee: Factor = 0.0
    network_knee: Factor = 0.0
    nvls_latency: SecondsField = 25e-6
    direct_latency: SecondsField = 8e-6
    direct_ll_latency: SecondsField = 8e-6
    network_latency: SecondsField = 20e-6


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it

PLAIN = Tuning()
"""NCCL's constants on perfect links: what an accelerator gets that the catalogue does not know."""


@cache
def catalogue() -> dict[str, Any]:
    """Read the catalogue's file: `architectures`, `platforms`, `floors`, `networks`, and the errors of the fit."""
    if not CATALOGUE.exists():
        return {"architectures": {}, "platforms": {}}
    loaded: dict[str, Any] = yaml.load(CATALOGUE.read_text(encoding="utf-8"), _LOADER)
    return loaded


@cache
def tuning_of(platform: str) -> Tuning:
    """Find the numbers of an accelerator by its name in the catalogue of accelerators; `PLAIN` where there are none."""
    name = architecture_of(platform)
    return Tuning(**catalogue()["architectures"][name]["tuning"]) if name else PLAIN


@cache
def architecture_of(platform: str) -> str:
    """Find the architecture of an accelerator by its name or alias; empty where the catalogue has none."""
    known = read_accelerators().get(platform.lower())
    name = known.name if known is not None else platform.lower()
    return str(catalogue()["platforms"].get(name, ""))
