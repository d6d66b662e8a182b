"""Saves and loads: bytes per rank by hand, published times, folded against unfolded sharing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScenarioError
from simulator.physics.campaign.saving import Checkpoints, Flows, drain_time, host_bandwidth, rank_state
from simulator.physics.cluster import build_cluster
from simulator.scenario.scenario import Scenario
from simulator.scenario.topology import Cluster
from simulator.scenario.transformer import Transformer
from tests.physics.shapes import cluster, gpt, make_scenario

MODEL = gpt(num_layers=8, hidden_size=1024, vocab_size=4096, tied_embeddings=False)
EXPERTS = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 512}


def _times(machine: Cluster, model: Transformer = MODEL, *, size: float = 14.0, **fields: Any) -> Checkpoints:
    scenario = make_scenario(model, machine, **fields)
    return Checkpoints(scenario, build_cluster(machine, scenario.conditions), size)


# --- who writes what --------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 1, 3]),
    st.booleans(),
)
def test_what_ranks_write_adds_up(tp: int, pp: int, dp: int, zero: int, experts: bool) -> None:
    """Every byte of the model's state is written once, whatever the split."""
    model = gpt(num_layers=8, **({"moe": EXPERTS} if experts else {}))
    scenario = make_scenario(
        model, cluster(nodes=8), tp=tp, pp=pp, dp=dp, ep=dp if experts else 1, optimizer={"zero_stage": zero}
    )
    assert rank_state(scenario, 12.0).own.sum() == pytest.approx(12 * model.total_parameters)


def test_zero_says_what_has_to_be_passed_on() -> None:
    """tp 1, dp 4: all P weights. ZeRO-0 needs all 14 bytes of what another read, ZeRO-1 the 2 of weights, 3 nothing."""
    for zero, alike in ((0, 14.0), (1, 2.0), (3, 0.0)):
        state = rank_state(make_scenario(MODEL, cluster(nodes=2), dp=4, optimizer={"zero_stage": zero}), 14.0)
        assert state.own == pytest.approx(14 * MODEL.total_parameters / 4)
        assert state.shared == pytest.approx(alike * MODEL.total_parameters)
    alone = rank_state(make_scenario(MODEL, cluster(nodes=2), tp=8, dp=1), 14.0)
    assert not alone.shared.any()


def test_stages_write_what_they_hold() -> None:
    """2 stages of 4 layers, the first with the embedding of 4,096 x 1,024 and 256 positions, the last with the output.

    They differ by the positions, 256 x 1,024, less the final norm, 2 x 1,024.
    """
    state = rank_state(make_scenario(MODEL, cluster(nodes=2), tp=1, pp=2, dp=1), 1.0)
    assert state.own[0] - state.own[1] == pytest.approx(256 * 1024 - 2 * 1024)


# --- how long it takes ------------------------------------------------------------------------------------------------


def _one_big_model(parameters: float) -> Transformer:
    """A model with about so many parameters: 12 h² a layer, without embeddings to speak of."""
    layers, hidden = 126, round((parameters / 12 / 126) ** 0.5 / 128) * 128
    return gpt(num_layers=layers, hidden_size=hidden, num_attention_heads=128, vocab_size=128, tied_embeddings=True)


def test_bloom_writes_2_3_terabytes_in_40_s() -> None:
    """BLOOM (BigScience chronicles): 48 nodes, tp 4, pp 12, dp 8, 2.3 TB in 40 s: its storage took 57.5 GB/s."""
    model = gpt(num_layers=72, hidden_size=14336, num_attention_heads=112, vocab_size=250880)
    machine = cluster(nodes=48, nic={"bandwidth": "12.5 GB/s", "per_node": 4})
    times = _times(machine, model, size=2.3e12 / model.total_parameters, tp=4, pp=12, dp=8)
    assert times.size == pytest.approx(2.3e12)
    assert times.write(57.5e9) == pytest.approx(40.0)


def test_a_530b_checkpoint_over_one_slow_link_takes_42_minutes() -> None:
    """GEMINI (SOSP'23) on MT-NLG: 530e9 x 12 B = 6.36 TB over 20 Gbps = 2.5 GB/s is 2,544 s = 42.4 min."""
    model = gpt(num_layers=105, hidden_size=20480, num_attention_heads=128, vocab_size=51200, max_sequence_length=2048)
    assert model.total_parameters == pytest.approx(530e9, rel=0.002)
    times = _times(cluster(nodes=35), model, size=12.0, tp=8, pp=35, dp=1)
    assert times.write(20e9 / 8) == pytest.approx(2544.0, rel=0.002)


def test_llama_405b_on_8960_gpus() -> None:
    """ByteCheckpoint (arXiv 2407.20143, Table 8): 51.06 s to save and 129.49 s to load: 5.67 TB at 111 and 44 GB/s.

    NICs of 50 GB/s are idle most of the time: 633 MB a GPU take 13 ms. To the host it is 12 ms of the 0.59 s that
    training stops.
    """
    model = _one_big_model(405e9)
    topology = {"nic": {"bandwidth": "50 GB/s"}, "nodes_per_leaf": 32}
    times = _times(
        cluster(nodes=1120, **topology),
        model,
        size=14 * 405e9 / model.total_parameters,
        tp=8,
        pp=14,
        dp=80,
        global_batch_size=160,
    )
    assert times.write(111e9) == pytest.approx(51.06, rel=0.01)
    assert times.write(1e15) < 0.02
    assert 129.49 * 0.98 < times.read(44e9) < 129.49 * 1.02
    assert times.to_host(8 * host_bandwidth("h100")) < 0.59


def test_the_narrowest_part_of_the_way_counts() -> None:
    """32 equal ranks on 4 nodes, 10 GB/s a NIC; leaves of 2 nodes with a seventh of that up.

    Storage of 1 GB/s: all through it. Else 16 NICs of 10 GB/s below each of 2 leaves: 160/7 GB/s up.
    """
    machine = cluster(nodes=4, kind="fat_tree", oversubscription=[7])
    times = _times(machine, tp=1, dp=32, optimizer={"zero_stage": 3})
    assert times.write(1e9) == pytest.approx(times.size / 1e9)
    assert times.write(1e15) == pytest.approx(times.size / 2 / (160e9 / 7))
    wide = _times(cluster(nodes=4, kind="fat_tree"), tp=1, dp=32, optimizer={"zero_stage": 3})
    assert wide.write(1e15) == pytest.approx(wide.size / 32 / 10e9)


def test_pods_share_their_links_to_the_cores() -> None:
    """Two pods of two nodes, a spine with half the bandwidth up: 2 x 160/2 GB/s for everything."""
    machine = cluster(
        nodes=4,
        kind="fat_tree",
        nodes_per_pod=2,
        tiers=3,
        spines=2,
        cores=2,
        oversubscription=[1, 2],
        switch_ports=None,
    )
    times = _times(machine, tp=1, dp=32, optimizer={"zero_stage": 3})
    assert times.write(1e15) == pytest.approx(times.size / 160e9)


def test_loading_for_itself_reads_everything() -> None:
    """ZeRO-1 on 8 GPUs: 14 P bytes once, or 14 P and the 7/8 of 2 P that each has not; 2 P are passed on at 10 GB/s."""
    times = _times(cluster(nodes=2), tp=1, dp=8, optimizer={"zero_stage": 1})
    parameters = MODEL.total_parameters
    assert times.read(1e9) == pytest.approx(14 * parameters / 1e9 + 2 * parameters / 10e9)
    assert times.read(1e9, "every") == pytest.approx(28 * parameters / 1e9)


def test_a_box_without_nics_has_only_its_storage() -> None:
    """Nothing between GPUs and storage is described: 1 TB/s is 1 TB/s."""
    topology = {"kind": "nvlink_box", "gpus_per_node": 8, "scale_up": {"bandwidth": "100 GB/s"}}
    machine = Cluster.model_validate({"name": "box", "accelerator": "h100", "topology": topology})
    times = _times(machine, tp=8, dp=1)
    assert times.write(1e12) == pytest.approx(times.size / 1e12)
    with pytest.raises(ScenarioError, match="1 copies with peers need a job of 2 nodes, this one has 1"):
        times.to_peer()


def test_hosts_and_peers() -> None:
    """To the host by PCIe 4, 16 x 1.969 GB/s x 0.85 = 26.8 GB/s a GPU; to the next node 10 GB/s a GPU, twice for two.

    Where a node moves 40 GB/s in all, its 8 GPUs share it.
    """
    times = _times(cluster(nodes=4), tp=8, dp=4, optimizer={"zero_stage": 1})
    each = 14 * MODEL.total_parameters / 32
    assert host_bandwidth("a100-80gb") == pytest.approx(26.8e9, rel=1e-3)
    assert times.to_host() == pytest.approx(each / host_bandwidth("a100-80gb"), rel=1e-3)
    assert times.to_peer() == pytest.approx(each / 10e9, rel=1e-3)
    assert times.to_peer(2) == pytest.approx(2 * each / 10e9, rel=1e-3)
    assert times.to_peer(1, 40e9) == times.to_host(40e9) == pytest.approx(8 * each / 40e9, rel=1e-3)


# --- folded is unfolded -----------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["rail_clos", "fat_tree", "dual_plane"]),
    st.sampled_from([(8, 1, 4), (4, 2, 5), (2, 4, 5), (1, 8, 3)]),
    st.sampled_from([0, 3]),
    st.sampled_from([1e9, 3e10, 1e15]),
    st.sampled_from([1.0, 3.0]),
    st.booleans(),
)
def test_folding_changes_nothing(
    kind: str, split: tuple[int, int, int], more: int, storage: float, narrow: float, slow: bool
) -> None:
    """Oracle: every NIC a flow of its own, over all links; also with one weak NIC. To the storage and to the peers."""
    tp, pp, dp = split
    machine = cluster(nodes=5 + more, kind=kind, nodes_per_leaf=3, oversubscription=[narrow])
    scenario = make_scenario(MODEL, machine, tp=tp, pp=pp, dp=dp, optimizer={"zero_stage": 1})
    if slow:
        weak = {"kind": "slow_nic", "node": 1, "nic": 0, "capacity": 0.3}
        scenario = Scenario.model_validate({**dict(scenario), "conditions": [weak]})
    times = Checkpoints(scenario, build_cluster(machine, scenario.conditions), 14.0)
    assert _both(times.ways.flows(times.state.own, storage))
    if tp * pp * dp > 8:
        assert _both(times._to_next(np.unique(times.cluster.node_of[times.gpu_of_rank]), 1))


def _both(flows: Flows) -> bool:
    return drain_time(flows) == pytest.approx(drain_time(flows, folded=False), rel=1e-9)


def test_early_finishers_leave_their_share() -> None:
    """2 and 6 bytes over one link of 2/s: until 2 s both run at 1, then the other 4 bytes take 2 s at 2."""
    rows = np.array([0, 1, 2]), np.array([0, 0]), np.ones(2)
    assert drain_time(Flows(np.array([2.0, 6.0]), *rows, np.array([2.0]))) == pytest.approx(4.0)
    assert drain_time(Flows(np.array([0.0, 6.0]), *rows, np.array([2.0]))) == pytest.approx(3.0)
    assert drain_time(Flows(np.zeros(2), *rows, np.array([2.0]))) == 0.0


@given(st.floats(1e9, 1e13), st.floats(1.0, 10.0))
def test_more_bandwidth_is_never_slower(storage: float, factor: float) -> None:
    """A law: neither to write nor to read."""
    times = _times(cluster(nodes=4, kind="fat_tree", oversubscription=[3]), tp=4, pp=2, dp=4)
    assert times.write(storage * factor) <= times.write(storage) * (1 + 1e-12)
    assert times.read(storage * factor, "every") <= times.read(storage, "every") * (1 + 1e-12)
