"""Fewer constraints, same rates: what is left says all that the links say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.collectives.algorithms import rate_cap
from simulator.physics.program.constraints import Rows, can_bind, distinct_rows
from simulator.physics.program.layout import Entries, Layout
from simulator.physics.sharing import max_min_rates
from simulator.scenario.conditions import Background, DegradedLink, SlowNic
from simulator.scenario.topology import Cluster
from tests.physics.program.jobs import folded, lay_out, message, need
from tests.physics.shapes import cluster

FABRICS: dict[str, Any] = {
    "clos": ({}, ()),
    "clos, 4 to 1": ({"oversubscription": [4]}, ()),
    "fat tree": ({"kind": "fat_tree"}, ()),
    "fat tree, 2 to 1": ({"kind": "fat_tree", "oversubscription": [2]}, ()),
    "fat tree, 7 to 1": ({"kind": "fat_tree", "oversubscription": [7], "nodes_per_leaf": 3}, ()),
    "more up than down": (
        {"oversubscription": [0.5]},
        (DegradedLink(kind="degraded_link", between=("leaf0.1", "spine0"), capacity=0.1),),
    ),
    "weak NIC": ({}, (SlowNic(kind="slow_nic", node=1, nic=1, capacity=0.4),)),
    "shared NICs": ({"nic": {"bandwidth": "10 GB/s", "per_node": 2}}, ()),
    "slow NVLink": ({"scale_up": {"bandwidth": "12 GB/s"}}, ()),
    "others": ({}, (Background(kind="background", nodes=(0, 2), rate="3 GB/s"),)),
}
MACHINES = {
    name: build_cluster(cluster(nodes=4, gpus_per_node=4, **{"spines": 2, "switch_ports": None, **fields}), conditions)
    for name, (fields, conditions) in FABRICS.items()
}


# --- the rates -------------------------------------------------------------------------------------------------------


@st.composite
def jobs(draw: st.DrawFn) -> Layout:
    """Draw a job with everything that moves; gradients run beside compute, and messages where they do not block."""
    tp, pp = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (2, 4), (8, 1), (1, 2), (4, 1)]))
    dp, stages = 16 // tp // pp, range(pp)
    ep = draw(st.sampled_from([each for each in (1, 2, 4, 8, 16) if dp * tp % each == 0]))
    needs = [need("dp", "all_reduce", stage) for stage in stages] if dp > 1 else []
    needs += [need("tp", "all_gather", stage) for stage in stages] if tp > 1 else []
    needs += [message(a, b) for a in stages for b in stages if abs(a - b) == 1]
    needs += [need("ep", "dispatch", stage) for stage in stages] if ep > 1 else []
    beside = draw(st.sampled_from([("dp",), ("dp", "pp"), ()]))
    loads = None if ep == 1 else draw(st.sampled_from([None, (1.5, *(1 - 0.5 / (ep - 1),) * (ep - 1))]))
    nodes = draw(st.permutations(range(4)))
    return lay_out(
        *needs,
        machine=MACHINES[draw(st.sampled_from(sorted(MACHINES)))],
        gpus=[4 * nodes[rank // 4] + rank % 4 for rank in range(16)],
        beside=beside,
        expert_loads=loads,
        named={"ep": draw(st.sampled_from(["direct", "pairwise"]))} if ep > 1 else {},
        **{"tp": tp, "pp": pp, "dp": dp, "ep": ep, "etp": 1},
    )


def in_progress(layout: Layout, rng: np.random.Generator) -> list[tuple[int, int, float, float]]:
    """Pick coflows that may run at once, as (use, group, weight, cap): phases of collectives of random groups.

    A rank does one thing at a time on its compute stream, and one on the stream of each axis beside it.
    """
    found, taken = [], set()
    planned = list(layout.planned())
    for index in rng.permutation(len(planned)).tolist():
        own, batch, plan = planned[index]
        axis = layout.axes[own.axis]
        phase = plan.phases[rng.integers(len(plan.phases))]
        for place, group in enumerate(axis.batches[batch].members.tolist()):
            lane = own.axis if own.axis in layout.beside else "compute"
            if own.axis == "pp":
                lane = f"{lane} {own.site}" if lane == "pp" else lane
            lanes = {(lane, rank) for rank in axis.ranks[group].tolist()}
            if axis.sites[axis.site[group]] != own.site or lanes & taken or rng.random() < 0.3:
                continue
            taken |= lanes
            for pattern, _ in phase.traffic:
                cap = float(rate_cap(plan, pattern, own.size)[place])
                if cap < np.inf:  # else this group has no such traffic
                    found.append((layout.uses[id(pattern)][0], axis.first + group, pattern.weight, cap))
    return found


def fair_rates(capacity: Any, rows: list[tuple[Any, Any]], weight: Any, cap: Any) -> Any:
    """Solve for coflows given as links and usages."""
    return max_min_rates(
        capacity,
        np.cumsum([0, *(len(links) for links, _ in rows)]),
        np.concatenate([links for links, _ in rows]).astype(np.int64),
        np.concatenate([usage for _, usage in rows]).astype(float),
        np.array(weight, dtype=float),
        np.array(cap, dtype=float),
    )


@settings(max_examples=25)
@given(jobs(), st.integers(0, 2**32))
def test_reduction_leaves_rates_as_they_are(layout: Layout, seed: int) -> None:
    """Whatever is in progress: all links, those that one group has for itself too, and what is left of them."""
    rng = np.random.default_rng(seed)
    found = folded(layout, exact=False)
    count = layout.group_count
    constraints = int(found.rows.row.max(initial=-1)) + 1
    for _ in range(4):
        active = in_progress(layout, rng)
        if not active:
            continue
        entries = everything(layout)
        chosen = [(entries.use == use) & (entries.group == group) for use, group, _, _ in active]
        weight, cap = [each[2] for each in active], [each[3] for each in active]
        links = [(entries.link[mine], entries.usage[mine]) for mine in chosen]
        every = fair_rates(layout.cluster.capacity, links, weight, cap)
        columns = [found.rows.column == use * count + group for use, group, _, _ in active]
        rows = [(found.rows.row[mine], found.rows.share[mine]) for mine in columns]
        few = fair_rates(np.ones(constraints), rows, weight, cap)
        assert few == pytest.approx(every, rel=1e-8)


def everything(layout: Layout) -> Entries:
    """Traffic of the same job on all links, those too that a layout need not record."""
    cached = "_everything"
    if cached not in vars(layout):
        machine = layout.cluster
        needed = machine.needed
        try:
            vars(machine)["needed"] = np.ones_like(needed)
            other = Layout(
                machine,
                layout.split,
                layout.gpu_of_rank,
                layout.needs,
                layout.named,
                layout.expert_loads,
                layout.beside,
            )
            assert [name for name in other.axes] == list(layout.axes)
            assert [use.sites for _, use in other.uses.values()] == [use.sites for _, use in layout.uses.values()]
            vars(layout)[cached] = other.entries
        finally:
            vars(machine)["needed"] = needed
    found: Entries = vars(layout)[cached]
    return found


# --- links that cannot bind ------------------------------------------------------------------------------------------


def laid(machine: ClusterGraph, *rows: dict[int, float], cap: float = 1e12) -> Entries:
    """Traffic of coflows, given as usage by link."""
    link = [each for row in rows for each in row]
    usage = [each for row in rows for each in row.values()]
    group = [number for number, row in enumerate(rows) for _ in row]
    zeros = np.zeros(len(link), dtype=np.int64)
    return Entries(zeros, np.array(group), np.array(link), np.array(usage, dtype=float), np.full(len(link), cap))


def binding(machine: ClusterGraph, entries: Entries, serial: Any = None) -> set[int]:
    """Links that can bind."""
    own = np.zeros(len(entries.link), dtype=bool) if serial is None else np.array(serial)
    return set(np.flatnonzero(can_bind(machine, entries, own)).tolist())


def test_link_that_its_coflows_cannot_fill_is_left_out() -> None:
    """A port of 100 GB/s: coflows of at most 30, 30 and 40 GB/s fill it just, and never too full; of 41 they do."""
    machine = MACHINES["clos"]
    port = machine.link_between("gpu0", "node0.nvswitch")
    for last, expected in ((40e9, set()), (41e9, {port})):
        entries = laid(machine, {port: 1.0}, {port: 1.0}, {port: 0.5})._replace(cap=np.array([30e9, 30e9, 2 * last]))
        assert binding(machine, entries) == expected


def test_port_of_a_gpu_that_does_one_thing_at_a_time_is_left_out() -> None:
    """All serial: left out; one beside compute: it stays."""
    machine = MACHINES["clos"]
    port = machine.link_between("gpu0", "node0.nvswitch")
    entries = laid(machine, {port: 1.0}, {port: 1.0})
    assert binding(machine, entries, [True, True]) == set()
    assert binding(machine, entries, [True, False]) == {port}


def trunks(machine: ClusterGraph) -> set[int]:
    """Number the links between leaves and spines."""
    return {link for link in range(len(machine.capacity)) if "spine" in machine.link_name(link)}


def every_pair(machine: ClusterGraph) -> Entries:
    """A coflow for every pair of GPUs of different nodes."""
    count = machine.gpu_count
    src, dst = np.nonzero(machine.node_of[:, None] != machine.node_of[None, :])
    routes = machine.routes(src, dst)
    assert count == 16
    zeros = np.zeros(len(routes.link), dtype=np.int64)
    return Entries(zeros, routes.pair, routes.link, routes.share, np.full(len(zeros), 10e9))


@pytest.mark.parametrize("name", ["clos", "fat tree"])
def test_trunks_of_a_non_blocking_fabric_cannot_bind(name: str) -> None:
    """NICs of 10 GB/s below and as much above: all NICs can be full, no trunk can."""
    machine = MACHINES[name]
    found = binding(machine, every_pair(machine))
    assert trunks(machine)
    assert not found & trunks(machine)
    nics = {
        link for link in range(len(machine.capacity)) if "nic" in (own := machine.link_name(link)) and "leaf" in own
    }
    assert nics <= found


@pytest.mark.parametrize("name", ["clos, 4 to 1", "fat tree, 2 to 1", "fat tree, 7 to 1"])
def test_trunks_of_an_oversubscribed_fabric_stay(name: str) -> None:
    """Pairs that all cross would be too fast without them."""
    machine = MACHINES[name]
    entries = every_pair(machine)
    assert binding(machine, entries) >= trunks(machine) & set(entries.link.tolist())


def test_weak_cable_stays_where_its_leaf_has_enough() -> None:
    """Twice as much up as down, one of two cables at a tenth of it: 20 GB/s below send half over 20 · 0.1 = 2 GB/s."""
    machine = MACHINES["more up than down"]
    weak = machine.link_between("leaf0.1", "spine0")
    assert machine.capacity[weak] == pytest.approx(2e9)
    assert weak in binding(machine, every_pair(machine))
    across = message(0, 1)  # GPU 1 to GPU 9: 10 GB/s, half of it over 2
    layout = lay_out(across, machine=machine, tp=4, pp=2, dp=2)
    ((pattern,),) = [[each for each, _ in plan.phases[0].traffic] for _, _, plan in layout.planned()]
    assert pattern.solo.min() == pytest.approx(4e9)


def test_share_that_stays_below_the_leaf_makes_trunks_harmless() -> None:
    """An all-to-all among 4 nodes of 2 under leaves of 2 nodes: of 6 partners beyond the node 4 are beyond the leaf.

    Four NICs bring a leaf 40 GB/s, of which at most 4/6 leaves it: 26.7 GB/s do not fit in the 20 that two to one
    leaves, but in the 28.6 of 1.4 to one.
    """
    for ratio, harmless in ((2.0, False), (1.4, True)):
        fields: dict[str, Any] = {"kind": "fat_tree", "oversubscription": [ratio], "spines": 2, "switch_ports": None}
        machine = build_cluster(cluster(nodes=4, gpus_per_node=2, **fields))
        src, dst = np.nonzero(machine.node_of[:, None] != machine.node_of[None, :])
        routes = machine.routes(src, dst)
        whole = np.bincount(routes.link, weights=routes.share, minlength=len(machine.capacity))
        together = laid(machine, {link: float(whole[link]) for link in np.flatnonzero(whole).tolist()})
        assert bool(binding(machine, together) & trunks(machine)) != harmless


def test_one_coflow_that_leaves_the_leaf_keeps_its_trunk() -> None:
    """A group that stays mostly below its leaf does not make room for a message that leaves it, in either order."""
    machine = MACHINES["fat tree, 2 to 1"]
    routes = machine.routes(np.array([0, 1]), np.array([8, 9]))
    names = np.array([machine.link_name(link) for link in routes.link.tolist()])
    (trunk,) = np.unique(routes.link[[name.startswith("leaf0") and "spine" in name for name in names]]).tolist()
    first, second = (machine.link_between(f"node0.nic{i}", "leaf0") for i in (0, 1))
    leaving, staying = {first: 1.0, trunk: 1.0}, {second: 1.0, trunk: 0.1}
    for rows in ((leaving, staying), (staying, leaving)):
        assert trunk in binding(machine, laid(machine, *rows))
    assert trunk not in binding(machine, laid(machine, staying))


# --- rows ------------------------------------------------------------------------------------------------------------


def rows_of(*rows: dict[int, float]) -> Rows:
    """Rows given by column."""
    row = [number for number, own in enumerate(rows) for _ in own]
    column = [each for own in rows for each in sorted(own)]
    share = [own[each] for own in rows for each in sorted(own)]
    return Rows(np.array(row, dtype=np.int64), np.array(column, dtype=np.int64), np.array(share))


def distinct(*rows: dict[int, float]) -> list[dict[int, float]]:
    """What is left of them."""
    left = distinct_rows(rows_of(*rows), len(rows))
    found: list[dict[int, float]] = [{} for _ in range(int(left.row.max(initial=-1)) + 1)]
    for row, column, share in zip(left.row.tolist(), left.column.tolist(), left.share.tolist(), strict=True):
        found[row][column] = share
    return found


def test_equal_and_implied_rows_become_one() -> None:
    """Two say 'A alone', a third 'half of A'; the fourth has A and B: it says it all."""
    assert distinct({0: 1.0}, {0: 1.0}, {0: 0.5}, {0: 1.0, 1: 2.0}) == [{0: 1.0, 1: 2.0}]


def test_rows_that_say_different_things_stay() -> None:
    """A at twice the share is not implied by A and B; nor is B and C by A and B."""
    for rows in (
        ({0: 2.0}, {0: 1.0, 1: 1.0}),
        ({0: 1.0, 1: 1.0}, {1: 1.0, 2: 1.0}),
        ({0: 1.0, 1: 2.0}, {0: 2.0, 1: 1.0}),
    ):
        assert distinct(*rows) == list(rows)


def test_empty_rows_say_nothing() -> None:
    """Rows without entries, and no rows at all."""
    assert distinct({}, {0: 1.0}, {}) == [{0: 1.0}]
    assert distinct() == []


@given(
    st.lists(
        st.dictionaries(st.integers(0, 3), st.sampled_from([0.25, 0.5, 1.0, 3.0]), max_size=4), min_size=1, max_size=8
    ),
    st.data(),
)
def test_left_rows_are_as_full_as_all(rows: list[dict[int, float]], data: st.DataObject) -> None:
    """Whatever the rates, the fullest row is as full as before; and none of those left is implied by another."""
    left = distinct(*rows)
    for _ in range(5):
        rate = data.draw(st.lists(st.floats(0.0, 10.0), min_size=4, max_size=4))
        before, after = (
            max((sum(share * rate[c] for c, share in row.items()) for row in each), default=0.0)
            for each in (rows, left)
        )
        assert after == pytest.approx(before, rel=1e-9)
    for one in left:
        for other in left:
            assert one is other or any(other.get(column, 0.0) < share for column, share in one.items())


def test_trunks_that_carry_transit_are_not_dropped_for_their_leaf() -> None:
    """On a dragonfly a link also carries what other routers sent: it binds though it is faster than its own NICs."""
    topology = {
        "kind": "dragonfly", "groups": 4, "routers_per_group": 4, "nodes_per_router": 1, "global_links": 1,
        "gpus_per_node": 1, "scale_up": {"bandwidth": "450 GB/s"}, "nic": {"bandwidth": "400 Gbps"},
        "global_bandwidth": "400 Gbps", "local_bandwidth": "1600 Gbps",
    }  # fmt: skip
    machine = build_cluster(Cluster.model_validate({"name": "dfly", "accelerator": "h100", "topology": topology}))
    entries = every_pair(machine)
    load = np.bincount(entries.link, weights=entries.usage * entries.cap, minlength=len(machine.capacity))
    full = np.flatnonzero(load > machine.capacity * (1 + 1e-9)).tolist()
    over = {link for link in full if machine.link_name(link).count("router") == 2}
    assert over
    assert over <= binding(machine, entries)
