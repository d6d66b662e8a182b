"""Measured collectives: rows of a table, the machine that each ran on, and the time that we predict.

Idea
----
A row names platform, nodes, GPUs and network in words; the machine is built from them as any topology is, with blanks
filled from `simulator/validation/collective_machines.yaml` and listed as assumed. A row that names its algorithm is
predicted with it, the others with the plan of the least predicted time. The kernel's time then meets the harness: a
host that launches one collective after another cannot be quicker than its launch, so

    time = (kernel^4 + floor^4)^(1/4)

with one floor per harness and architecture (`floors` of the catalogue), zero for graph-captured timings.

Limits: a network is what one word says it is; background traffic, faults and versions are not seen.

Pinned by tests/studies/test_validate.py.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from simulator.errors import LayoutError, ScenarioError
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.collectives.algorithms import NCCL, candidates
from simulator.physics.collectives.groups import Groups, IntArray
from simulator.physics.collectives.plans import Plan, solo_time
from simulator.physics.collectives.tuning import Tuning, architecture_of, catalogue
from simulator.scenario.topology import Cluster
from simulator.scenario.units import Bytes, Seconds, parse_quantity
from simulator.studies.columns import missing_columns, names_any

VALIDATION = Path(__file__).parents[1] / "validation"
MACHINES = VALIDATION / "collective_machines.yaml"
SHIPPED = VALIDATION / "collectives.csv"

REQUIRED = ("op", "gpus", "nodes", "platform", "network", "msg_bytes", "time_us")
"""Columns that a table must have; `algo`, `harness`, `nics_per_node`, `nic_Gbps`, `evidence`, `note`, `source` may be
missing, and others are not looked at."""

OPS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "broadcast": "broadcast",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "sendrecv": "send_recv",
    "send_recv": "send_recv",
}
ALGORITHMS = {"ring": "ring", "tree": "tree", "nvls": "nvls", "nvlstree": "nvls_tree", "pat": "pat"}
FLOOR_SHARPNESS = 4.0
"""How sharply the launch-bound regime gives way to the kernel's. Assumption, as nccl-tests on H200 shows it: 31 µs up
to 512 KiB, 35 µs at 1 MiB where the captured kernel takes 26."""


class Malformed(NamedTuple):
    """A row that cannot be read, and why."""

    row: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One measurement, as read."""

    row: str
    op: str
    gpus: int
    nodes: int
    platform: str
    network: str
    size: Bytes
    seconds: Seconds
    harness: str = ""
    algo: str = ""
    nics_per_node: int | None = None
    nic_gbps: float | None = None
    evidence: str = ""
    note: str = ""
    source: str = ""

    @property
    def machine(self) -> tuple[Any, ...]:
        """What tells machines apart."""
        return self.platform, self.nodes, self.gpus, self.network, self.nics_per_node, self.nic_gbps

    @property
    def fitted(self) -> bool:
        """Whether the fit may look at it.

        Not a fault that its source reports, nor read off a chart, nor over a network that the source does not state.
        """
        known = self.nodes == 1 or "not stated" not in self.network
        return known and not self.note.startswith("PATHOLOGICAL") and not self.evidence.startswith("read-chart")


@dataclass(frozen=True, eq=False)
class Machine:
    """The graph and the group of a row, with what had to be assumed {field: value}."""

    cluster: ClusterGraph
    gpus: IntArray
    assumed: dict[str, str] = field(default_factory=dict)

    @cached_property
    def groups(self) -> Groups:
        """The one group, with the patterns laid so far."""
        return Groups(self.cluster, self.gpus[None])


# --- reading ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> tuple[list[Row], list[Malformed]]:
    """Read a table of timings.

    Returns
    -------
    rows, malformed
        Rows that can be read, and those that cannot, by line number (or `id` where there is such a column).

    Raises
    ------
    ScenarioError
        When the file cannot be read, is empty, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            table = csv.DictReader(stream)
            columns = table.fieldnames or []
            missing = [name for name in REQUIRED if name not in columns]
            if missing:
                has = ", ".join(columns) or "no columns"
                raise ScenarioError(f"{missing_columns(missing)}; it has {has}", file=str(path), line=1)
            lines = [(str(entry.get("id") or table.line_num), entry) for entry in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(f"cannot be read as a CSV table: {error}", file=str(path)) from error
    rows: list[Row] = []
    malformed: list[Malformed] = []
    for name, entry in lines:
        try:
            rows.append(_row(name, entry))
        except ValueError as error:
            malformed.append(Malformed(name, str(error)))
    return rows, malformed


def _row(name: str, entry: dict[str, Any]) -> Row:
    if None in entry:
        raise ValueError("has more fields than the table has columns")
    text = {key: (value or "").strip() for key, value in entry.items()}
    nics = text.get("nics_per_node") or ""
    rate = text.get("nic_Gbps") or ""
    return Row(
        row=name,
        op=_one_word(text, "op"),
        gpus=_count(text, "gpus"),
        nodes=_count(text, "nodes"),
        platform=_one_word(text, "platform"),
        network=text["network"],
        size=_positive(text, "msg_bytes"),
        seconds=_positive(text, "time_us") * 1e-6,
        harness=text.get("harness", ""),
        algo=text.get("algo", ""),
        nics_per_node=_count(text, "nics_per_node") if nics else None,
        nic_gbps=_positive(text, "nic_Gbps") if rate else None,
        evidence=text.get("evidence", ""),
        note=text.get("note", ""),
        source=text.get("source", ""),
    )


def _one_word(text: dict[str, str], column: str) -> str:
    if not text[column]:
        raise ValueError(f"{column} is empty")
    return text[column]


def _positive(text: dict[str, str], column: str) -> float:
    try:
        number = float(text[column])
    except ValueError:
        raise ValueError(f"{column} {text[column]!r} is not a number") from None
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{column} {text[column]!r} must be finite and above zero")
    return number


def _count(text: dict[str, str], column: str) -> int:
    number = _positive(text, column)
    if number != int(number):
        raise ValueError(f"{column} {text[column]!r} must be whole")
    return int(number)


# --- the machine -----------------------------------------------------------------------------------------------------


@cache
def _defaults() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(MACHINES.read_text(encoding="utf-8"))
    return loaded


@cache
def _machine(platform: str, nodes: int, gpus: int, network: str, nics: int | None, gbps: float | None) -> Machine:
    known = _defaults()["platforms"]
    if platform not in known:
        raise LayoutError(f"platform {platform!r} is not one of {', '.join(known)}")
    entry, assumed = known[platform], {"bandwidth": known[platform]["bandwidth"]}
    if gpus % nodes:
        raise LayoutError(f"{gpus} GPUs do not spread evenly over {nodes} nodes")
    per_node, rack = gpus // nodes, entry.get("gpus_per_rack")
    box = max(entry["gpus_per_node"], per_node)
    if per_node > 16:
        raise LayoutError(f"{per_node} GPUs a node are more than the 16 of any known machine")
    scale_up = {
        "bandwidth": entry["bandwidth"], "efficiency": entry["efficiency"], "latency": "0.6 us",
        "in_network_reduction": entry.get("sums", False),
    }  # fmt: skip
    if "pcie" in network.lower():
        scale_up["bandwidth"] = assumed["bandwidth"] = "25 GB/s"
    topology: dict[str, Any] = {"gpus_per_node": box, "scale_up": scale_up}
    blocks = 1 if nodes == 1 else nodes
    if rack is not None and nodes > 1:
        found = re.search(r"(?<![A-Za-z0-9])(\d+) racks?\b", network)
        blocks = int(found[1]) if found else -(-gpus // rack)
        if gpus % blocks or gpus // blocks > rack:
            raise LayoutError(f"{gpus} GPUs do not spread evenly over {blocks} racks of {rack}")
        topology |= {"kind": "nvl72", "racks": blocks, "gpus_per_rack": rack}
    elif nodes == 1:
        topology |= {"kind": "nvlink_box"}
    else:
        topology |= {"kind": "rail_clos", "nodes": nodes}
    if blocks > 1:
        total = nodes if rack is None else blocks * rack // box
        leaf = total if blocks <= 32 else total // math.ceil(blocks / 32)
        topology |= _network(platform, entry, network, nics, gbps, box, assumed)
        topology |= {"nodes_per_leaf": leaf, "tiers": 1} if leaf == total else {
            "nodes_per_leaf": leaf, "tiers": 2, "spines": leaf,
        }  # fmt: skip
    cluster = build_cluster(Cluster(name="row", accelerator=entry["accelerator"], topology=topology))
    each, stride = gpus // blocks, box if rack is None or nodes == 1 else rack
    members = (stride * np.arange(blocks)[:, None] + np.arange(each)).ravel()
    return Machine(cluster, members, assumed)


def _network(
    platform: str, entry: dict[str, Any], network: str, nics: int | None, gbps: float | None, box: int,
    assumed: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """NICs of a node: as many as serve its GPUs, with the bandwidth of several for one GPU added up."""
    text = network.lower()
    fabrics, others = _defaults()["fabrics"], _defaults()["other_words"]
    fabric = next((each for each in fabrics if each["word"] in text), None)
    if fabric is None:
        if text and not names_any(others, text):
            words = ", ".join([*(each["word"] for each in fabrics), *others])
            raise LayoutError(f"network {network!r} names no network that we know; known words: {words}")
        fabric = _defaults()["default_fabric"]
    usual = entry.get("unstated", entry) if fabric.get("unstated") else entry
    if nics is None:
        nics = usual["nics"]
        assumed["nics_per_node"] = str(nics)
    if gbps is None:
        gbps = parse_quantity(usual["nic"], "bandwidth") * 8 / 1e9
        assumed["nic_Gbps"] = f"{gbps:g}"
    latency = fabric["latency"]
    first = _defaults()["first_generation_efa"]
    if fabric["name"] == "EFA" and platform in first["platforms"]:
        latency = first["latency"]
    assumed["fabric"] = f"{fabric['name']}: {fabric['efficiency']:g} of line rate, {latency}"
    count = min(nics, box)
    nic = {"bandwidth": f"{gbps * nics / count!r} Gbps", "per_node": count, "latency": latency}
    return {"nic": nic | {"efficiency": fabric["efficiency"]}}


# --- prediction ------------------------------------------------------------------------------------------------------


def machine_of(row: Row) -> Machine:
    """The machine and group of a row.

    Raises
    ------
    LayoutError
        When it cannot be represented.
    """
    return _machine(*row.machine)


def plans_of(row: Row, tuning: Tuning | None = None) -> list[Plan]:
    """Plans that compete for a row: those of the algorithm that it names, else those of NCCL.

    Raises
    ------
    LayoutError
        For an unknown operation, or a machine or algorithm that cannot be represented.
    """
    if row.op not in OPS:
        raise LayoutError(f"op {row.op!r} is not one of {', '.join(OPS)}")
    if row.gpus < 2:
        raise LayoutError("one GPU alone has nothing to exchange")
    named = ALGORITHMS.get(row.algo.lower())
    groups = machine_of(row).groups
    if OPS[row.op] == "send_recv" and row.gpus != 2:
        raise LayoutError(f"sendrecv of {row.gpus} GPUs: only pairs are known")
    if named is not None and (named, groups.shape.domains) == ("nvls_tree", 1):
        named = "nvls"
    return candidates(groups, OPS[row.op], NCCL if named is None else (named,), tuning)


def floor_of(row: Row) -> Seconds:
    """Launch time of the row's harness: zero for graphs and for messages between two."""
    if OPS.get(row.op) == "send_recv":
        return 0.0
    tables = catalogue()
    architecture = architecture_of(machine_of(row).cluster.platform)
    floors = tables.get("floors", {}).get(row.harness, {})
    text = floors.get(architecture, floors.get("default", "0 s"))
    return parse_quantity(text, "time")


def with_floor(kernel: Any, floor: Any) -> Any:
    """Time of a kernel under a harness that needs `floor` to launch it; elementwise."""
    return (kernel**FLOOR_SHARPNESS + floor**FLOOR_SHARPNESS) ** (1 / FLOOR_SHARPNESS)


@cache
def _plans(machine: tuple[Any, ...], op: str, algo: str) -> list[Plan]:
    platform, nodes, gpus, network, nics, gbps = machine
    return plans_of(Row("", op, gpus, nodes, platform, network, 1.0, 1.0, "", algo, nics, gbps))


def predict(rows: Iterable[Row]) -> list[Seconds | str]:
    """Predicted time of every row, or why there is none."""
    found: list[Seconds | str] = []
    for row in rows:
        try:
            plans = _plans(row.machine, row.op, row.algo)
        except LayoutError as error:
            found.append(str(error))
            continue
        kernel = min(float(solo_time(plan, row.size)[0]) for plan in plans)
        found.append(float(with_floor(kernel, floor_of(row))))
    return found
