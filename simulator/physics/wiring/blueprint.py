"""A cluster's graph as arrays, and the way from arrays to a networkx graph and back.

Families write a `Blueprint` block by block, conditions change it, `draw` makes the networkx graph of it and `survey`
reads any networkx graph back into one. Writing in blocks is what makes a million GPUs affordable: links of one sort
share one attribute dict, and the index is made from the arrays without walking the graph.

The attribute dicts of a drawn graph cannot be changed in place, as thousands of vertices or edges share one. Edit a
`graph.copy()`, which has plain dicts of its own, and call `index_graph`.

Pinned by tests/physics/wiring/test_blueprint.py: drawing and surveying are inverse, and networkx builds the same graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    Graph = nx.Graph[str]

IntArray: TypeAlias = NDArray[np.int64]

COLUMNS = ("node", "rail", "group")
"""Whole-number attributes of vertices; -1 in the arrays where a vertex has none."""


class Sort(NamedTuple):
    """What links have in common: kind, bytes/s per direction, seconds."""

    kind: str
    capacity: float
    latency: float


@dataclass
class Blueprint:
    """Vertices and links of a cluster, in blocks while it is written; V vertices, E links.

    Attributes
    ----------
    facts
        What the graph as a whole is told: `gpus_per_node`, `in_network_reduction`, `pxn`, `routing` (`up-down`,
        `shortest`, `torus`), and where they apply `ecmp_seed`, `access`, `transit`, `dims`, `wraps`.
    names, kinds
        Of every vertex. [V]
    columns
        Attributes of vertices, by name. [V]
    ends
        Vertices of every link. [E, 2]
    sorts, sort
        The sorts of links, and the number of each link's. [E]
    """

    facts: dict[str, Any]
    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    columns: dict[str, IntArray] = field(default_factory=lambda: {name: np.empty(0, np.int64) for name in COLUMNS})
    ends: IntArray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    sorts: list[Sort] = field(default_factory=list)
    sort: IntArray = field(default_factory=lambda: np.empty(0, np.int64))

    def add_vertices(self, kind: str, names: Sequence[str], **columns: IntArray) -> IntArray:
        """Add vertices of one kind; returns their numbers."""
        numbers = np.arange(len(self.names), len(self.names) + len(names))
        self.names.extend(names)
        self.kinds.extend([kind] * len(names))
        for name, column in self.columns.items():
            new = columns.get(name, np.full(len(names), -1, dtype=np.int64))
            self.columns[name] = np.concatenate([column, new])
        return numbers

    def add_links(self, sort: Sort, tails: IntArray, heads: IntArray) -> None:
        """Add links of one sort between vertices [N] and [N]."""
        if sort not in self.sorts:
            self.sorts.append(sort)
        self.ends = np.concatenate([self.ends, np.stack([tails, heads], axis=1)])
        self.sort = np.concatenate([self.sort, np.full(len(tails), self.sorts.index(sort), dtype=np.int64)])

    def resort(self, links: IntArray, factor: float) -> None:
        """Multiply the capacity of some links."""
        for link in links.tolist():
            old = self.sorts[self.sort[link]]
            new = old._replace(capacity=old.capacity * factor)
            if new not in self.sorts:
                self.sorts.append(new)
            self.sort[link] = self.sorts.index(new)

    def remove_links(self, links: IntArray) -> None:
        """Take links away."""
        self.ends, self.sort = np.delete(self.ends, links, axis=0), np.delete(self.sort, links)

    def number(self, name: str) -> int | None:
        """Find a vertex."""
        try:
            return self.names.index(name)
        except ValueError:
            return None

    def links_of(self, vertex: int) -> IntArray:
        """Links of a vertex."""
        return np.flatnonzero((self.ends == vertex).any(axis=1))

    def other_end(self, links: IntArray, vertex: int) -> IntArray:
        """Neighbours of a vertex over its links."""
        others: IntArray = self.ends[links].sum(axis=1) - vertex
        return others

    def is_kind(self, *kinds: str) -> NDArray[np.bool_]:
        """Say of every vertex whether it is of one of some kinds. [V]."""
        return np.isin(kind_codes(self.kinds, kinds), np.arange(len(kinds)))

    def capacity(self) -> NDArray[np.float64]:
        """Bytes/s per direction of every link. [E]."""
        return np.array([sort.capacity for sort in self.sorts], dtype=np.float64)[self.sort]

    def latency(self) -> NDArray[np.float64]:
        """Seconds of every link. [E]."""
        return np.array([sort.latency for sort in self.sorts], dtype=np.float64)[self.sort]


def kind_codes(kinds: Sequence[str], known: Sequence[str]) -> IntArray:
    """Number kinds by their place in a list; others get its length. [V]."""
    codes = {kind: code for code, kind in enumerate(known)}
    return np.fromiter((codes.get(kind, len(known)) for kind in kinds), dtype=np.int64, count=len(kinds))


class _Shared(dict[str, Any]):
    """Attributes that many vertices or edges have in common: they can be read and copied, not changed."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("elements of a cluster graph share their attributes; edit a graph.copy() and index that")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse

    def copy(self) -> dict[str, Any]:
        """Copy into a plain dict."""
        return dict(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shared, (dict(self),)


def draw(blueprint: Blueprint) -> Graph:
    """Make the networkx graph of a blueprint."""
    graph: Graph = nx.Graph(**blueprint.facts)
    names = blueprint.names
    rows: list[dict[str, Any]] = [{} for _ in names]
    vertices = _vertex_attributes(blueprint)
    shared = [_Shared(sort._asdict()) for sort in blueprint.sorts]
    tails, heads = blueprint.ends[:, 0].tolist(), blueprint.ends[:, 1].tolist()
    for a, b, sort in zip(tails, heads, blueprint.sort.tolist(), strict=True):
        rows[a][names[b]] = rows[b][names[a]] = shared[sort]
    # networkx's own dicts, filled at once: a call for every edge would take several times as long.
    inner: Any = graph
    inner._node = dict(zip(names, vertices, strict=True))
    inner._adj = dict(zip(names, rows, strict=True))
    return graph


def _vertex_attributes(blueprint: Blueprint) -> list[_Shared]:
    """Attributes of every vertex; alike ones share."""
    made: dict[tuple[Any, ...], _Shared] = {}
    attributes = []
    columns = [column.tolist() for column in blueprint.columns.values()]
    for key in zip(blueprint.kinds, *columns, strict=True):
        own = made.get(key)
        if own is None:
            kind, *values = key
            numbers = {name: value for name, value in zip(COLUMNS, values, strict=True) if value >= 0}
            own = made[key] = _Shared({"kind": kind, **numbers})
        attributes.append(own)
    return attributes


def survey(graph: Graph) -> Blueprint:
    """Read any graph with the attributes of a cluster graph."""
    names = list(graph)
    vertices = [vertex for _, vertex in graph.nodes(data=True)]
    number = {name: i for i, name in enumerate(names)}
    ends: list[int] = []
    sort: list[int] = []
    sorts: dict[Sort, int] = {}
    for a, neighbours in enumerate(graph.adj[name] for name in names):
        for name, edge in neighbours.items():
            b = number[name]
            if a < b:
                ends += (a, b)
                own = Sort(edge.get("kind", "link"), float(edge["capacity"]), float(edge["latency"]))
                sort.append(sorts.setdefault(own, len(sorts)))
    return Blueprint(
        facts=dict(graph.graph),
        names=names,
        kinds=[vertex["kind"] for vertex in vertices],
        columns={
            name: np.array([vertex.get(name, -1) for vertex in vertices], dtype=np.int64).reshape(-1)
            for name in COLUMNS
        },
        ends=np.array(ends, dtype=np.int64).reshape(-1, 2),
        sorts=list(sorts),
        sort=np.array(sort, dtype=np.int64),
    )
