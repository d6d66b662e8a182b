"""The machine behind a row of measured runs: just the nodes that the job needs, as a topology.

Blanks follow simulator/validation/run_machines.yaml. Jobs of equal machines share one cluster, and so one graph.

Limits: nodes under leaf switches at full bisection; a fabric is what one word of its column says it is. Pinned by
tests/studies/runs/test_machines.py.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from simulator.errors import LayoutError
from simulator.scenario.hardware import find_accelerator
from simulator.scenario.topology import Cluster
from simulator.scenario.units import parse_quantity
from simulator.studies.columns import names_any
from simulator.studies.runs.table import Row

MACHINES = Path(__file__).parents[2] / "validation" / "run_machines.yaml"

# "4x 200 Gb/s HDR InfiniBand", "8x HDR InfiniBand 200 Gb/s", "4x Omni-Path 100 Gb/s": network cards of a node.
_CARDS = re.compile(r"(\d+)x (?:[A-Za-z-]+ ){0,3}(\d+) Gb/s")


@cache
def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(MACHINES.read_text(encoding="utf-8"))
    return found


def _machine(name: str) -> dict[str, Any]:
    machines = _defaults()["machines"]
    fitting = [key for key in machines if name.startswith(key)]
    found: dict[str, Any] = machines[max(fitting, key=len)] if fitting else _defaults()["default_machine"]
    return found


def _fabric(text: str) -> dict[str, Any]:
    """What a fabric's words say of it.

    Raises
    ------
    LayoutError
        When no word is known.
    """
    fabrics, others = _defaults()["fabrics"], _defaults()["other_words"]
    found: dict[str, Any] | None = next((entry for entry in fabrics if entry["word"] in text.lower()), None)
    if found is None and not names_any(others, text):
        words = ", ".join([*(entry["word"] for entry in fabrics), *others])
        raise LayoutError(f"column fabric: {text!r} names no network that we know; known words: {words}")
    default: dict[str, Any] = _defaults()["default_fabric"]
    return default if found is None else found


def describe_machine(row: Row, *, pxn: bool = True) -> tuple[Cluster, dict[str, Any]]:
    """The row's cluster, and what of it was assumed.

    Parameters
    ----------
    pxn
        Whether NCCL hands traffic for another rail over inside the node (since 2.12).
    """
    accelerator = find_accelerator(row.get("accelerator"))
    machine = _machine(accelerator.name)
    assumed: dict[str, Any] = {}

    def given(column: str, default: Any) -> Any:
        value = row.get(column)
        if value is None:
            assumed[column] = value = default
        return value

    rack = machine.get("rack", 0)
    per_node = given("gpus_per_node", machine["gpus_per_node"])
    speed = given("scale_up_GBps", accelerator.scale_up_bandwidth / 1e9)
    scale_up = _scale_up(machine, float(speed))
    gpus = row.get("gpus")
    domain = rack or per_node
    if gpus <= domain:
        nic = fabric = None
    else:
        nic = given("nic_Gbps", parse_quantity(machine["nic"], "bandwidth") * 8 / 1e9)
        fabric = given("fabric", "not stated")
    return _cluster(accelerator.name, gpus, min(per_node, domain), rack, nic, fabric, scale_up, pxn), assumed


def _scale_up(machine: dict[str, Any], speed: float) -> tuple[float, float, str, bool]:
    return speed, float(machine["efficiency"]), str(machine["latency"]), bool(machine.get("sums", False))


@cache
def _cluster(
    accelerator: str,
    gpus: int,
    per_node: int,
    rack: int,
    nic: float | None,
    fabric: str | None,
    scale_up: tuple[float, float, str, bool],
    pxn: bool,
) -> Cluster:
    speed, efficiency, latency, sums = scale_up
    topology: dict[str, Any] = {
        "gpus_per_node": per_node,
        "scale_up": {
            "bandwidth": f"{speed:g} GB/s",
            "efficiency": efficiency,
            "latency": latency,
            "in_network_reduction": sums,
        },
    }
    nodes = -(-gpus // per_node)
    if rack:
        topology |= {"kind": "nvl72", "racks": -(-gpus // rack), "gpus_per_rack": rack}
        nodes = topology["racks"] * rack // per_node
    else:
        topology |= {"kind": "rail_clos" if nic else "nvlink_box", "nodes": nodes}
    if nic is not None and fabric is not None:
        topology |= _switches(nodes, per_node, nic, fabric, pxn)
    return Cluster.model_validate({"name": f"{gpus}-{accelerator}", "accelerator": accelerator, "topology": topology})


def _switches(nodes: int, per_node: int, nic: float, fabric: str, pxn: bool) -> dict[str, Any]:
    network = _fabric(fabric)
    leaf = min(nodes, int(_defaults()["nodes_per_leaf"]))
    cards, speed = cards_of(fabric, per_node, nic)
    found: dict[str, Any] = {
        "nic": {
            "bandwidth": f"{speed:g} Gbps",
            "per_node": cards,
            "efficiency": network["efficiency"],
            "latency": network["latency"],
        },
        "nodes_per_leaf": leaf,
        "tiers": 1 if nodes <= leaf else 2,
        "switch_latency": network["switch_latency"],
        "fabric_efficiency": network["fabric_efficiency"],
        "pxn": pxn,
    }
    return found if found["tiers"] == 1 else {**found, "spines": 4, "oversubscription": [1]}


def cards_of(fabric: str, per_node: int, nic: float) -> tuple[int, float]:
    """Network cards of a node and Gb/s of each, where the fabric's words agree with the GPUs' share; else one each.

    >>> cards_of("8x A100 NVSwitch node, 4x 100 Gb/s RoCE per node", 8, 50.0)
    (4, 100.0)
    """
    for count, speed in _CARDS.findall(fabric):
        if int(count) <= per_node and int(count) * int(speed) == round(per_node * nic) and per_node % int(count) == 0:
            return int(count), float(speed)
    return per_node, nic
