"""`trainsim topology`: counts, routes and warnings, from a file, a shipped name or a scenario; text, JSON, output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator import cli
from simulator.errors import ScenarioError
from simulator.scenario.shipped import shipped_names
from simulator.studies.topology import count_topology
from tests.small import small

MACHINE: dict[str, Any] = {
    "name": "mine",
    "accelerator": "a100-80gb",
    "topology": {
        "kind": "rail_clos", "nodes": 4, "gpus_per_node": 2, "nodes_per_leaf": 2, "spines": 2, "oversubscription": [2],
        "scale_up": {"bandwidth": "240 GB/s", "latency": "1 us"}, "nic": {"bandwidth": "24 GB/s", "latency": "1 us"},
    },
}  # fmt: skip
ISLANDS: dict[str, Any] = {
    "name": "islands",
    "accelerator": "a100-80gb",
    "topology": {"kind": "nvlink_box", "nodes": 2, "gpus_per_node": 4, "scale_up": {"bandwidth": "240 GB/s"}},
}


def write(folder: Path, content: dict[str, Any]) -> Path:
    """Write a file."""
    path = folder / f"{content['name'].replace(' ', '-')}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def trainsim(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["trainsim", "topology", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_small_machine_is_counted(tmp_path: Path) -> None:
    """Eight GPUs, four leaves of 2 NICs down and 24 GB/s up, two spines; half of the machine sends 2 * 24 GB/s."""
    found = count_topology(str(write(tmp_path, MACHINE))).figures()
    assert (found["gpus"], found["nodes"], found["scale_up_domains"], found["islands"]) == (8, 4, 4, 1)
    switches = {each["kind"]: (each["count"], each["fewest_links"], each["most_links"]) for each in found["switches"]}
    assert switches == {
        "gpu": (8, 2, 2),
        "nvswitch": (4, 2, 2),
        "nic": (8, 2, 2),
        "leaf": (4, 4, 4),
        "spine": (2, 4, 4),
    }
    links = {each["kind"]: (each["count"], each["total_bytes_per_s"]) for each in found["links"]}
    assert links == {"nvlink": (8, 8 * 240e9), "pcie": (8, 8 * 24e9), "nic": (8, 8 * 24e9), "leaf-spine": (8, 96e9)}
    assert found["oversubscription"] == {"leaf": 2.0}
    assert found["bisection"] == {"bytes_per_s": 48e9, "gpus": [4, 4], "cut_links": {"leaf-spine": 4}}
    assert found["warnings"] == []


def test_routes_are_shown_from_near_to_far(tmp_path: Path) -> None:
    """The own node, the own leaf, over the spines, another rail by PXN, both."""
    paths = count_topology(str(write(tmp_path, MACHINE))).paths
    assert [path.target for path in paths] == [1, 2, 4, 3, 5]
    assert paths[0].passes == ("gpu0", "node0.nvswitch", "gpu1")
    assert paths[2].passes == (
        "gpu0", "node0.nic0", "leaf0.0", "spine0..spine1", "leaf1.0", "node2.nic0", "gpu4",
    )  # fmt: skip
    assert [path.bandwidth for path in paths] == [240e9, 24e9, 24e9, 24e9, 24e9]
    assert [path.latency for path in paths] == pytest.approx([1e-6, 1e-6, 1e-6, 2e-6, 2e-6])


def test_islands_are_told(tmp_path: Path) -> None:
    """Two boxes: no bandwidth between the halves, and a warning that names two GPUs."""
    census = count_topology(str(write(tmp_path, ISLANDS)))
    assert census.islands == 2
    assert census.bisection is not None
    assert census.bisection.bandwidth == 0
    assert census.warnings == ("disconnected: 2 islands of GPUs; there is no route from gpu0 to gpu4",)


def test_rails_that_do_not_meet_are_told(tmp_path: Path) -> None:
    """Spines per rail and no PXN: cables connect the rails over NVLink, routes do not."""
    topology = MACHINE["topology"] | {"spine_groups": "per_rail", "pxn": False}
    census = count_topology(str(write(tmp_path, MACHINE | {"topology": topology})))
    assert census.islands == 1
    assert census.warnings == ("no route from gpu0 to gpu3 and 2 others, though cables connect them",)


def test_a_scenario_is_counted_with_its_conditions(tmp_path: Path) -> None:
    """A NIC at half its capacity shows in the spread of its tier; an override sets another field."""
    path = write(tmp_path, small(conditions=[{"kind": "slow_nic", "node": 0, "nic": 0, "capacity": 0.5}]))
    nics = {tier.kind: tier for tier in count_topology(str(path)).links}["nic"]
    assert (nics.least, nics.most) == (12e9, 24e9)
    assert count_topology(str(path), ["conditions=[]"]).links[2].least == 24e9


def test_overrides_and_mistakes_of_a_cluster_file(tmp_path: Path) -> None:
    """`--set` reaches the file itself; an unknown name gets the nearest shipped one."""
    path = str(write(tmp_path, MACHINE))
    assert count_topology(path, ["topology.nodes=6"]).gpus == 12
    with pytest.raises(ScenarioError, match="nodes_per_leaf 9 is more than the 4 nodes"):
        count_topology(path, ["topology.nodes_per_leaf=9"])
    with pytest.raises(ScenarioError, match="did you mean 'tpu-v4-pod'"):
        count_topology("tpu-v4-pot")


def test_the_command_prints_text_json_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As every command: `--json` is one object, `--output` a new file, a mistake one message and exit code 2."""
    path = write(tmp_path, MACHINE)
    assert trainsim(monkeypatch, path) == 0
    out = capsys.readouterr().out
    for word in ("rail_clos", "leaf oversubscription", "Bisection", "48 GB/s", "spine0..spine1", "leaf-spine"):
        assert word in out
    assert trainsim(monkeypatch, path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == count_topology(str(path)).figures()
    assert trainsim(monkeypatch, path, "--output", tmp_path / "report.txt") == 0
    assert (tmp_path / "report.txt").read_text(encoding="utf-8") == out
    assert trainsim(monkeypatch, path, "--output", tmp_path / "report.txt") == 2
    assert "not overwritten" in capsys.readouterr().err
    assert trainsim(monkeypatch, write(tmp_path, ISLANDS)) == 0
    assert "warning: disconnected: 2 islands" in capsys.readouterr().out


@pytest.mark.parametrize("name", shipped_names("topologies"))
def test_every_shipped_machine_is_connected_and_has_a_bisection(name: str) -> None:
    """All GPUs reach each other, and half of them send something to the other half."""
    census = count_topology(name)
    assert census.islands == 1
    assert not census.warnings
    assert census.bisection is not None
    assert census.bisection.bandwidth > 0
    assert len(census.paths) >= 2
    json.dumps(census.figures(), allow_nan=False)
