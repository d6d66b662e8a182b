"""Descriptions of machines: what a file may say, what is refused, and the sources of the shipped ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from simulator.errors import ScenarioError
from simulator.scenario.scenario import load_cluster
from simulator.scenario.topology import Cluster, Power

TOPOLOGIES = sorted((Path(__file__).parents[2] / "topologies").glob("*.yaml"))
SCALE_UP = {"bandwidth": "300 GB/s", "latency": "0.6 us", "efficiency": 0.8}
NIC = {"bandwidth": "200 Gbps", "latency": "0.6 us", "efficiency": 0.96}
BOX: dict[str, Any] = {"kind": "nvlink_box", "scale_up": SCALE_UP}
RAILS: dict[str, Any] = {
    "kind": "rail_clos", "nodes": 4, "nodes_per_leaf": 2, "spines": 2, "scale_up": SCALE_UP, "nic": NIC,
}  # fmt: skip
TREE: dict[str, Any] = RAILS | {"kind": "fat_tree"}
RACKS: dict[str, Any] = {"kind": "nvl72", "racks": 2, "scale_up": SCALE_UP}
PLANES: dict[str, Any] = RAILS | {"kind": "dual_plane"}
TORUS: dict[str, Any] = {"kind": "torus", "dims": [4, 4, 2], "link": {"bandwidth": "50 GB/s"}}
DRAGONFLY: dict[str, Any] = {
    "kind": "dragonfly", "groups": 9, "routers_per_group": 4, "nodes_per_router": 2, "global_links": 2,
    "scale_up": SCALE_UP, "nic": NIC,
}  # fmt: skip
WIRE: dict[str, Any] = {"between": ["gpu0", "gpu1"], "bandwidth": "1 GB/s"}
WIRES: dict[str, Any] = {"kind": "explicit", "gpus": 2, "links": [WIRE]}


def cluster(topology: dict[str, Any], **fields: Any) -> Cluster:
    """Describe a machine with a topology."""
    return Cluster.model_validate({"name": "test", "accelerator": "a100-80gb", "topology": topology} | fields)


def shipped(path: Path) -> dict[str, Any]:
    """Read a shipped file as plain content."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def blocks(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a mapping and every mapping inside it."""
    yield content
    for value in content.values():
        if isinstance(value, dict):
            yield from blocks(value)


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_shipped_machines_are_valid_and_named_as_their_file(path: Path) -> None:
    """Every shipped file is a cluster, and its name finds it."""
    assert Cluster.model_validate(shipped(path)).name == path.stem


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_block_of_a_shipped_machine_names_its_source(path: Path) -> None:
    """Wherever numbers stand, a source stands beside them."""
    assert [block for block in blocks(shipped(path)) if not block.get("source")] == []


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        ("a100-25k", 25_600),  # 3,200 nodes of 8, spares included
        ("h100-8192", 8_448),
        ("selene-a100", 4_480),  # 560 nodes; the 3,072 GPUs of SC'21 fit inside
        ("meta-24k-roce", 24_576),
        ("dgx-h100-superpod", 1_024),
        ("gb200-nvl72", 576),
        ("jean-zay-a100", 416),
        ("dgx2-v100", 1_536),  # 96 nodes of 16
        ("a100-2048-roce", 2_144),
        ("rsc-a100", 16_000),
        ("h100-roce-512", 512),
        ("hpn-15k", 15_360),
        ("megascale-12k", 12_288),
        ("tpu-v4-pod", 4_096),
    ],
)
def test_published_sizes_of_the_shipped_machines(name: str, gpus: int) -> None:
    """The machines that the published runs need are there, at their size."""
    path = next(path for path in TOPOLOGIES if path.stem == name)
    assert Cluster.model_validate(shipped(path)).gpus == gpus


def test_prices_of_the_rumoured_machines() -> None:
    """The GPT-4 rumour charges 1 USD for an A100-hour and 2 USD for an H100-hour."""
    prices = {path.stem: Cluster.model_validate(shipped(path)).price_per_gpu_hour for path in TOPOLOGIES}
    assert (prices["a100-25k"], prices["h100-8192"]) == (1.0, 2.0)


def test_quantities_arrive_in_si_units() -> None:
    """200 Gb/s are 25 GB/s, and a price is in USD an hour."""
    described = cluster(RAILS, price_per_gpu_hour="1.5 USD/h")
    assert described.topology.kind == "rail_clos"
    assert described.topology.nic.bandwidth == pytest.approx(25e9)
    assert described.topology.scale_up.latency == pytest.approx(0.6e-6)
    assert described.price_per_gpu_hour == 1.5


@pytest.mark.parametrize(
    ("topology", "nodes", "gpus"),
    [
        (BOX | {"nodes": 3, "gpus_per_node": 16}, 3, 48),
        (RAILS, 4, 32),
        (RACKS, 36, 144),  # 2 racks of 18 trays of 4
        ({"kind": "explicit", "gpus": 5, "gpus_per_node": 2, "links": []}, 3, 5),
        (PLANES, 4, 32),
        (TORUS, 8, 32),
        (DRAGONFLY, 72, 576),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)
def test_families_count_nodes_and_gpus(topology: dict[str, Any], nodes: int, gpus: int) -> None:
    """Each family knows its size without building a graph."""
    described = cluster(topology)
    assert (described.topology.nodes, described.topology.gpus, described.gpus) == (nodes, gpus, gpus)


@pytest.mark.parametrize(
    "topology",
    [
        BOX,
        RAILS,
        RAILS | {"tiers": 3, "cores": 4, "nodes_per_pod": 2, "oversubscription": [1, 7]},
        TREE,
        RACKS,
        RACKS | {"nic": NIC, "switch_ports": 64},
        RAILS | {"routing": "ecmp", "routing_seed": 3},
        PLANES,
        TORUS | {"chips": 32, "wrap": [True, False, True]},
        DRAGONFLY | {"global_bandwidth": "1 GB/s"},
        WIRES,
    ],
    ids=lambda topology: topology["kind"],
)
def test_a_description_survives_being_written_and_read(topology: dict[str, Any]) -> None:
    """Dumping a description and reading it back gives the same description."""
    described = cluster(topology, storage={"write_bandwidth": "1 GB/s", "read_bandwidth": "2 GB/s"})
    assert Cluster.model_validate(described.model_dump()) == described
    assert Cluster.model_validate_json(described.model_dump_json()) == described


def test_an_accelerator_may_be_written_inline_and_is_kept_as_given() -> None:
    """What an inline accelerator means is not this module's business."""
    inline = {"name": "mine", "memory": "80 GiB"}
    assert cluster(BOX, accelerator=inline).accelerator == inline


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (BOX | {"scale_up": SCALE_UP | {"bandwidth": "0 GB/s"}}, "more than zero"),
        (BOX | {"scale_up": SCALE_UP | {"bandwidth": "-1 GB/s"}}, "not negative"),
        (BOX | {"scale_up": SCALE_UP | {"bandwidth": 300}}, "no unit"),
        (BOX | {"scale_up": SCALE_UP | {"efficiency": 0}}, "greater than 0"),
        (BOX | {"scale_up": SCALE_UP | {"efficiency": 1.1}}, "less than or equal to 1"),
        (BOX | {"nodes": 0}, "greater than 0"),
        (BOX | {"kind": "hypercube"}, "'rail_clos'"),
        (BOX | {"rails": 8}, "Extra inputs"),
        (RAILS | {"nic": NIC | {"per_node": 9}}, "per_node 9 is more than gpus_per_node 8"),
        (RAILS | {"spines": None}, "needs spines, or switch_ports"),
        (RAILS | {"tiers": 3, "spines": 2}, "needs cores, or switch_ports"),
        (RAILS | {"cores": 2}, "cores: 2 needs tiers of at least 3"),
        (RAILS | {"tiers": 1, "spines": None}, "tiers: 1 connects nodes_per_leaf 2 of 4 nodes"),
        (RAILS | {"nodes_per_pod": 2}, "leaves pods of 2 among 4 nodes apart"),
        (RAILS | {"tiers": 3, "cores": 2, "nodes_per_pod": 3}, "not a multiple of nodes_per_leaf 2"),
        (RAILS | {"oversubscription": [1, 7]}, "has 2 ratios"),
        (RAILS | {"oversubscription": [0]}, "greater than 0"),
        (TREE | {"spine_groups": "per_rail"}, "Extra inputs"),
        (TREE | {"spines": None}, "needs spines, or switch_ports"),
        (RACKS | {"gpus_per_rack": 70}, "gpus_per_rack 70 is not a multiple"),
        (RACKS | {"nic": NIC}, "needs spines, or switch_ports"),
        (RAILS | {"nodes_per_leaf": 5}, "nodes_per_leaf 5 is more than the 4 nodes; use at most 4"),
        (RAILS | {"oversubscription": [-7]}, "greater than 0"),
        (RAILS | {"nic": NIC | {"efficiency": 0}}, "greater than 0"),
        (RAILS | {"nic": NIC | {"bandwidth": "-200 Gbps"}}, "not negative"),
        (RAILS | {"fabric_efficiency": 1.5}, "less than or equal to 1"),
        (RAILS | {"routing": "random"}, "'spray' or 'ecmp'"),
        (RAILS | {"routing_seed": -1}, "greater than or equal to 0"),
        (PLANES | {"planes": 1}, "greater than or equal to 2"),
        (BOX | {"fabric": "cube_mesh", "gpus_per_node": 16}, "joins 8 GPUs, not gpus_per_node 16"),
        (BOX | {"fabric": "full_mesh", "gpus_per_node": 1}, "at least 2"),
        (
            BOX | {"fabric": "full_mesh", "scale_up": SCALE_UP | {"in_network_reduction": True}},
            "needs a switch that sums",
        ),
        (TORUS | {"chips": 64}, "dims 4 x 4 x 2 are 32 chips, not the 64 of chips"),
        (TORUS | {"dims": [4, 0]}, "greater than 0"),
        (TORUS | {"dims": []}, "at least 1 item"),
        (TORUS | {"dims": [3, 3]}, "no multiple of gpus_per_node 4"),
        (TORUS | {"wrap": [True]}, "wrap has 1 entries for 3 dims"),
        (TORUS | {"link": {"bandwidth": "0 GB/s"}}, "more than zero"),
        (DRAGONFLY | {"groups": 10}, "= 8 links leave a group, too few for the 9 other groups"),
        (DRAGONFLY | {"nic": NIC | {"per_node": 9}}, "per_node 9 is more than gpus_per_node 8"),
        (WIRES | {"links": [WIRE | {"between": ["gpu0", "gpu2"]}]}, "'gpu2' is neither a switch nor one of gpu0"),
        (WIRES | {"links": [WIRE, WIRE | {"between": ["gpu1", "gpu0"]}]}, "gpu1 - gpu0 is there twice"),
        (WIRES | {"links": [WIRE | {"between": ["gpu0", "gpu0"]}]}, "gpu0 - gpu0 is a loop"),
        (WIRES | {"links": [WIRE | {"bandwidth": "0 GB/s"}]}, "more than zero"),
        (WIRES | {"links": [WIRE | {"efficiency": 0}]}, "greater than 0"),
        (WIRES | {"switches": ["a", "a"]}, "'a' is there twice"),
        (WIRES | {"switches": ["gpu1"]}, "'gpu1' is there twice, or is a GPU"),
        (WIRES | {"gpus": 0}, "greater than 0"),
    ],
)
def test_contradictions_are_refused_with_the_value_and_what_is_allowed(topology: dict[str, Any], words: str) -> None:
    """A wrong description says what is wrong with which number."""
    with pytest.raises(ValidationError) as error:
        cluster(topology)
    assert words in str(error.value)


def test_a_description_cannot_be_changed() -> None:
    """Descriptions are values."""
    with pytest.raises(ValidationError):
        cluster(BOX).name = "other"  # type: ignore[misc]


def test_the_schema_tells_every_family() -> None:
    """The JSON schema of a cluster discriminates on `kind`."""
    schema = Cluster.model_json_schema()
    mapping = schema["properties"]["topology"]["discriminator"]["mapping"]
    assert set(mapping) == {
        "nvlink_box",
        "nvl72",
        "rail_clos",
        "fat_tree",
        "dual_plane",
        "torus",
        "dragonfly",
        "explicit",
    }


MACHINE = """\
name: mine
accelerator: a100-80gb
topology:
  kind: explicit
  gpus: 2
  switches: [a]
  links:
    - {between: [gpu0, a], bandwidth: 1 GB/s}
    - {between: [gpu1, a], bandwidth: 1 GB/s}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("gpu1, a", "gpu1, gpu2", 9, "'gpu2' is neither a switch nor one of gpu0 to gpu1; did you mean 'gpu"),
        ("gpu1, a", "a, gpu0", 9, r"topology\.links\.1: a - gpu0 is there twice"),
        ("gpu1, a", "a, a", 9, r"topology\.links\.1: a - a is a loop"),
        ("switches: [a]", "switches: [a, a]", 6, r"topology\.switches\.1: 'a' is there twice"),
        (
            "a], bandwidth: 1 GB/s}\n    - {between: [gpu1",
            "a], bandwidth: 0 GB/s}\n    - {between: [gpu1",
            8,
            "more than zero",
        ),
        ("gpus: 2", "gpus: 0", 5, "at least 1|more than 0"),
        ("kind: explicit", "kind: explizit", 4, "did you mean 'explicit'"),
        ("  gpus: 2", "  gpus: 2\n  gpus: 3", 6, "duplicate key 'gpus' on lines 5 and 6"),
        ("[gpu0, a]", "&x [gpu0, *x]", 8, "an alias refers to a value that contains it"),
        ("name: mine", "name: mine\nname: yours", 2, "duplicate key 'name'"),
    ],
)
def test_a_wrong_cluster_file_is_answered_with_one_line_that_names_the_place(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    """File, line, element and what is allowed; recursive and doubled definitions too."""
    path = tmp_path / "mine.yaml"
    assert old in MACHINE
    path.write_text(MACHINE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ScenarioError, match=words) as error:
        load_cluster(str(path))
    assert (error.value.file, error.value.line) == (str(path), line)
    assert "\n" not in str(error.value)


# --- power ------------------------------------------------------------------------------------------------------------


def test_power_of_a_gpu_with_its_host_and_site() -> None:
    """(700 + 300) W · 1.2 = 1,200 W training, three tenths of it idle; without `per_gpu` the accelerator's own."""
    power = Power.model_validate(
        {"per_gpu": "700 W", "host_per_gpu": "300 W", "pue": 1.2, "price_per_kwh": "80 USD/MWh"}
    )
    assert power.drawn(tdp=400.0) == (pytest.approx(1200.0), pytest.approx(360.0))
    assert power.price_per_kwh == pytest.approx(0.08)
    assert Power.model_validate({"pue": 1}).drawn(tdp=400.0) == (700.0, pytest.approx(210.0))
    assert Power.model_validate_json(power.model_dump_json(exclude_none=True)) == power


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"per_gpu": 700}, "700 has no unit"),
        ({"per_gpu": "-1 W"}, "not negative"),
        ({"idle": 1.2}, "idle"),
        ({"pue": 0.9}, "pue"),
        ({"price_per_kwh": "0.08 USD"}, "is not a unit of energy price"),
    ],
)
def test_impossible_power_is_refused(fields: dict[str, Any], words: str) -> None:
    """A site draws no less than its computers."""
    with pytest.raises(ValidationError, match=words):
        Power.model_validate(fields)
