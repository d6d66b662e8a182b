"""Folding: what is equal is one class, classes carry the traffic of all their members, and no class hides a difference.

That folded = unfolded on every span of a step is pinned by tests/test_folding.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.physics.cluster import build_cluster
from simulator.physics.collectives.algorithms import phase_latency, rate_cap
from simulator.physics.program.constraints import can_bind
from simulator.physics.program.fold import Fold
from simulator.physics.program.layout import PAIRS, Layout
from simulator.scenario.conditions import DegradedLink, SlowNic
from tests.physics.program.jobs import MACHINE, folded, lay_out, message, need
from tests.physics.shapes import cluster

MACHINES = {
    "clos": MACHINE,
    "1 to 4": build_cluster(cluster(nodes=4, oversubscription=[4])),
    "fat tree, 1 to 7": build_cluster(cluster(nodes=4, kind="fat_tree", oversubscription=[7])),
    "leaves of 3": build_cluster(cluster(nodes=4, kind="fat_tree", nodes_per_leaf=3, oversubscription=[2])),
    "weak NIC": build_cluster(cluster(nodes=4), (SlowNic(kind="slow_nic", node=1, nic=2, capacity=0.4),)),
    "shared NICs": build_cluster(cluster(nodes=4, nic={"bandwidth": "10 GB/s", "per_node": 4})),
    "long wires": build_cluster(
        cluster(nodes=4, nodes_per_leaf=3, nic={"bandwidth": "10 GB/s", "latency": "3 us"}, switch_latency="1 us")
    ),
}


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Layout, list[int]]:
    """Draw a job on 32 GPUs with everything that moves, and the ranks that are slow."""
    tp, pp = draw(st.sampled_from([(1, 2), (2, 2), (4, 2), (4, 1), (2, 4), (8, 2), (3, 2), (16, 1)]))
    dp = 32 // tp // pp
    ep = draw(st.sampled_from([1, 2, 4]))
    fields: dict[str, Any] = {"tp": tp, "pp": pp, "dp": dp, "ep": ep if dp % ep == 0 else 1}
    needs = [need("dp", "all_reduce", stage) for stage in range(pp)] if dp > 1 else []
    needs += [need("tp", "all_gather", stage, size=1e6) for stage in range(pp)] if tp > 1 else []
    needs += [message(stage, stage + 1) for stage in range(pp - 1)] + [
        message(stage + 1, stage) for stage in range(pp - 1)
    ]
    needs += [need("ep", "dispatch", stage, size=1e7) for stage in range(pp)] if fields["ep"] > 1 else []
    nodes = draw(st.sampled_from([(0, 1, 2, 3), (0, 2, 1, 3), (3, 0, 1, 2)]))
    gpus = [8 * nodes[rank // 8] + rank % 8 for rank in range(tp * pp * dp)]
    layout = lay_out(
        *needs, machine=MACHINES[draw(st.sampled_from(sorted(MACHINES)))], gpus=gpus, beside={"dp"}, **fields
    )
    slow = draw(st.lists(st.integers(0, tp * pp * dp - 1), max_size=2))
    return layout, [int(rank in slow) for rank in range(tp * pp * dp)]


def groups_of_ranks(layout: Layout) -> list[tuple[int, int, int]]:
    """Rank, group, and role of every membership."""
    return [
        (rank, axis.first + group, role if name in PAIRS else 0)
        for name, axis in layout.axes.items()
        for group, members in enumerate(axis.ranks.tolist())
        for role, rank in enumerate(members)
    ]


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_healthy_job_has_a_class_for_each_stage() -> None:
    """Tp 4, pp 2, dp 4: 16 ranks, 4 tp groups and 4 dp groups in either stage, 16 messages there and back."""
    needs = [need(axis, "all_reduce", stage) for axis in ("tp", "dp") for stage in (0, 1)]
    found = folded(lay_out(*needs, message(0, 1), message(1, 0), tp=4, pp=2, dp=4))
    assert found.rank_class.tolist() == [0] * 16 + [1] * 16
    assert sorted(Counter(found.group_class.tolist()).values()) == [4, 4, 4, 4, 16, 16]
    assert found.group_of_class.tolist() == [0, 4, 8, 12, 16, 32]


def test_a_slow_rank_makes_four_classes_of_its_stage() -> None:
    """Rank 5 is tp 1, dp 1 of stage 0: itself, 3 of its tp group, 3 of its dp group, 9 others; and their partners."""
    needs = [need(axis, "all_reduce", stage) for axis in ("tp", "dp") for stage in (0, 1)]
    layout = lay_out(*needs, message(0, 1), tp=4, pp=2, dp=4)
    found = folded(layout, [int(rank == 5) for rank in range(32)])
    grid = found.rank_class.reshape(2, 4, 4)  # stage, dp, tp
    for stage in grid:
        own, beside, ring, rest = stage[1, 1], stage[1, [0, 2, 3]], stage[[0, 2, 3], 1], stage[[0, 2, 3]][:, [0, 2, 3]]
        assert [set(part.ravel().tolist()) for part in (beside, ring, rest)] == [{beside[0]}, {ring[0]}, {rest[0, 0]}]
        assert len({own, beside[0], ring[0], rest[0, 0]}) == 4
    assert len(np.unique(found.rank_class)) == 8


def test_classes_rise_with_the_stage() -> None:
    """Whatever the order of ranks: with pp fastest, rank 0 is in stage 0, rank 1 in stage 1."""
    layout = lay_out(message(0, 1), message(1, 2), message(2, 3), tp=1, pp=4, dp=4, order="pp-tp-cp-ep-dp")
    assert layout.pipeline_rank.tolist() == [0, 1, 2, 3] * 4
    assert folded(layout).rank_class.tolist() == [0, 1, 2, 3] * 4


def test_sender_and_receiver_are_not_alike() -> None:
    """Two programs alone do not make the difference: pipelines of two, where both ends are colour 0."""
    layout = lay_out(message(0, 1), tp=1, pp=2, dp=4)
    assert len(np.unique(folded(layout).rank_class)) == 2


def test_groups_of_different_axes_are_never_alike() -> None:
    """Tp 2 and cp 2 gather as much over the same NVLink: a class of groups is of one axis all the same."""
    layout = lay_out(need("tp", "all_gather"), need("cp", "all_gather"), tp=2, cp=2, dp=8)
    assert folded(layout).group_class.tolist() == [0] * 16 + [1] * 16


def test_ring_latency_splits_where_bandwidth_does_not() -> None:
    """Edp pairs below one leaf and across two: the wires are longer, and the traffic of NICs is the same."""
    layout = lay_out(
        need("edp", "all_reduce"), machine=MACHINES["long wires"], dp=32, ep=16,
        gpus=[*range(8), *range(8, 16), *range(16, 24), *range(24, 32)],
    )  # fmt: skip
    # nodes 0 and 2 are below one leaf, 1 and 3 are not
    assert folded(layout).rank_class.tolist() == [0] * 8 + [1] * 8 + [0] * 8 + [1] * 8


def test_capacity_splits_where_no_coflow_alone_feels_it() -> None:
    """Two messages of 10 GB/s over an uplink of 13.3, or 12 on rail 1: each alone is as fast, both together are not."""
    fields: dict[str, Any] = {"oversubscription": [1.5], "spines": 1, "switch_ports": None}
    weak = DegradedLink(kind="degraded_link", between=("leaf0.1", "spine0"), capacity=0.9)
    machine = build_cluster(cluster(nodes=4, **fields), (weak,))
    found = folded(lay_out(message(0, 1), machine=machine, tp=8, pp=2, dp=2))
    assert found.rank_class.reshape(4, 8).tolist() == [[0, 1, *[0] * 6]] * 2 + [[2, 3, *[2] * 6]] * 2


def test_unfolded_every_rank_and_group_is_alone() -> None:
    """Numbers follow stages, then ranks; groups keep their own."""
    layout = lay_out(need("tp", "all_reduce"), message(0, 1), tp=2, pp=2, dp=4, order="pp-tp-cp-ep-dp")
    found = folded(layout, exact=False)
    assert found.rank_class.tolist() == [rank // 2 + 8 * (rank % 2) for rank in range(16)]
    assert found.group_class.tolist() == list(range(layout.group_count))
    assert found.group_of_class.tolist() == list(range(layout.group_count))


def test_a_class_of_links_carries_all_groups_of_a_class() -> None:
    """An uplink of 1 to 7: 16 NICs of 10 GB/s below, so 160 / 7 up; sixteen messages, one byte each per byte of rate.

    Shares: 16 of (160 / 7) GB/s, and nothing else binds: a NIC carries just one message.
    """
    layout = lay_out(message(0, 1), machine=MACHINES["fat tree, 1 to 7"], tp=8, pp=2, dp=2)
    for exact in (True, False):
        rows = folded(layout, exact=exact).rows
        assert rows.row.max() == 0
        assert rows.share.sum() == pytest.approx(16 * 7 / 160e9)
        assert len(rows.share) == (1 if exact else 16)


def test_nothing_to_share_no_constraint() -> None:
    """No collectives, no rows."""
    found = folded(lay_out(dp=4))
    assert found.rank_class.tolist() == [0] * 4
    assert not len(found.rows.row)
    assert found.link_classes == 0


# --- laws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(jobs())
def test_classes_of_ranks_and_groups_are_equitable(job: tuple[Layout, list[int]]) -> None:
    """Equal ranks have equal programs and equal groups in equal roles; equal groups have equal members."""
    layout, slow = job
    found = folded(layout, slow)
    ranks: dict[int, Any] = defaultdict(Counter)
    groups: dict[int, Any] = defaultdict(Counter)
    for rank, group, role in groups_of_ranks(layout):
        ranks[rank][int(found.group_class[group]), role] += 1
        groups[group][int(found.rank_class[rank]), role] += 1
    for own, seen, classes in (
        (range(len(slow)), ranks, found.rank_class),
        (range(layout.group_count), groups, found.group_class),
    ):
        sights: dict[int, Any] = {}
        for each in own:
            assert sights.setdefault(int(classes[each]), seen[each]) == seen[each]
    programs = {
        (int(own), stage, each)
        for own, stage, each in zip(found.rank_class, layout.pipeline_rank.tolist(), slow, strict=True)
    }
    assert len(programs) == len(np.unique(found.rank_class))
    assert [stage for _, stage, _ in sorted(programs)] == sorted(stage for _, stage, _ in programs)


@settings(max_examples=20)
@given(jobs())
def test_groups_of_a_class_run_alike(job: tuple[Layout, list[int]]) -> None:
    """One axis, site and batch; the same latencies and caps, to 2^-32."""
    layout, slow = job
    found = folded(layout, slow)
    for own, batch, plan in layout.planned():
        axis = layout.axes[own.axis]
        members = axis.batches[batch].members
        classes = found.group_class[axis.first + members]
        for phase in plan.phases:
            for terms in (
                phase_latency(plan, phase, own.size),
                *(rate_cap(plan, each, own.size) for each, _ in phase.traffic),
            ):
                for each in np.unique(classes[axis.site[members] == axis.sites.index(own.site)]):
                    same = terms[classes == each]
                    assert same == pytest.approx([same[0]] * len(same), rel=1e-9)
    for axis in layout.axes.values():
        kinds = set(
            zip(
                found.group_class[axis.first : axis.first + len(axis.ranks)].tolist(),
                axis.site.tolist(),
                axis.batch_of.tolist(),
                strict=True,
            )
        )
        assert len(kinds) == len({own for own, _, _ in kinds})


def fullest(found: Fold, layout: Layout, rate: Any) -> tuple[float, float]:
    """Load of the fullest link that can bind, over its capacity, by all links and by the rows of the fold.

    All groups of a class run at one rate by each pattern.
    """
    entries, capacity = layout.entries, layout.cluster.capacity
    kept = can_bind(layout.cluster, entries, layout.serial)[entries.link]
    count = int(found.group_class.max()) + 1
    own = rate[entries.use * count + found.group_class[entries.group]] * kept
    loads = np.bincount(entries.link, weights=entries.usage * own, minlength=len(capacity)) / capacity
    by_row = np.bincount(found.rows.row, weights=found.rows.share * rate[found.rows.column], minlength=1)
    return float(loads.max()), float(by_row.max())


@settings(max_examples=30)
@given(jobs(), st.data())
def test_rows_carry_what_the_links_carry(job: tuple[Layout, list[int]], data: st.DataObject) -> None:
    """Whatever the rates of the classes: the fullest row is as full as the fullest link; nothing more, nothing less."""
    layout, slow = job
    if not layout.group_count:
        return
    found = folded(layout, slow)
    columns = len(layout.uses) * (int(found.group_class.max()) + 1)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for active in (1.0, 0.5, 0.2):
        rate = rng.uniform(1e9, 1e10, columns) * (rng.random(columns) < active)
        loads, rows = fullest(found, layout, rate)
        assert rows == pytest.approx(loads, rel=1e-8)


@settings(max_examples=15)
@given(jobs())
def test_a_difference_more_only_splits(job: tuple[Layout, list[int]]) -> None:
    """A slow rank more only splits classes, never joins any."""
    layout, slow = job
    before = folded(layout).rank_class
    after = folded(layout, slow).rank_class
    assert len(set(zip(before.tolist(), after.tolist(), strict=True))) == len(np.unique(after))
