"""The host beside a GPU: its link, memory and drives, as far as they matter to an optimizer that lives there.

All figures are of one GPU's share of its node, so that a node's size does not matter. catalogue/hosts.yaml has them by
accelerator; a cluster may say its own.

Limits: a job that leaves GPUs of a node idle does not get their share; links that GPUs have in common are not modelled.
Pinned by tests/scenario/test_hosts.py.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from simulator.scenario.units import BandwidthField, BytesField
from simulator.scenario.wires import Citation, Description

CATALOGUE = Path(__file__).parent / "catalogue" / "hosts.yaml"


class Host(Description):
    """One GPU's share of its node.

    Attributes
    ----------
    link_bandwidth
        Between GPU and host memory, per direction, as a copy reaches it.
    memory_bandwidth
        Of host memory, nominal, reads and writes together.
    memory
        Host memory.
    nvme_bandwidth
        Of the node's drives, reads or writes; left out: there are none.
    """

    link_bandwidth: BandwidthField
    memory_bandwidth: BandwidthField
    memory: BytesField
    nvme_bandwidth: BandwidthField | None = None
    source: Citation = None


@cache
def read_hosts() -> dict[str, Host]:
    """Hosts of the catalogue by name of the accelerator, in lower case."""
    entries = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    found = {}
    for entry in entries:
        names = entry.pop("accelerators")
        found.update(dict.fromkeys(names, Host.model_validate(entry)))
    return found


def refusal(offload: str, host: Host | None, platform: str) -> str | None:
    """Why an optimizer cannot be offloaded to `cpu` or `nvme`; None if it can."""
    fields = "link_bandwidth, memory_bandwidth, memory and nvme_bandwidth, each of one GPU's share of its node"
    if host is None:
        return f"{offload}: no host is known of accelerator {platform!r}; describe it under cluster.host: {fields}"
    if offload == "nvme" and host.nvme_bandwidth is None:
        return "nvme: the host has no drives; write cpu, or cluster.host.nvme_bandwidth, such as 6 GB/s for each GPU"
    return None
