"""The groups of every axis, what they run, and that their traffic on the links is that of their patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.physics.cluster import build_cluster
from simulator.physics.collectives.algorithms import candidates, solo_time
from simulator.physics.program.layout import Layout
from tests.physics.program.jobs import MACHINE, lay_out, message, need
from tests.physics.shapes import cluster


def ranks_at(layout: Layout, axis: str, stage: int, other: int = -1) -> list[list[int]]:
    """List the groups of an axis at a site."""
    own = layout.axes[axis]
    ranks: list[list[int]] = own.ranks[own.site == own.sites.index((stage, other))].tolist()
    return ranks


# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups_of_a_stage() -> None:
    """Tp 2, cp 2, dp 2, pp 2: gradients are reduced over dp and cp, messages go between ranks of equal position."""
    needs = [need("tp", "all_reduce", 1), need("cp", "all_gather"), need("dp", "all_reduce")]
    layout = lay_out(*needs, message(0, 1), message(1, 0), tp=2, cp=2, dp=2, pp=2)
    assert ranks_at(layout, "tp", 1) == [[8, 9], [10, 11], [12, 13], [14, 15]]
    assert ranks_at(layout, "cp", 0) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert ranks_at(layout, "dp", 0) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert ranks_at(layout, "pp", 0, 1) == [[i, i + 8] for i in range(8)]
    assert ranks_at(layout, "pp", 1, 0) == [[i + 8, i] for i in range(8)]


def test_groups_of_experts() -> None:
    """Tp 2, dp 4, ep 2, etp 1: experts over neighbours, their replicas two apart."""
    layout = lay_out(need("ep", "dispatch"), need("edp", "all_reduce"), tp=2, dp=4, ep=2, etp=1)
    assert ranks_at(layout, "ep", 0) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert ranks_at(layout, "edp", 0) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_only_groups_that_run_something() -> None:
    """Stage 1 has tensor parallelism to do, stage 0 has not: four groups, not eight; numbers go through all axes."""
    layout = lay_out(need("tp", "all_reduce", 1), need("dp", "all_reduce", 0), tp=2, dp=4, pp=2)
    assert [len(axis.ranks) for axis in layout.axes.values()] == [4, 2]
    assert [axis.first for axis in layout.axes.values()] == [0, 4]
    assert layout.group_count == 6


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.sampled_from([2, 4]))
@settings(max_examples=10)
def test_group_of_a_rank_has_it_as_a_member(tp: int, dp: int, pp: int) -> None:
    """Also of a message, whose group is one pipeline of one pair of stages."""
    needs = [need(axis, "all_reduce", stage) for axis in ("tp", "dp") for stage in range(pp)]
    needs += [message(stage, stage + 1) for stage in range(pp - 1)] + [need("embedding", "all_reduce", 0, pp - 1)]
    layout = lay_out(*needs, tp=tp, dp=dp, pp=pp)
    for each in needs:
        axis = layout.axes[each.axis]
        ends = (each.stage,) if each.other < 0 else each.site
        for rank in np.flatnonzero(np.isin(layout.pipeline_rank, ends)).tolist():
            group = layout.group(each, rank)
            assert rank in axis.ranks[group]
            assert axis.sites[axis.site[group]] == each.site


def test_groups_of_one_shape_are_a_batch() -> None:
    """Tp 3 on nodes of 8: ranks 6 to 8 are two in a node and one beyond, the others in one node each."""
    axis = lay_out(need("tp", "all_reduce"), tp=3, dp=4).axes["tp"]
    inside, split = ([axis.batch_of[group] for group in groups] for groups in ([0, 1, 3], [2]))
    assert len(set(inside)) == len(set(split)) == 1
    assert set(inside) != set(split)
    for group, (batch, place) in enumerate(zip(axis.batch_of, axis.place, strict=True)):
        assert axis.batches[batch].members[place] == group
        assert axis.batches[batch].groups.gpus[place].tolist() == axis.ranks[group].tolist()


def test_placement_moves_the_groups() -> None:
    """Ranks on nodes 3 and 1: their GPUs, not their numbers, are laid on the links."""
    axis = lay_out(need("dp", "all_reduce"), tp=8, dp=2, gpus=[*range(24, 32), *range(8, 16)]).axes["dp"]
    assert axis.batches[0].groups.gpus.tolist() == [[24 + i, 8 + i] for i in range(8)]


# --- plans -----------------------------------------------------------------------------------------------------------


def test_plan_is_the_fastest_or_the_named() -> None:
    """Least predicted time of all that NCCL has, unless the scenario names one."""
    dp = need("dp", "all_reduce")
    layout = lay_out(dp, tp=8, dp=4)
    groups = layout.axes["dp"].batches[0].groups
    plan = layout.plan(dp, 0)
    assert solo_time(plan, dp.size).min() == min(
        solo_time(each, dp.size).min() for each in candidates(groups, "all_reduce")
    )
    for name in ("ring", "tree"):
        assert lay_out(dp, tp=8, dp=4, named={"dp": name}).plan(dp, 0).algorithm == name
    assert layout.plan(dp, 0) is plan


def test_every_batch_that_meets_a_need_has_a_plan() -> None:
    """Tp 3 in either stage: stage 0 has ranks 0 to 11, stage 1 ranks 12 to 23, of which none lies across two nodes."""
    needs = [need("tp", "all_reduce", 0), need("tp", "all_reduce", 1)]
    layout = lay_out(*needs, tp=3, dp=4, pp=2)
    assert [
        (each.stage, layout.axes["tp"].batches[batch].groups.shape.domains) for each, batch, _ in layout.planned()
    ] == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
    ]


# --- traffic ---------------------------------------------------------------------------------------------------------


def by_link(layout: Layout, group: int, use: int) -> dict[int, float]:
    """What a group puts on each link by a pattern."""
    entries = layout.entries
    mine = (entries.group == group) & (entries.use == use)
    assert len(np.unique(entries.link[mine])) == mine.sum()
    return dict(zip(entries.link[mine].tolist(), entries.usage[mine].tolist(), strict=True))


@settings(max_examples=25)
@given(
    tp=st.sampled_from([1, 2, 3, 4, 16]),
    pp=st.sampled_from([1, 2]),
    kind=st.sampled_from(["rail_clos", "fat_tree"]),
    oversubscription=st.sampled_from([1.0, 4.0]),
    op=st.sampled_from(["all_reduce", "all_gather"]),
)
def test_entries_are_the_rows_of_the_patterns(tp: int, pp: int, kind: str, oversubscription: float, op: str) -> None:
    """Of every group at a site that uses the pattern, row by row; and nothing else."""
    machine = build_cluster(cluster(nodes=4, kind=kind, oversubscription=[oversubscription]))
    needs = [
        need(axis, op, stage)
        for stage in range(pp)
        for axis in ("tp", "dp")
        if (tp if axis == "tp" else 32 // tp // pp) > 1
    ]
    needs += [message(0, 1)] if pp == 2 else []
    layout = lay_out(*needs, machine=machine, tp=tp, pp=pp, dp=32 // tp // pp)
    expected = 0
    for number, use in layout.uses.values():
        axis = layout.axes[use.axis]
        for place, group in enumerate(axis.batches[use.batch].members.tolist()):
            links, usage = use.pattern.row(place)
            row = dict(zip(links.tolist(), usage.tolist(), strict=True))
            used = axis.sites[axis.site[group]] in use.sites
            assert by_link(layout, axis.first + group, number) == (row if used else {})
            expected += len(row) * used
    assert len(layout.entries.link) == expected
    assert not layout.entries.link.size or machine.needed[layout.entries.link].all()


def test_a_message_takes_the_links_of_its_route() -> None:
    """One byte on every link between sender and receiver per byte of rate, except where a link cannot bind at all."""
    layout = lay_out(message(0, 1), message(1, 0), tp=8, pp=2, dp=2)
    axis, routes = layout.axes["pp"], MACHINE.routes(np.array([3, 19]), np.array([19, 3]))
    for pair, site in enumerate(((0, 1), (1, 0))):
        group = int(np.flatnonzero((axis.ranks[:, 0] == 3 + 16 * pair) & (axis.site == axis.sites.index(site)))[0])
        links = routes.link[(routes.pair == pair) & MACHINE.needed[routes.link]]
        found: dict[int, float] = {}
        for use in range(len(layout.uses)):
            found |= by_link(layout, axis.first + group, use)
        assert found == dict.fromkeys(links.tolist(), 1.0)
        assert len(found) == 2  # both NICs' links: the way to a NIC of its own and the ample trunks are implied


def test_sites_put_on_the_links_what_they_use() -> None:
    """Stage 0 dispatches, stage 1 combines: each its own pattern, and no other."""
    layout = lay_out(need("ep", "dispatch", 0), need("ep", "combine", 1), tp=1, pp=2, dp=8, ep=8)
    entries, axis = layout.entries, layout.axes["ep"]
    stage = layout.pipeline_rank[axis.ranks[entries.group - axis.first, 0]]
    assert len(layout.uses) == 2
    assert set(zip(entries.use.tolist(), stage.tolist(), strict=True)) == {(0, 0), (1, 1)}


def test_the_same_rings_are_one_pattern() -> None:
    """Stage 0 gathers, stage 1 reduces: one pattern for both."""
    needs = [need("dp", "all_gather", 0), need("dp", "all_reduce", 1)]
    layout = lay_out(*needs, tp=8, pp=2, dp=2, named={"dp": "ring"})
    assert len(layout.uses) == 1
    assert set(layout.entries.group.tolist()) == set(range(16))


def test_cap_is_the_most_that_any_need_moves() -> None:
    """A small all-reduce runs under LL, half as fast: with a large one on the same rings the large one counts."""
    small, large = need("tp", "all_reduce", size=1e4), need("tp", "all_reduce", size=1e9)
    named = {"tp": "ring"}
    caps = [
        lay_out(*needs, tp=8, dp=4, named=named).entries.cap.max()
        for needs in ([small], [large], [small, large], [large, small])
    ]
    assert caps[0] < caps[1] == caps[2] == caps[3]


# --- what holds a GPU's compute stream -------------------------------------------------------------------------------


def serial_links(layout: Layout) -> tuple[set[str], set[str]]:
    """Links with entries that hold their owner's compute stream, and links with others."""
    names = np.array([layout.cluster.link_name(link) for link in layout.entries.link.tolist()])
    return set(names[layout.serial]), set(names[~layout.serial])


def test_ports_of_a_blocking_collective_are_serial() -> None:
    """Tensor parallelism holds its members: the ports of all eight GPUs, both ways; beside compute it does not."""
    tp = need("tp", "all_reduce")
    serial, other = serial_links(lay_out(tp, tp=8, dp=4))
    assert len(serial) == 2 * 32
    assert not other
    serial, other = serial_links(lay_out(tp, tp=8, dp=4, beside={"tp"}))
    assert not serial
    assert len(other) == 2 * 32


def test_messages_hold_both_ends_alone() -> None:
    """A message crosses its two ends' own NICs; one that goes through a neighbour (PXN) borrows a port."""
    serial, other = serial_links(lay_out(message(0, 1), tp=8, pp=2, dp=2))
    assert len(serial) == 2 * 16
    assert not other
    # the lower half of node 0 sends to the upper half of node 1 and the other way round: through each other's ports
    gpus = [*range(8), *range(12, 16), *range(8, 12)]
    serial, other = serial_links(lay_out(message(0, 1), tp=4, pp=2, dp=2, gpus=gpus))
    assert {f"gpu{i} -> node0.nvswitch" for i in range(8)} <= serial - other
    assert {f"node0.nvswitch -> gpu{i}" for i in range(8)} <= other - serial


def test_another_stage_of_the_pipeline_is_no_end() -> None:
    """GPU 0 sends to GPU 12 through its neighbour 4, whose rank is in the same pipeline but not in the message."""
    serial, other = serial_links(lay_out(message(0, 1), tp=1, pp=3, dp=1, gpus=[0, 12, 4]))
    assert "gpu0 -> node0.nvswitch" in serial
    assert "node0.nvswitch -> gpu4" in other


def test_a_shared_nic_is_nobodys_port() -> None:
    """Two GPUs on each NIC: what one of them does says nothing of the other."""
    machine = build_cluster(cluster(nodes=4, nic={"bandwidth": "10 GB/s", "per_node": 4}))
    _, other = serial_links(lay_out(message(0, 1), tp=8, pp=2, dp=2, machine=machine))
    assert any("nic" in name and "leaf" in name for name in other)


def test_two_patterns_at_once_are_not_serial() -> None:
    """An all-to-all inside nodes and across them crosses a port twice at once: on rails, through NVLink (PXN)."""
    ep = need("ep", "dispatch")
    serial, other = serial_links(lay_out(ep, dp=32, ep=32))
    assert not serial
    assert len(other) == 2 * 32 * 2  # port and NIC of every GPU, both ways
    serial, other = serial_links(lay_out(ep, dp=32, ep=8))  # inside a node there is one
    assert len(serial) == 2 * 32
    assert not other


def test_without_needs_there_is_nothing() -> None:
    """One GPU needs no collective."""
    layout = lay_out(dp=1)
    assert layout.group_count == 0
    assert not len(layout.entries.link)
    assert not len(layout.serial)
    assert list(layout.planned()) == []


@pytest.mark.parametrize("loads", [None, (1.5, *(0.5 / 7 + 6.0 / 7,) * 7)])
def test_loads_of_experts_reach_their_groups(loads: Any) -> None:
    """The hot rank receives half as much again as the mean; every sender sends it as much: its port is the busiest."""
    layout = lay_out(need("ep", "dispatch"), dp=8, ep=8, expert_loads=loads)
    link = MACHINE.link_between("node0.nvswitch", "gpu0")
    entries = layout.entries
    into = {int(each): float(usage) for each, usage in zip(entries.link, entries.usage, strict=True)}
    others = [into[MACHINE.link_between("node0.nvswitch", f"gpu{i}")] for i in range(1, 8)]
    ratio = 1.0 if loads is None else 1.5 / loads[1]
    assert others == pytest.approx([into[link] / ratio] * 7)


def test_a_stack_may_send_a_token_once_a_node() -> None:
    """Ep 16 over two nodes of 8 GPUs, 8 copies of a token: it reaches the other node 1 - (1/2)^8 instead of 4 times."""
    exchange = need("ep", "dispatch")
    plain = lay_out(exchange, dp=16, ep=16)
    stack = lay_out(exchange, dp=16, ep=16, dispatcher="deepep", crossing=lambda domains: 0.996 / 4)
    inside = lay_out(need("ep", "dispatch"), dp=16, ep=8, dispatcher="deepep")
    named = lay_out(exchange, dp=16, ep=16, dispatcher="deepep", named={"ep": "direct"})
    assert [layout.plan(exchange, 0).algorithm for layout in (plain, stack, inside, named)] == [
        "direct", "two_hop", "direct", "direct",
    ]  # fmt: skip
    plain_time, stack_time = (float(solo_time(layout.plan(exchange, 0), 1e8)[0]) for layout in (plain, stack))
    assert 0.2 < stack_time / plain_time < 0.5
