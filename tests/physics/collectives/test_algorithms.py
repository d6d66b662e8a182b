"""Algorithms: bytes that each moves, predicted time, and the choice; a ring step by step as an oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import LayoutError
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.collectives.algorithms import ALGORITHMS, NCCL, PROTOCOLS
from simulator.physics.collectives.algorithms import candidates as all_candidates
from simulator.physics.collectives.groups import Groups
from simulator.physics.collectives.plans import Plan, busbw_factor, choose, rate_cap, solo_time
from simulator.physics.collectives.tuning import PLAIN
from simulator.scenario.topology import Cluster
from tests.physics.shapes import cluster

FOUR_NODES = build_cluster(cluster(nodes=4))
NVLINK, NIC = 100e9, 10e9
SUMMING = build_cluster(cluster(nodes=4, scale_up={"bandwidth": "100 GB/s", "in_network_reduction": True}))


def groups(members: Any, machine: ClusterGraph = FOUR_NODES) -> Groups:
    """Build groups from lists of GPUs."""
    return Groups(machine, np.array(members))


def candidates(found: Groups, op: str, algorithms: Any = NCCL) -> list[Plan]:
    """Return the candidates on perfect links."""
    return all_candidates(found, op, algorithms, PLAIN)


def seconds(found: Plan, size: float) -> float:
    """Return the time of a plan for one group."""
    return float(solo_time(found, size)[0])


def plan(algorithm: str, op: str, members: Any, protocol: str = "simple", machine: ClusterGraph = FOUR_NODES) -> Plan:
    """Return one algorithm's plan in one protocol."""
    (found,) = [p for p in ALGORITHMS[algorithm](groups(members, machine), op) if p.protocol == protocol]
    return found


def sent(found: Plan, size: float, tail: str, head: str, machine: ClusterGraph = FOUR_NODES) -> dict[str, float]:
    """Add up the bytes on every link from one kind of device to another, over all phases."""
    total: dict[str, float] = {}
    for phase in found.phases:
        for pattern, wire in phase.traffic:
            for link, use in zip(pattern.links.tolist(), pattern.usage.tolist(), strict=True):
                ends = machine.link_name(link).split(" -> ")
                if tail in ends[0] and head in ends[1]:
                    total[ends[0]] = total.get(ends[0], 0.0) + use * wire * size
    return total


def bandwidth_seconds(found: Plan, size: float) -> float:
    """Return the time of a plan but for its latency."""
    return seconds(found, size) - sum(float(phase.latency[0]) for phase in found.phases)


# --- rings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 8])
def test_bytes_of_rings(n: int) -> None:
    """A GPU sends (n - 1) / n of the buffer in a reduce-scatter or all-gather, twice that in an all-reduce."""
    once = (n - 1) / n * 1e9
    for op, times in (("reduce_scatter", 1), ("all_gather", 1), ("all_reduce", 2)):
        ports = sent(plan("ring", op, [range(n)]), 1e9, "gpu", "nvswitch")
        assert list(ports.values()) == pytest.approx([times * once] * n)
    assert list(sent(plan("ring", "broadcast", [range(n)]), 1e9, "gpu", "nvswitch").values()) == [1e9] * n


@given(st.lists(st.integers(0, 31), min_size=2, max_size=12, unique=True))
def test_all_reduce_is_a_reduce_scatter_and_an_all_gather(members: list[int]) -> None:
    """In wire bytes and in time on the links, for any group."""
    parts = [bandwidth_seconds(plan("ring", op, [members]), 1e9) for op in ("reduce_scatter", "all_gather")]
    assert bandwidth_seconds(plan("ring", "all_reduce", [members]), 1e9) == pytest.approx(sum(parts), rel=1e-12)


def test_tensor_parallelism_over_two_nodes_runs_at_eight_nics() -> None:
    """Sixteen GPUs, 10 GB/s a NIC: 2 · 15/16 GB over 80 GB/s; the node's own ports, 7/8 of it over 100 GB/s, wait."""
    assert bandwidth_seconds(plan("ring", "all_reduce", [range(16)]), 1e9) == pytest.approx(
        2 * 15 / 16 * 1e9 / (8 * NIC)
    )


def step_by_step(members: list[int], size: float, machine: ClusterGraph) -> float:
    """Walk a ring all-reduce: in each of 2 (n - 1) steps every edge carries size / n, and the slowest ends the step."""
    n, seconds = len(members), 0.0
    for _ in range(2 * (n - 1)):
        load = np.zeros(len(machine.capacity))
        for i, gpu in enumerate(members):
            routes = machine.routes(np.array([gpu]), np.array([members[(i + 1) % n]]))
            np.add.at(load, routes.link, routes.share * size / n)
        seconds += float((load / machine.capacity).max())
    return seconds


@pytest.mark.parametrize(
    "members", [[0, 1], list(range(8)), [3, 11, 19, 27], [0, 8], [0, 8, 16]], ids=lambda members: f"{len(members)} GPUs"
)
@pytest.mark.parametrize("kind", ["rail_clos", "fat_tree"])
@pytest.mark.parametrize("oversubscription", [1, 4])
def test_ring_takes_as_long_as_step_by_step(members: list[int], kind: str, oversubscription: int) -> None:
    """One member a node, or one node: the fluid ring and the walked one agree."""
    machine = build_cluster(
        cluster(nodes=4, kind=kind, oversubscription=[oversubscription], switch_ports=None, spines=2)
    )
    found = plan("ring", "all_reduce", [members], machine=machine)
    assert bandwidth_seconds(found, 1e9) == pytest.approx(step_by_step(members, 1e9, machine), rel=1e-12)


@pytest.mark.parametrize(("protocol", "fraction"), [("simple", 1.0), ("ll128", 0.92), ("ll", 0.5)])
def test_protocols_of_rings(protocol: str, fraction: float) -> None:
    """NVIDIA/nccl, src/graph/tuning.cc: LL128 leaves 0.92 of the bandwidth, LL half."""
    found = plan("ring", "all_reduce", [range(8)], protocol)
    pattern = found.phases[0].traffic[0].pattern
    assert rate_cap(found, pattern) == pytest.approx(fraction * NVLINK)


def test_latency_of_rings() -> None:
    """NVIDIA/nccl, src/graph/tuning.cc, LL: base 6.6 µs, 0.6 a step over NVLink, 2.7 a step between nodes.

    16 GPUs on 2 nodes, all-reduce: 30 steps, 2 of them between nodes: 6.6 + 28 · 0.6 + 2 · 2.7 = 28.8 µs.
    """
    assert plan("ring", "all_reduce", [range(16)], "ll").phases[0].latency == pytest.approx(28.8e-6)
    assert plan("ring", "all_gather", [range(8)], "ll").phases[0].latency == pytest.approx((6.6 + 7 * 0.6) * 1e-6)


# --- trees -----------------------------------------------------------------------------------------------------------


def test_tree_latency_is_logarithmic() -> None:
    """NVIDIA/nccl, src/graph/tuning.cc, LL: 6.8 + 2 · (7 · 0.6 + floor(log2 4) · 5.0) = 35.2 µs on 4 nodes of 8."""
    assert plan("tree", "all_reduce", [range(32)], "ll").phases[0].latency == pytest.approx(35.2e-6)


@pytest.mark.parametrize(("protocol", "fraction"), [("simple", 0.92), ("ll128", 0.92 * 120 / 128), ("ll", 0.92 / 3.8)])
def test_protocols_of_trees(protocol: str, fraction: float) -> None:
    """NVIDIA/nccl, src/graph/tuning.cc: 0.92 for any protocol, then 120/128 for LL128 or 1/3.8 for LL.

    Four nodes of one member: a NIC carries at most 3/2 + 1/2 of the rate.
    """
    found = plan("tree", "all_reduce", [[0, 8, 16, 24]], protocol)
    assert rate_cap(found, found.phases[0].traffic[0].pattern) == pytest.approx(fraction * NIC / 2)


@pytest.mark.parametrize("members", [list(range(8)), [0, 1, 2, 8]])
def test_trees_need_several_equal_domains(members: list[int]) -> None:
    """Neither inside a node nor over ragged groups."""
    assert ALGORITHMS["tree"](groups([members]), "all_reduce") == []
    assert ALGORITHMS["tree"](groups([[0, 8]]), "all_gather") == []


# --- in the switch ---------------------------------------------------------------------------------------------------


def test_nvls_needs_switches_that_sum() -> None:
    """Hopper's NVSwitch and later, one node, all-reduce: each GPU sends its data once and 1/n of the sum."""
    sums = build_cluster(cluster(nodes=2, scale_up={"bandwidth": "100 GB/s", "in_network_reduction": True}))
    found = plan("nvls", "all_reduce", [range(8)], machine=sums)
    assert list(sent(found, 1e9, "gpu", "nvswitch", sums).values()) == [1e9 * 9 / 8] * 8
    assert ALGORITHMS["nvls"](groups([range(8)]), "all_reduce") == []
    assert ALGORITHMS["nvls"](groups([range(16)], sums), "all_reduce") == []
    gather = plan("nvls", "all_gather", [range(8)], machine=sums)
    assert list(sent(gather, 1e9, "gpu", "nvswitch", sums).values()) == [1e9 * 7 / 8] * 8
    big = choose(candidates(groups([range(8)], sums), "all_reduce"), 1e9)
    assert big.algorithm == "nvls"


# --- hierarchical ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "phases"), [("all_reduce", 3), ("reduce_scatter", 2), ("all_gather", 2)])
def test_hierarchical_bytes(op: str, phases: int) -> None:
    """4 nodes of 8: inside (p - 1) / p of the data each way, across (N - 1) / N of an eighth on every rail."""
    found = plan("hierarchical", op, [range(32)])
    ways = 2 if op == "all_reduce" else 1
    assert len(found.phases) == phases
    assert list(sent(found, 1e9, "gpu", "nvswitch").values()) == pytest.approx([ways * 7 / 8 * 1e9] * 32)
    assert list(sent(found, 1e9, "nic", "leaf").values()) == pytest.approx([ways * 3 / 4 * 1e9 / 8] * 32)


def test_hierarchical_order() -> None:
    """An all-gather crosses the network first, a reduce-scatter last: each with an eighth of the data."""
    gather, scatter = (plan("hierarchical", op, [range(32)]) for op in ("all_gather", "reduce_scatter"))
    assert [phase.traffic[0].wire for phase in gather.phases] == pytest.approx([3 / 4 / 8, 7 / 8])
    assert [phase.traffic[0].wire for phase in scatter.phases] == pytest.approx([7 / 8, 3 / 4 / 8])


def test_hierarchical_has_to_be_asked_for() -> None:
    """NCCL has none, so it is not among what NCCL chooses from."""
    assert "hierarchical" not in {found.algorithm for found in candidates(groups([range(32)]), "all_gather")}
    named = candidates(groups([range(32)]), "all_gather", ["hierarchical"])
    assert {found.algorithm for found in named} == {"hierarchical"}


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rail_clos", "fat_tree"])
@pytest.mark.parametrize("n", [2, 8, 16, 32])
def test_all_to_all_bytes(kind: str, n: int) -> None:
    """Each GPU sends 1/n of the buffer to each of n - 1 others: those beyond its node through its NIC, as many back."""
    machine = build_cluster(cluster(nodes=4, kind=kind))
    found = plan("direct", "all_to_all", [range(n)], machine=machine)
    beyond = max(0, n - 8) / n * 1e9
    out, back = sent(found, 1e9, "nic", "leaf", machine), sent(found, 1e9, "gpu", "nic", machine)
    assert list(out.values()) == pytest.approx([beyond] * n if beyond else [])
    assert list(back.values()) == pytest.approx([beyond] * n if beyond else [])
    inside = (min(n, 8) - 1) / n * 1e9
    handed_over = beyond * 7 / 8 if machine.pxn else 0.0  # seven of eight receivers are on another rail
    assert list(sent(found, 1e9, "gpu", "nvswitch", machine).values()) == pytest.approx([inside + handed_over] * n)


@given(st.lists(st.integers(0, 31), min_size=2, max_size=10, unique=True))
def test_all_to_all_conserves_bytes(members: list[int]) -> None:
    """Any group: what leaves the nodes arrives at nodes, and all pairs together move (n - 1) of the buffer."""
    found = plan("direct", "all_to_all", [members])
    n = len(members)
    across = sum(a // 8 != b // 8 for a in members for b in members)
    assert sum(sent(found, 1.0, "nic", "leaf").values()) == pytest.approx(across / n)
    assert sum(sent(found, 1.0, "leaf", "nic").values()) == pytest.approx(across / n)
    into, out_of = sent(found, 1.0, "nvswitch", "gpu"), sent(found, 1.0, "gpu", "nvswitch")
    assert sum(into.values()) == pytest.approx(sum(out_of.values()))


@pytest.mark.parametrize("kind", ["rail_clos", "fat_tree"])
def test_all_to_all_is_one_pattern_for_each_reach(kind: str) -> None:
    """In the node, below one leaf (nodes 0 and 1), and across: only the last uses spines, only the first no NIC."""
    machine = build_cluster(cluster(nodes=4, kind=kind, nodes_per_leaf=2, oversubscription=[2]))
    (phase,) = plan("direct", "all_to_all", [range(32)], machine=machine).phases
    touched = [{machine.link_name(link) for link in traffic.pattern.links.tolist()} for traffic in phase.traffic]
    assert [any("nic" in name for name in names) for names in touched] == [False, True, True]
    assert [any("spine" in name for name in names) for names in touched] == [False, False, True]
    (alone,) = plan("direct", "all_to_all", [range(8)], machine=machine).phases
    assert len(alone.traffic) == 1


def test_send_receive_moves_the_message_once() -> None:
    """Two pairs, one in a node and one between nodes: each its own pattern with all bytes."""
    found = plan("direct", "send_recv", [[0, 1], [2, 10]])
    assert sent(found, 1e6, "nic", "leaf") == {"node0.nic2": 1e6}
    assert sent(found, 1e6, "gpu", "nvswitch") == {"gpu0": 1e6}
    assert found.phases[0].latency.max() == 20e-6
    assert plan("direct", "send_recv", [[0, 1]]).phases[0].latency == 8e-6


# --- time and choice -------------------------------------------------------------------------------------------------

OPS = st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"])
MEMBERS = st.lists(st.integers(0, 31), min_size=2, max_size=16, unique=True)


@given(OPS, MEMBERS, st.floats(1.0, 1e10), st.floats(1.0, 100.0))
def test_time_rises_with_size(op: str, members: list[int], size: float, more: float) -> None:
    """Whichever plan is chosen for the larger size, the smaller one is never slower."""
    plans = candidates(groups([members]), op)
    small, large = (seconds(choose(plans, each), each) for each in (size, size * more))
    assert small <= large * (1 + 1e-12)


@given(OPS, MEMBERS, st.floats(1.0, 1e11))
def test_bus_bandwidth_never_exceeds_the_links(op: str, members: list[int], size: float) -> None:
    """NVIDIA/nccl-tests, doc/PERFORMANCE.md: busbw is what a member's links must carry.

    Here that is its NVLink port at most, and between nodes the NICs of as many members as its smallest node has.
    """
    found = groups([members])
    best = choose(candidates(found, op), size)
    busbw = busbw_factor(op, len(members)) * size / seconds(best, size)
    assert busbw <= NVLINK * (1 + 1e-12)
    if found.shape.domains > 3 and op != "all_to_all":  # over two or three a tree may beat the ring's bound
        assert busbw <= found.shape.local * NIC * (1 + 1e-12)


@pytest.mark.parametrize(("members", "bandwidth"), [(range(8), NVLINK), (range(16), 8 * NIC), ([0, 8, 16], NIC)])
def test_large_all_reduce_reaches_the_links(members: Any, bandwidth: float) -> None:
    """A ring in Simple of 100 GB comes within a thousandth of NVLink, of all NICs of a node, or of one NIC."""
    best = choose(candidates(groups([members]), "all_gather"), 1e11)
    busbw = busbw_factor("all_gather", len(members)) * 1e11 / seconds(best, 1e11)
    assert best.protocol == "simple"
    assert busbw == pytest.approx(bandwidth, rel=1e-3)


@given(OPS, MEMBERS, st.floats(1.0, 1e10))
def test_choice_is_the_least_predicted_time(op: str, members: list[int], size: float) -> None:
    """As NCCL's tuner picks, among all plans that apply."""
    plans = candidates(groups([members]), op)
    best = choose(plans, size)
    assert seconds(best, size) == min(seconds(each, size) for each in plans)


def test_small_messages_prefer_latency_and_large_ones_bandwidth() -> None:
    """32 GPUs on 4 nodes: LL for kilobytes, Simple for gigabytes."""
    plans = candidates(groups([range(32)]), "all_reduce")
    chosen = [choose(plans, size) for size in (1e3, 1e10)]
    assert (chosen[0].algorithm, chosen[0].protocol) == ("tree", "ll")
    assert (chosen[1].algorithm, chosen[1].protocol) == ("ring", "simple")


def test_an_algorithm_that_cannot_serve_is_refused() -> None:
    """The message names the algorithm, the operation, where the group lies, and what would do."""
    with pytest.raises(LayoutError, match=r"tree cannot run all_gather on 32 GPUs over 4 .*; able to: ring, hierarch"):
        candidates(groups([range(32)]), "all_gather", ("tree",))
    with pytest.raises(LayoutError, match="over 2 scale-up domains, unevenly"):
        candidates(groups([[0, 1, 8]]), "all_reduce", ("hierarchical",))
    with pytest.raises(LayoutError, match=r"'rnig' is not a known algorithm.*did you mean 'ring'"):
        candidates(groups([range(32)]), "all_gather", ("rnig",))
    with pytest.raises(LayoutError, match=r"'all_redcue' is not a known collective.*did you mean 'all_reduce'"):
        candidates(groups([range(32)]), "all_redcue")


def test_irregular_groups_fall_back() -> None:
    """Three members here, one there: no tree and no NVLS tree, but a ring."""
    assert {found.algorithm for found in candidates(groups([[0, 1, 2, 8]]), "all_reduce")} == {"ring"}


@given(nodes=st.integers(2, 4), local=st.integers(1, 8))
def test_trees_and_nvls_trees_cross_the_network_alike(nodes: int, local: int) -> None:
    """Every byte 2 (N - 1) times over all NICs; each member's NVLink carries (1 + 1/p) of the data under NVLS."""
    machine = SUMMING
    members = [8 * node + i for node in range(nodes) for i in range(local)]
    crossing = [
        sum(sent(found, 1.0, "nic", "leaf", machine).values())
        for name in ("tree", "nvls_tree")
        for found in ALGORITHMS[name](groups([members], machine), "all_reduce")
    ]
    assert crossing == pytest.approx([2.0 * (nodes - 1)] * len(crossing))
    if local > 1:
        ports = sent(plan("nvls_tree", "all_reduce", [members], machine=machine), 1.0, "gpu", "nvswitch", machine)
        assert list(ports.values()) == pytest.approx([1 + 1 / local] * len(members))


@given(st.integers(2, 32))
def test_jumps_move_as_much_as_a_ring(n: int) -> None:
    """PAT on one GPU a node: every NIC sends (n - 1) / n of the buffer, and receives as much."""
    machine = build_cluster(cluster(nodes=32, gpus_per_node=1, nodes_per_leaf=8))
    found = plan("pat", "all_gather", [range(n)], machine=machine)
    assert list(sent(found, 1.0, "nic", "leaf", machine).values()) == pytest.approx([(n - 1) / n] * n)
    assert sum(sent(found, 1.0, "leaf", "nic", machine).values()) == pytest.approx(n - 1)


def test_racks_talk_through_eight_nics() -> None:
    """Two racks of 16: rings and trees leave by eight members of each, evenly spread, who carry all of the rate."""
    machine = build_cluster(cluster(nodes=2, gpus_per_node=16))
    for pattern, whole in (
        (groups([range(32)], machine).ring_edges, 1.0),
        (groups([range(32)], machine).tree_edges, 1.0),
    ):
        used = {
            machine.link_name(link): use
            for link, use in zip(pattern.links.tolist(), pattern.usage.tolist(), strict=True)
            if "nic" in machine.link_name(link).split(" -> ")[0] and "leaf" in machine.link_name(link)
        }
        assert sorted(used) == sorted(f"node{n}.nic{i} -> leaf0.{i}" for n in range(2) for i in range(0, 16, 2))
        assert sum(used.values()) == pytest.approx(2 * whole)


# --- another simulator as an oracle ----------------------------------------------------------------------------------

GIB = 2.0**30
ASTRA_SIM = [
    # GPUs, GiB/s, ns a hop, hops, nanoseconds of 1 GiB in one chunk
    (8, 50, 500.0, 1, 35848494),
    (64, 50, 500.0, 1, 40385782),
    (512, 50, 500.0, 1, 41402252),
]
"""ASTRA-sim's analytical back end, 1 GiB all-reduce on a ring of GPUs in one chunk."""


@pytest.mark.parametrize(("count", "bandwidth", "hop", "hops", "nanoseconds"), ASTRA_SIM)
def test_ring_agrees_with_astra_sim(count: int, bandwidth: float, hop: float, hops: int, nanoseconds: float) -> None:
    """Its conventions: 2 (N - 1) steps of chunk / bandwidth + hops + 10 ns, and 3 (N - 1) chunks through 3,350 GB/s."""
    links = [
        {
            "between": [f"gpu{i}", f"gpu{(i + 1) % count}"],
            "bandwidth": f"{bandwidth * GIB!r} B/s",
            "latency": f"{hop} ns",
        }
        for i in range(count)
    ]
    description = {"kind": "explicit", "gpus": count, "gpus_per_node": 1, "links": links}
    machine = build_cluster(Cluster(name="ring", accelerator="h100", topology=description))
    found = plan("ring", "all_reduce", [range(count)], machine=machine)
    edges, chunk = found.phases[0].traffic[0].pattern, GIB / count
    steps = 2 * (count - 1) * (float(edges.across[0]) + 10e-9)
    seconds_ = bandwidth_seconds(found, GIB) + steps + 3 * (count - 1) * chunk / 3350e9
    assert seconds_ == pytest.approx(nanoseconds * 1e-9, rel=0.01)


@pytest.mark.parametrize(
    ("inside", "nodes", "nanoseconds"), [(8, 8, 9737030), (8, 64, 10410108), (8, 128, 10579389), (8, 512, 11383920)]
)
def test_hierarchical_agrees_with_astra_sim(inside: int, nodes: int, nanoseconds: float) -> None:
    """Eight GPUs on a switch of 400 GiB/s and 936.25 ns, nodes on switches of 50 GiB/s and 500 ns, one chunk.

    A message passes two links of a switch. Sums read two and write one chunk in each step of a reduce-scatter, and
    every step takes in one chunk: 3 a step over both halves, as in its rings.
    """
    machine = build_cluster(
        cluster(
            nodes=nodes,
            scale_up={"bandwidth": f"{400 * GIB!r} B/s", "latency": f"{2 * 936.25} ns"},
            nic={"bandwidth": f"{50 * GIB!r} B/s", "latency": "1000 ns"},
            switch_latency="0 ns",
            nodes_per_leaf=nodes,
        )
    )
    found = plan("hierarchical", "all_reduce", [range(inside * nodes)], machine=machine)
    inner, outer, _ = (phase.traffic[0].pattern for phase in found.phases)
    steps = 2 * (inside - 1) * (float(inner.inside[0]) + 10e-9) + 2 * (nodes - 1) * (float(outer.across[0]) + 10e-9)
    memory = 3 * (inside - 1) * GIB / inside / 3350e9 + 3 * (nodes - 1) * GIB / inside / nodes / 3350e9
    assert bandwidth_seconds(found, GIB) + steps + memory == pytest.approx(nanoseconds * 1e-9, rel=0.01)


def test_every_algorithm_is_known_by_name() -> None:
    """What NCCL chooses from exists, and protocols are those of a ring."""
    assert set(NCCL) <= set(ALGORITHMS)
    assert tuple(found.protocol for found in ALGORITHMS["ring"](groups([[0, 1]]), "all_reduce")) == PROTOCOLS


@pytest.mark.parametrize(
    ("op", "factor"),
    [
        ("all_reduce", 2 * 7 / 8),
        ("all_gather", 7 / 8),
        ("reduce_scatter", 7 / 8),
        ("all_to_all", 7 / 8),
        ("broadcast", 1),
    ],
)
def test_bus_bandwidth_factors(op: str, factor: float) -> None:
    """NVIDIA/nccl-tests, doc/PERFORMANCE.md, for eight ranks."""
    assert busbw_factor(op, 8) == factor
