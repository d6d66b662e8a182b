"""The machine behind a measured run: as many nodes as the job needs, blanks listed as assumed."""

from __future__ import annotations

import pytest

from simulator.scenario.direct import NvlinkBox
from simulator.scenario.switched import Nvl72, RailClos
from simulator.studies.runs.machines import cards_of, describe_machine
from simulator.studies.runs.table import Row


def row(**cells: object) -> Row:
    """A row with these cells."""
    return Row(2, "a", "g", "test", "", {"accelerator": "A100-80GB-SXM", "gpus": 8, **cells}, 1.0)


def test_one_node_needs_no_network() -> None:
    """8 GPUs are one NVSwitch box; what was blank is listed, the network is not."""
    cluster, assumed = describe_machine(row())
    assert isinstance(cluster.topology, NvlinkBox)
    assert cluster.gpus == 8
    assert assumed == {"gpus_per_node": 8, "scale_up_GBps": 300.0}


def test_several_nodes_share_switches() -> None:
    """1,000 GPUs need 125 nodes of 8, in more than one group of leaves."""
    cluster, assumed = describe_machine(row(gpus=1000, gpus_per_node=8, scale_up_GBps=300.0))
    assert isinstance(cluster.topology, RailClos)
    assert (cluster.topology.nodes, cluster.topology.tiers) == (125, 2)
    assert cluster.topology.nic.bandwidth == 25e9
    assert assumed == {"nic_Gbps": 200.0, "fabric": "not stated"}


def test_a_rack_is_one_domain() -> None:
    """Up to 72 GPUs of a GB200 rack need no network cards; 144 are two racks."""
    one, _ = describe_machine(row(accelerator="GB200", gpus=64))
    two, _ = describe_machine(row(accelerator="GB200", gpus=144))
    assert isinstance(one.topology, Nvl72)
    assert isinstance(two.topology, Nvl72)
    assert (one.topology.racks, one.topology.nic) == (1, None)
    assert two.topology.racks == 2


def test_equal_machines_are_one_object() -> None:
    """So that a process builds their graph once."""
    assert describe_machine(row(gpus=64))[0] is describe_machine(row(gpus=64, nic_Gbps=200.0, fabric="not stated"))[0]


@pytest.mark.parametrize(
    ("fabric", "nic", "cards"),
    [
        ("8x A100 NVSwitch nodes, 4x 200 Gb/s HDR InfiniBand per node (800 Gb/s as configured)", 100.0, (4, 200.0)),
        ("Jean Zay A100: NVLink + 4x Omni-Path 100 Gb/s per node", 50.0, (4, 100.0)),
        ("Selene DGX A100: NVSwitch + 8x HDR InfiniBand 200 Gb/s per node", 200.0, (8, 200.0)),
        ("4x 200 Gb/s, which contradicts the column", 200.0, (8, 200.0)),
        ("not stated", 400.0, (8, 400.0)),
    ],
)
def test_cards_of_a_node(fabric: str, nic: float, cards: tuple[int, float]) -> None:
    """Two GPUs may share one card; the column of Gb/s for each GPU has the last word."""
    assert cards_of(fabric, 8, nic) == cards
