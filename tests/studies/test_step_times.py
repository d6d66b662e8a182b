"""Step times of degraded states: against whole simulations, and laws."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from simulator.engine.iteration import simulate_step
from simulator.errors import LayoutError
from simulator.physics.campaign.plan import State
from simulator.physics.cluster import build_cluster
from simulator.physics.program.build import build_program
from simulator.scenario.conditions import Condition, SlowGpu, SlowNic, SlowNode
from simulator.scenario.scenario import Scenario
from simulator.studies.phases import PreparedRun, prepare_run
from simulator.studies.step_times import SimulatedStepTimes, without_replicas
from tests.small import load_small

SLOW = [
    {"name": "hosts", "kind": "slow_node", "share": 0.1, "speed": {"between": [0.5, 0.9]}},
    {"name": "chips", "kind": "slow_gpu", "share": 0.1, "speed": 0.8},
    {"name": "cards", "kind": "slow_nic", "share": 0.1, "capacity": 0.5},
]
SPLIT = {"tp": 4, "pp": 2, "dp": 4}


def _run(folder: Path, **changes: Any) -> PreparedRun:
    """Two stages of two nodes each, in which four data-parallel replicas meet in pairs."""
    topology = {
        "kind": "rail_clos", "nodes": 6, "gpus_per_node": 8, "nodes_per_leaf": 6, "tiers": 1,
        "scale_up": {"bandwidth": "300 GB/s"}, "nic": {"bandwidth": "200 Gbps"},
    }  # fmt: skip
    fields: dict[str, Any] = {
        "parallelism": SPLIT, "cluster": {"topology": topology}, "reliability": {"slow": SLOW}, **changes,
    }  # fmt: skip
    run = prepare_run(load_small(folder, **fields))
    assert run is not None
    return run


def _times(run: PreparedRun) -> SimulatedStepTimes:
    run.plan()
    return run.step_times


def _whole(scenario: Scenario, *conditions: Condition) -> float:
    """The step with every rank simulated."""
    cluster = build_cluster(scenario.cluster, conditions)
    return simulate_step(build_program(scenario, cluster, folded=False)).step_time


def test_the_healthy_step_is_not_simulated_again(tmp_path: Path) -> None:
    """It is known from the scenario's own step."""
    run = _run(tmp_path)
    times = _times(run)
    assert times(0, ()) == run.plan().phases[0].step_time == pytest.approx(_whole(run.scenario), rel=1e-9)
    assert times.simulated == 0


def test_states_of_one_or_two_components_are_exact(tmp_path: Path) -> None:
    """Oracle: the unfolded step with those conditions, on the first and second member of the classes."""
    run = _run(tmp_path)
    times, own = _times(run), run.scenario
    slow, slower = SlowNode(kind="slow_node", node=0, speed=0.8), SlowNode(kind="slow_node", node=2, speed=0.7)
    chip, card = SlowGpu(kind="slow_gpu", gpu=17, speed=0.6), SlowNic(kind="slow_nic", node=0, nic=0, capacity=0.5)
    one = times(0, (("slow_node", 0, 20),))
    assert one == pytest.approx(_whole(own, slow), rel=1e-9)
    assert one > times(0, ())
    assert times(0, (("slow_node", 0, 20), ("slow_node", 1, 30))) == pytest.approx(
        _whole(own, slow, slower.model_copy(update={"node": 3})), rel=1e-9
    )
    assert times(0, (("slow_gpu", 1, 40), ("slow_node", 0, 20))) == pytest.approx(
        _whole(own, chip.model_copy(update={"gpu": 16}), slow.model_copy(update={"node": 1})), rel=1e-9
    )
    assert times(0, (("slow_nic", 0, 50),)) == pytest.approx(_whole(own, card), rel=1e-9)
    assert times.simulated == 4
    assert times.seconds > 0


def test_each_state_is_simulated_once(tmp_path: Path) -> None:
    """Asked again it is remembered; a pickled copy knows it too, and has no graph."""
    times = _times(_run(tmp_path))
    state: State = (("slow_node", 0, 20),)
    told: list[float] = []
    times.warm([(0, state), (0, state)], told.append)
    assert (times.simulated, told) == (1, [0.5, 1.0])
    copy = pickle.loads(pickle.dumps(times))
    assert copy(0, state) == times(0, state)
    assert copy.simulated == 1
    assert copy(0, (("slow_gpu", 0, 20),)) == times(0, (("slow_gpu", 0, 20),))


def test_the_two_slowest_stand_for_more(tmp_path: Path) -> None:
    """A third and fourth component that alone are quicker change nothing; near the whole simulation of all three."""
    run = _run(tmp_path)
    times = _times(run)
    two: State = (("slow_node", 0, 40), ("slow_node", 1, 30))
    three: State = (("slow_gpu", 1, 5), *two)
    assert times(0, three) == pytest.approx(times(0, two), rel=1e-12)
    conditions = (
        SlowNode(kind="slow_node", node=0, speed=0.6),
        SlowNode(kind="slow_node", node=3, speed=0.7),
        SlowGpu(kind="slow_gpu", gpu=20, speed=0.95),
    )
    assert times(0, three) == pytest.approx(_whole(run.scenario, *conditions), rel=0.01)
    between: State = (("slow_gpu", 1, 5), ("slow_node", 0, 42), ("slow_node", 1, 33))
    assert times(0, between) == pytest.approx(times(0, between[1:]), rel=5e-3)
    many: State = tuple(("slow_node", 0, 40) for _ in range(9))
    assert times(0, many) == pytest.approx(times(0, many[:2]), rel=1e-9)


def test_worse_is_never_quicker_than_healthy(tmp_path: Path) -> None:
    """A law of every state: at least the healthy step; more severe is slower."""
    times = _times(_run(tmp_path))
    healthy = times(0, ())
    found = [times(0, (("slow_node", 1, severity),)) for severity in (1, 10, 50)]
    assert healthy <= found[0] <= found[1] <= found[2] <= 2 * healthy * (1 + 1e-9)


def test_a_slow_job_takes_its_per_cent_longer(tmp_path: Path) -> None:
    """25 % longer, and on top of what else is slow."""
    times = _times(_run(tmp_path))
    assert times(0, (("job", 0, 25),)) == pytest.approx(1.25 * times(0, ()))
    slow: State = (("slow_node", 0, 20),)
    assert times(0, (("job", 0, 25), *slow)) == pytest.approx(1.25 * times(0, slow))


# --- missing replicas -------------------------------------------------------------------------------------------------


def test_missing_replicas_leave_more_microbatches(tmp_path: Path) -> None:
    """16 sequences: dp 4 has 4 microbatches, dp 3 has 6 (5.3 rounded up), dp 2 has 8, dp 1 has 16."""
    scenario = _run(tmp_path).scenario
    found = [without_replicas(scenario, missing) for missing in range(4)]
    assert [(job.parallelism.dp, job.num_microbatches) for job in found] == [(4, 4), (3, 6), (2, 8), (1, 16)]
    with pytest.raises(LayoutError, match="4 of dp 4 replicas missing leave none"):
        without_replicas(scenario, 4)


def test_interleaved_microbatches_are_rounded_to_stages(tmp_path: Path) -> None:
    """Interleaved schedules need a multiple of pp: 22 sequences over 3 replicas are 8 microbatches each, not 7.3."""
    changes = {"schedule": {"kind": "interleaved", "vpp": 2}, "global_batch_size": 24}
    scenario = _run(tmp_path, training=changes, parallelism={**SPLIT, "pp": 2}).scenario
    assert without_replicas(scenario, 1).num_microbatches == 8
    odd = _run(tmp_path, training={**changes, "global_batch_size": 40}).scenario
    assert without_replicas(odd, 1).num_microbatches == 14


def test_a_split_that_allows_no_smaller_dp_keeps_it(tmp_path: Path) -> None:
    """8 experts over ep 4 of tp 4 x dp 4 with etp 4: without a replica ep divides no more; the batch grows instead."""
    model = {
        "num_layers": 4, "hidden_size": 1024, "ffn_hidden_size": 4096, "num_attention_heads": 16, "vocab_size": 32000,
        "name": "moe", "tied_embeddings": False, "moe": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 2048},
    }  # fmt: skip
    job = without_replicas(_run(tmp_path, model=model, parallelism={**SPLIT, "ep": 4}).scenario, 1)
    assert (job.parallelism.dp, job.num_microbatches) == (4, 6)


def test_missing_units_take_their_replicas_along(tmp_path: Path) -> None:
    """Pairs of replicas share nodes: one unit less is dp 2; with a slow node of those that are left."""
    recovery = {"slow": SLOW, "recovery": "elastic"}
    run = _run(tmp_path, reliability=recovery)
    times = _times(run)
    job = without_replicas(run.scenario, 2)
    assert times.replicas_per_unit == 2
    missing: State = (("missing_replicas", 0, 1),)
    assert times(0, missing) == pytest.approx(_whole(job), rel=1e-9)
    assert times(0, missing) > times(0, ())
    slow = SlowNode(kind="slow_node", node=1, speed=0.5)  # the only node of the second stage that is left
    assert times(0, (*missing, ("slow_node", 1, 50))) == pytest.approx(_whole(job, slow), rel=1e-9)
