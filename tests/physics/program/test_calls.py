"""Calls: who meets, which constraints, how much and how fast; and the time of a call that is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.network import Network
from simulator.physics.cluster import ClusterGraph, build_cluster
from simulator.physics.collectives.algorithms import phase_latency, rate_cap, solo_time
from simulator.physics.program.calls import Calls, drain
from simulator.physics.program.layout import Need
from simulator.physics.program.steps import Call, Coflow
from simulator.scenario.conditions import SlowNic
from tests.physics.program.jobs import MACHINE, folded, lay_out, message, need
from tests.physics.shapes import cluster

EVERYWHERE = {"beside": {"tp", "dp", "ep", "pp", "embedding"}}  # no port is spared because it does one thing at a time


def made(*needs: Need, programs: Any = None, exact: bool = True, **fields: Any) -> tuple[list[Call], Calls]:
    """Calls of the first rank of each need's stage."""
    layout = lay_out(*needs, **fields)
    calls = Calls(layout, folded(layout, programs, exact=exact))
    first = [int(np.flatnonzero(layout.pipeline_rank == each.stage)[0]) for each in needs]
    return [calls.call(each, rank) for each, rank in zip(needs, first, strict=True)], calls


# --- who meets -------------------------------------------------------------------------------------------------------


def test_members_are_the_rank_classes_that_meet() -> None:
    """A healthy stage's own collectives have one, messages and tied embeddings the two ends in order."""
    needs = [need("tp", "all_reduce", 1), message(0, 1), message(1, 0), need("embedding", "all_reduce", 0, 1)]
    calls, _ = made(*needs, tp=8, dp=2, pp=2)
    assert [call.members for call in calls] == [(1,), (0, 1), (1, 0), (0, 1)]
    assert [call.axis for call in calls] == ["tp", "pp", "pp", "dp"]
    assert [call.across_stages for call in calls] == [False, True, True, True]
    assert [call.name for call in calls] == ["tp.all_reduce", "pp.send_recv", "pp.send_recv", "embedding.all_reduce"]


def test_a_slow_rank_meets_the_others() -> None:
    """Rank 1 of 8 is slow: classes are its tp partner's and so on, and its tp group is two classes that wait."""
    layout = lay_out(need("tp", "all_reduce"), need("dp", "all_reduce"), tp=2, dp=4)
    found = folded(layout, [int(rank == 1) for rank in range(8)])
    calls = Calls(layout, found)
    own, partner, other = (int(found.rank_class[rank]) for rank in (1, 0, 3))
    tp, dp = layout.needs
    assert calls.call(tp, 0) is calls.call(tp, 1)
    assert calls.call(tp, 0).members == tuple(sorted((own, partner)))
    assert calls.call(dp, 1).members == tuple(sorted((own, other)))
    assert calls.call(tp, 2) is calls.call(tp, 6)
    assert calls.call(tp, 2) is not calls.call(tp, 0)


def test_unfolded_calls_have_ranks_as_members() -> None:
    """Tp 2: ranks 2 and 3 meet, and nobody else."""
    (call,), calls = made(need("tp", "all_reduce"), tp=2, dp=4, exact=False)
    assert call.members == (0, 1)
    assert calls.call(calls.layout.needs[0], 3).members == (2, 3)


@pytest.mark.parametrize(
    ("axis", "exposed", "fields"),
    [
        ("etp", "tp", {"tp": 4, "dp": 8, "ep": 2, "etp": 2}),
        ("edp", "dp", {"tp": 1, "dp": 8, "ep": 2}),
        ("cp", "cp", {"cp": 4, "dp": 2}),
        ("ep", "ep", {"dp": 8, "ep": 4}),
    ],
)
def test_what_a_call_is_exposed_as(axis: str, exposed: str, fields: Any) -> None:
    """Expert tensor parallelism counts as tp, every reduction of gradients as dp."""
    (call,), _ = made(need(axis, "all_gather" if axis != "ep" else "dispatch"), **fields)
    assert call.axis == exposed


# --- what it takes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("name", [None, "ring", "hierarchical"])
@pytest.mark.parametrize("size", [1e4, 1e8])
def test_call_takes_what_its_plan_says(op: str, name: str | None, size: float) -> None:
    """Phase by phase the latency, the bytes and the cap of the plan; alone, the time that chose it."""
    dp = need("dp", op, size=size)
    (call,), calls = made(dp, tp=4, dp=8, named={} if name is None else {"dp": name}, **EVERYWHERE)
    plan = calls.layout.plan(dp, 0)
    assert len(call.phases) == len(plan.phases)
    for phase, planned in zip(call.phases, plan.phases, strict=True):
        assert phase.latency == phase_latency(plan, planned, size)[0]
        for (index, moved), (pattern, wire) in zip(phase.transfers, planned.traffic, strict=True):
            assert moved == size * wire
            assert calls.coflows[index].cap == rate_cap(plan, pattern, size)[0]
            assert calls.coflows[index].weight == pattern.weight
    assert call.seconds == pytest.approx(solo_time(plan, size)[0], rel=1e-12)


def test_message_by_hand() -> None:
    """100 MB over a NIC of 10 GB/s: 10 ms, and the latency of its plan."""
    (call,), calls = made(message(0, 1), tp=8, dp=2, pp=2)
    ((index, size),) = call.phases[0].transfers
    plan = calls.layout.plan(message(0, 1), 0)
    network = rate_cap(plan, plan.phases[0].traffic[0].pattern, 1e8)[0]
    assert size == 1e8
    assert calls.coflows[index].solo_rate == network <= 10e9
    assert call.seconds == pytest.approx(1e8 / network + call.phases[0].latency)


def test_groups_of_one_batch_have_their_own_caps() -> None:
    """A weak NIC slows one of four rings of a batch; it alone is capped, and has coflows of its own."""
    machine = build_cluster(cluster(nodes=4), (SlowNic(kind="slow_nic", node=1, nic=2, capacity=0.25),))
    dp = need("dp", "all_reduce")
    layout = lay_out(dp, machine=machine, tp=8, dp=4, named={"dp": "ring"}, **EVERYWHERE)
    calls = Calls(layout, folded(layout))
    slow, others = calls.call(dp, 2), [calls.call(dp, rank) for rank in (0, 1, 3, 7)]
    assert all(call is others[0] for call in others)
    caps = [calls.coflows[call.phases[0].transfers[0][0]].cap for call in (slow, others[0])]
    assert caps[0] < caps[1]
    assert slow.seconds > others[0].seconds


def test_groups_of_one_batch_have_their_own_latencies() -> None:
    """Edp pairs below one leaf (nodes 0 and 2) and across two (1 and 3), with longer wires, are one batch."""
    fields: dict[str, Any] = {"nic": {"bandwidth": "10 GB/s", "latency": "3 us"}, "switch_latency": "1 us"}
    machine = build_cluster(cluster(nodes=4, nodes_per_leaf=3, **fields))
    edp = need("edp", "all_reduce")
    layout = lay_out(edp, machine=machine, dp=32, ep=16, named={"edp": "ring"})
    calls = Calls(layout, folded(layout))
    plan, axis = layout.plan(edp, 0), layout.axes["edp"]
    assert len(axis.batches) == 1
    latencies = [calls.call(edp, rank).phases[0].latency for rank in (0, 8)]
    assert latencies == [
        phase_latency(plan, plan.phases[0], edp.size)[axis.place[layout.group(edp, rank)]] for rank in (0, 8)
    ]
    assert latencies[0] < latencies[1]


def test_sizes_of_one_plan_have_their_own_caps() -> None:
    """Of two all-reduces by one plan the smaller pays more of its time for filling the pipeline."""
    both = [need("tp", "all_reduce", size=size) for size in (2e8, 2e9)]
    (first, second), calls = made(*both, tp=8, dp=4, named={"tp": "ring"}, **EVERYWHERE)
    plans = [calls.layout.plan(each, 0) for each in both]
    assert plans[0] is plans[1]
    caps = [calls.coflows[call.phases[0].transfers[0][0]].cap for call in (first, second)]
    pattern = plans[0].phases[0].traffic[0].pattern
    assert caps == [rate_cap(plans[0], pattern, each.size)[0] for each in both]
    assert caps[0] < caps[1]


def test_constraints_of_a_call_are_those_of_its_coflows() -> None:
    """Gradients and messages meet on the NICs: both know the same constraints, in the unit of their shares."""
    (dp, there), calls = made(need("dp", "all_reduce"), message(0, 1), tp=8, dp=2, pp=2, beside={"dp"})
    assert dp.constraints & there.constraints
    for call in (dp, there):
        used = {
            each for phase in call.phases for index, _ in phase.transfers for each in calls.coflows[index].constraints
        }
        assert call.constraints == used
    assert set(calls.capacity) == {1.0}
    assert max(dp.constraints | there.constraints) < len(calls.capacity)


def test_shares_add_up_over_the_groups_of_a_class() -> None:
    """Sixteen messages on an uplink of 160 / 7 GB/s: folded, one coflow takes the shares of all sixteen.

    Alone that leaves each 160 / 7 / 16 = 10 / 7 GB/s; one of them unfolded has the 10 GB/s of its NIC.
    """
    machine = build_cluster(cluster(nodes=4, kind="fat_tree", oversubscription=[7]))
    for exact, share in ((True, 16 * 7 / 160e9), (False, 7 / 160e9)):
        (call,), calls = made(message(0, 1), tp=8, dp=2, pp=2, machine=machine, exact=exact)
        coflow = calls.coflows[call.phases[0].transfers[0][0]]
        assert coflow.usage == pytest.approx((share,))
        assert coflow.solo_rate == pytest.approx(min(coflow.cap, 1 / share))


def test_the_same_need_is_one_call() -> None:
    """Asked for twice it is the same object; another size has the same constraints, and may have another cap."""
    small, large = need("tp", "all_reduce", size=1e3), need("tp", "all_reduce")
    (first, second, again), calls = made(large, small, large, tp=8, dp=4, named={"tp": "ring"}, **EVERYWHERE)
    assert first is again
    assert first is not second
    assert first.constraints == second.constraints
    assert len({coflow.cap for coflow in calls.coflows}) == len(calls.coflows) == 2


def test_gradients_have_as_many_connections_as_members_in_a_node() -> None:
    """Tp 2, dp 8 over 2 nodes: 4 members a node, so 4 channels; each NIC carries one of them, as one message would.

    A ring of 4 connections and a message of one meet on a NIC of 10 GB/s: it carries 1/4 of the ring's rate x, so at
    equal rates per connection (x / 4 = y) each gets half: the message 5 GB/s, the ring 20.
    """
    needs = need("dp", "all_gather"), message(0, 1)
    calls, made_calls = made(*needs, tp=2, dp=8, pp=2, named={"dp": "ring"}, **EVERYWHERE)
    indices = [call.phases[0].transfers[0][0] for call in calls]
    assert [made_calls.coflows[index].weight for index in indices] == [4.0, 1.0]
    env = simpy.Environment()
    network = Network(env, tuple(made_calls.coflows), made_calls.capacity)
    env.run(
        until=simpy.AllOf(
            env, [network.transfer(index, size) for index, size in zip(indices, (20e9, 5e9), strict=True)]
        )
    )
    assert env.now == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["rail_clos", "fat_tree"])
@pytest.mark.parametrize("ep", [8, 16, 32])
def test_time_alone_is_what_the_network_takes(kind: str, ep: int) -> None:
    """An all-to-all's patterns share NVLink (under PXN) and NICs, as when the engine's network runs all at once."""
    machine: ClusterGraph = build_cluster(cluster(nodes=4, kind=kind, oversubscription=[2]))
    (call,), calls = made(need("ep", "dispatch"), machine=machine, dp=32, ep=ep)
    env = simpy.Environment()
    network = Network(env, tuple(calls.coflows), calls.capacity)
    (phase,) = call.phases
    env.run(until=simpy.AllOf(env, [network.transfer(index, size) for index, size in phase.transfers]))
    assert call.seconds == pytest.approx(phase.latency + env.now, rel=1e-9)
    assert len(phase.transfers) == {8: 1, 16: 2, 32: 3}[ep]


def test_time_alone_of_a_group_that_leaves_no_leaf() -> None:
    """Ep 16 over nodes 0 and 1, below one leaf, and over 2 and 4, which are not: it shares 160 / 7 GB/s of uplink."""
    machine = build_cluster(cluster(nodes=5, kind="fat_tree", oversubscription=[7]))
    layout = lay_out(
        need("ep", "dispatch"), machine=machine, dp=32, ep=16, gpus=[*range(24), *range(32, 40)], **EVERYWHERE
    )
    calls = Calls(layout, folded(layout))
    near, far = (calls.call(layout.needs[0], rank) for rank in (0, 16))
    assert len(near.phases[0].transfers) == len(far.phases[0].transfers) == 2
    assert near.seconds < far.seconds


# --- sharing inside a phase ------------------------------------------------------------------------------------------


def coflow(usage: dict[int, float], weight: float = 1.0, cap: float = float("inf")) -> Coflow:
    """Build a coflow on constraints of capacity 1."""
    solo = min(cap, min(1 / use for use in usage.values()))
    return Coflow("test", tuple(usage), tuple(usage.values()), weight, cap, solo)


def test_transfers_of_a_phase_share_what_they_have_in_common() -> None:
    """Sizes 1 and 3 on one link: half each until 2, when the first is done; the other's 2 that are left take 2 more."""
    assert drain([(coflow({0: 1.0}), 1.0), (coflow({0: 1.0}), 3.0)]) == pytest.approx(4.0)


def test_weights_share_a_link_between_connections() -> None:
    """Three connections against one: 3/4 and 1/4. Sizes 3 and 2: the first ends at 4 with 1 of 2 moved; 1 more."""
    assert drain([(coflow({0: 1.0}, weight=3.0), 3.0), (coflow({0: 1.0}), 2.0)]) == pytest.approx(5.0)


def test_transfers_apart_end_with_the_slowest() -> None:
    """Different links: each at its own rate, one held by its cap of 1/4."""
    assert drain([(coflow({0: 1.0}), 1.0), (coflow({1: 2.0}), 1.5), (coflow({2: 1.0}, cap=0.25), 1.0)]) == 4.0


def test_nothing_to_move_takes_no_time() -> None:
    """No transfers."""
    assert drain([]) == 0.0


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=5))
def test_a_shared_link_is_never_idle(sizes: list[float]) -> None:
    """On one link of capacity 1 all transfers together take as long as their bytes, however they are cut."""
    assert drain([(coflow({0: 1.0}), size) for size in sizes]) == pytest.approx(sum(sizes), rel=1e-9)


def test_machine_is_the_one_described() -> None:
    """What the numbers above rest on: NVLink of 100 GB/s, NICs of 10."""
    capacity = {MACHINE.link_name(link): MACHINE.capacity[link] for link in range(len(MACHINE.capacity))}
    assert capacity["gpu0 -> node0.nvswitch"] == 100e9
    assert capacity["node0.nic0 -> leaf0.0"] == 10e9
