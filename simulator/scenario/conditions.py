"""What is wrong with the cluster, or shared with others: slow GPUs, weak or missing links, another job's traffic.

The scenario's `conditions` is a list; `kind` tells the entries apart. Names of links are those of the graph
(`gpu17`, `node2.nic1`, `leaf0.1`, `spine3`; simulator/physics/wiring/ says which there are), so whether they exist is
known only when the graph is built: `simulator/physics/conditions.py` does that and applies them.

Limits: conditions hold for the whole step; a link is weak or missing in both directions alike.

Pinned by tests/scenario/test_conditions.py.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, model_validator

from simulator.scenario.units import BandwidthField

Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
_RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")
# Assumption: sixteen times the nodes of the largest clusters; a longer range is a slip of the pen.
_MAX_NODES = 1_000_000


class _Condition(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SlowGpu(_Condition):
    """One GPU computes at `speed` times that of a healthy one."""

    kind: Literal["slow_gpu"]
    gpu: NonNegativeInt
    speed: Share


class SlowNode(_Condition):
    """All GPUs of a node compute at `speed` times that of healthy ones."""

    kind: Literal["slow_node"]
    node: NonNegativeInt
    speed: Share


class SlowNic(_Condition):
    """A NIC reaches its switches at `capacity` times that of a healthy one."""

    kind: Literal["slow_nic"]
    node: NonNegativeInt
    nic: NonNegativeInt
    capacity: Share


class _LinkCondition(_Condition):
    between: tuple[str, str]

    @model_validator(mode="after")
    def _two_ends(self) -> Self:
        if self.between[0] == self.between[1]:
            raise ValueError(f"between {list(self.between)} names one element twice; a link has two different ends")
        return self


class DegradedLink(_LinkCondition):
    """A link, or all parallel cables between two switches, at `capacity` times that of a healthy one."""

    kind: Literal["degraded_link"]
    capacity: Share


class RemovedLink(_LinkCondition):
    """A link that is down. GPUs whose NIC loses all its links use the nearest NIC of their node instead."""

    kind: Literal["removed_link"]


def _read_nodes(value: Any) -> Any:
    """Node numbers of a text such as ``"0-31, 40"``."""
    if not isinstance(value, str):
        return value
    nodes: list[int] = []
    for part in value.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"{value!r} is no range of nodes; write it like '0-31' or '0-31, 40', or as a list")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < _MAX_NODES:
            raise ValueError(f"{part.strip()!r} is no range of nodes: first <= last < {_MAX_NODES:,} is needed")
        nodes.extend(range(first, last + 1))
    return nodes


class Background(_Condition):
    """Constant traffic of another job between nodes; what it takes is missing from the capacity of the links.

    Attributes
    ----------
    nodes
        Nodes of the other job, as a list or a text such as ``"0-31"``.
    pattern
        `ring`: every GPU sends to its counterpart in the next node of the list, the last to the first; `all_to_all`: to
        its counterparts in all other nodes, in equal parts.
    rate
        Bytes/s that every GPU sends.
    """

    kind: Literal["background"]
    nodes: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_read_nodes), Field(min_length=2)]
    pattern: Literal["ring", "all_to_all"] = "ring"
    rate: BandwidthField

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len(set(self.nodes)) < len(self.nodes):
            twice = next(node for node in self.nodes if self.nodes.count(node) > 1)
            raise ValueError(f"nodes names {twice} twice; name every node once")
        return self


Condition: TypeAlias = Annotated[
    SlowGpu | SlowNode | SlowNic | DegradedLink | RemovedLink | Background, Field(discriminator="kind")
]
"""Every kind of condition; `kind` tells them apart."""


def out_of_range(condition: Condition, *, gpus: int, nodes: int) -> tuple[str, str] | None:
    """Find a GPU or node that the cluster does not have: the field that names it, and what is wrong."""
    named: dict[str, tuple[tuple[int, ...], int]] = {
        "gpu": ((condition.gpu,) if isinstance(condition, SlowGpu) else (), gpus),
        "node": ((condition.node,) if isinstance(condition, SlowNode | SlowNic) else (), nodes),
        "nodes": (condition.nodes if isinstance(condition, Background) else (), nodes),
    }
    for field, (numbers, count) in named.items():
        for number in numbers:
            if number >= count:
                what = field.removesuffix("s")
                return field, f"{what} {number:,} is not one of the cluster's {count:,} {what}s, 0 to {count - 1:,}"
    return None
