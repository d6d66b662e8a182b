"""Hosts by accelerator: whose they are, and when an optimizer cannot be offloaded to them."""

from __future__ import annotations

from simulator.scenario.hardware import read_accelerators
from simulator.scenario.hosts import Host, read_hosts, refusal
from tests.physics.shapes import cluster

OWN = {"link_bandwidth": "1 GB/s", "memory_bandwidth": "2 GB/s", "memory": "3 GB"}


def test_every_host_belongs_to_an_accelerator() -> None:
    """No name in the catalogue of hosts is a misspelling."""
    assert set(read_hosts()) <= {accelerator.name for accelerator in read_accelerators().values()}


def test_a_cluster_has_the_host_of_its_accelerator_or_its_own() -> None:
    """The catalogue's, whatever the alias and its case; what a cluster says wins; an unknown accelerator has none."""
    machine = cluster(nodes=2)
    assert machine.known_host == read_hosts()["a100-80gb"]
    own = Host.model_validate(OWN)
    assert machine.model_copy(update={"host": own}).known_host == own
    alien = machine.model_copy(update={"accelerator": "tpu-v4"})
    assert alien.known_host is None


def test_refusals() -> None:
    """Without a host there is nowhere to go, without drives no `nvme`."""
    own = Host.model_validate(OWN)
    assert "cluster.host" in str(refusal("cpu", None, "tpu-v4"))
    assert "nvme_bandwidth" in str(refusal("nvme", own, "mine"))
    assert refusal("cpu", own, "mine") is None
    assert refusal("nvme", own.model_copy(update={"nvme_bandwidth": 1e9}), "mine") is None
