"""From a scenario's reliability to the plan of one job: what the section says, looked up on the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator.engine.campaign import simulate_campaign
from simulator.errors import ScenarioError
from simulator.physics.campaign.expected import expected_run_time
from simulator.physics.campaign.plan import (
    ALL_MACHINES,
    CampaignPlan,
    Duration,
    Elastic,
    Evaluation,
    Hazard,
    Pause,
    Pool,
    Tier,
)
from simulator.physics.campaign.planning import PhaseWork, job_spares, plan_campaign
from simulator.physics.checkpoints import renewal
from simulator.physics.cluster import build_cluster
from simulator.scenario.scenario import Scenario
from tests.small import load_small, small

DAY = 86400.0
PARAMETERS = 115_922_944


def _scenario(folder: Path, reliability: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    section = {"failures": [{"name": "node", "rate": "40 per 1000 node-days"}], **(reliability or {})}
    scenario = load_small(folder, reliability=None, **changes)
    return Scenario.model_validate({**dict(scenario), "reliability": section})


def _plan(
    folder: Path, reliability: dict[str, Any] | None = None, step_time: float = 10.0, **changes: Any
) -> CampaignPlan:
    scenario = _scenario(folder, reliability, **changes)
    return _planned(scenario, step_time)


def _planned(scenario: Scenario, step_time: float = 10.0, **fields: Any) -> CampaignPlan:
    work = PhaseWork("all", 100_000, step_time, 1e15, scenario)
    return plan_campaign(scenario, build_cluster(scenario.cluster), [work], **fields)


TIMES = {"save_time": "60 s", "load_time": "40 s"}


def test_a_run_in_which_nothing_breaks_saves_nothing(tmp_path: Path) -> None:
    """Without `reliability:` the plan has no save but the free one at the end."""
    plan = _planned(load_small(tmp_path, reliability=None))
    assert plan == CampaignPlan(phases=plan.phases, machines=2)
    assert plan.phases[0].tiers == (Tier("storage", 100_000, None, 0.0, 0.0, 0.0),)


@pytest.mark.parametrize(
    ("storage", "nic", "save", "load_time"),
    [
        ({"write_bandwidth": "10 GB/s", "read_bandwidth": "5 GB/s"}, {}, 10e9, 5e9),
        ({"write_bandwidth": "1 TB/s", "read_bandwidth": "1 TB/s"}, {}, 384e9, 384e9),
        ({"write_bandwidth": "1 TB/s", "read_bandwidth": "300 GB/s"}, {"per_node": 4}, 192e9, 192e9),
    ],
)
def test_a_save_is_as_fast_as_storage_or_network_allow(
    storage: dict[str, str], nic: dict[str, Any], save: float, load_time: float, tmp_path: Path
) -> None:
    """14 B of each of 115,922,944 parameters, at the storage's rate or that of all NICs of two nodes (24 GB/s each).

    A rank passes its weights on besides: 2 B of 115,922,944/8, two of them over a NIC where there are four a node. The
    last stage has 1,024 parameters more, for the final norm.
    """
    topology = small()["cluster"]["topology"]
    cluster = {"storage": storage, "topology": {**topology, "nic": {**topology["nic"], **nic}}}
    (tier,) = _plan(tmp_path, cluster=cluster).phases[0].tiers
    assert tier.blocking == pytest.approx(14 * PARAMETERS / save, rel=1e-4)
    passed_on = 2 * PARAMETERS / 8 / 24e9 * (2 if nic else 1)
    assert tier.load == pytest.approx(14 * PARAMETERS / load_time + passed_on, rel=1e-3)


def test_saves_need_a_storage_or_a_time(tmp_path: Path) -> None:
    """Neither storage nor save_time: the message names the field and an example."""
    with pytest.raises(ScenarioError, match=r"^reliability.checkpoint.save_time: .*save_time: 60 s$"):
        _plan(tmp_path, cluster={"storage": None})
    assert _plan(tmp_path, {"checkpoint": TIMES}, cluster={"storage": None}).phases[0].tiers[0].load == 40.0


def test_asynchronous_and_incremental_saves(tmp_path: Path) -> None:
    """Async blocks for its stall. With deltas of a fifth, every tenth full: 60 x 2.8/10 s in the mean.

    Loading reads the full save and 4.5 deltas: 40 x 1.9 s.
    """
    checkpoint = {**TIMES, "interval": "100 steps"}
    (sync,) = _plan(tmp_path, {"checkpoint": checkpoint}).phases[0].tiers
    assert sync == Tier("storage", 100, None, 60.0, 0.0, 40.0, ALL_MACHINES)
    (background,) = _plan(tmp_path, {"checkpoint": {**checkpoint, "mode": "async", "stall": "1 s"}}).phases[0].tiers
    assert background == Tier("storage", 100, None, 1.0, 60.0, 40.0, ALL_MACHINES)
    deltas = {**checkpoint, "incremental": {"share": 0.2, "full_every": 10}}
    (delta,) = _plan(tmp_path, {"checkpoint": deltas}).phases[0].tiers
    assert (delta.blocking, delta.load) == (pytest.approx(16.8), pytest.approx(76.0))


def test_the_optimum_is_of_all_classes(tmp_path: Path) -> None:
    """24 failures a day, save 60 s: 618 s of work, 62 steps of 10 s; none: one save at the end; or as asked."""
    failures = [{"name": "a", "rate": "20 per day"}, {"name": "b", "rate": "4 per day"}]
    assert renewal(60.0, 3600.0) == pytest.approx(618, abs=1)
    assert _plan(tmp_path, {"failures": failures, "checkpoint": TIMES}).phases[0].tiers[0].every == 62
    assert _plan(tmp_path, {"failures": [], "checkpoint": TIMES}).phases[0].tiers[0].every == 100_000
    scenario = _scenario(tmp_path, {"checkpoint": TIMES})
    assert _planned(scenario, every=17).phases[0].tiers[0].every == 17


def test_an_interval_of_time_is_kept(tmp_path: Path) -> None:
    """10 min, of which a save takes 60 s: 54 steps at the healthy pace, wall-clock where a step takes longer."""
    (tier,) = _plan(tmp_path, {"checkpoint": {**TIMES, "interval": "10 min"}}).phases[0].tiers
    assert (tier.every, tier.seconds) == (54, 600.0)
    with pytest.raises(ScenarioError, match=r"0\.1 s is shorter than a save, 0\.162 s"):
        _plan(tmp_path, {"checkpoint": {"interval": "0.1 s"}})


def test_near_tiers(tmp_path: Path) -> None:
    """Host memory over PCIe 4 (26.8 GB/s a GPU), a peer over its NIC of 24 GB/s, and back again; 16 ranks.

    The storage is saved to in multiples of 10 steps, for failures that lose two machines.
    """
    tiers = [
        {"to": "host", "interval": "5 steps", "stall": "0.5 s"},
        {"to": "peer", "interval": "10 steps", "save_time": "3 s"},
    ]
    section = {
        "checkpoint": {**TIMES, "interval": "10 min", "tiers": tiers},
        "failures": [{"name": "leaf", "rate": "1 per leaf-day"}, {"name": "node", "rate": "9 per day"}],
    }
    host, peer, storage = _plan(tmp_path, section).phases[0].tiers
    each = 14 * PARAMETERS / 16
    assert (host.name, host.every, host.blocking, host.survives) == ("host", 5, 0.5, 0)
    assert host.persist == host.load == pytest.approx(each / 26.78e9, rel=1e-3)
    assert (peer.every, peer.persist, peer.survives) == (10, 3.0, 1)
    assert peer.load == pytest.approx(each / 24e9 + each / 26.78e9, rel=1e-3)
    assert (storage.every, storage.seconds, storage.survives) == (60, None, ALL_MACHINES)
    optimal = {**section, "checkpoint": {**TIMES, "tiers": tiers}}
    assert _plan(tmp_path, optimal).phases[0].tiers[-1].every == -(-round(renewal(60.0, DAY / 8) / 10) // 10) * 10
    slow = [{"to": "peer", "interval": "1 steps", "save_time": "30 s"}]
    with pytest.raises(ScenarioError, match=r"a save to peer takes 30 s .* save at most every 3 steps"):
        _plan(tmp_path, {"checkpoint": {**TIMES, "tiers": slow}})


def test_phases_save_by_their_own_pace(tmp_path: Path) -> None:
    """10 min are 54 steps of 10 s or 27 of 20 s; short phases do not shorten the interval."""
    scenario = _scenario(tmp_path, {"checkpoint": {**TIMES, "interval": "10 min"}})
    works = [PhaseWork(f"{n}", 30, pace, 1e15, scenario) for n, pace in enumerate((10.0, 20.0))]
    plan = plan_campaign(scenario, build_cluster(scenario.cluster), works)
    assert [phase.tiers[0].every for phase in plan.phases] == [54, 27]
    assert plan.steps == 60


# --- the rest of the section ------------------------------------------------------------------------------------------


def test_restart_grows_with_the_job(tmp_path: Path) -> None:
    """5 min, half a second for each of 16 GPUs; in place a minute."""
    plan = _plan(
        tmp_path, {"restart": "5 min", "restart_per_gpu": "0.5 s", "restart_in_place": "1 min", "start": "1 h"}
    )
    assert (plan.restart, plan.restart_in_place) == (Duration(308.0), Duration(60.0))
    assert (plan.start, _plan(tmp_path).start, _plan(tmp_path).restart_in_place) == (
        Duration(3600.0),
        Duration(0.0),
        None,
    )


def test_machines(tmp_path: Path) -> None:
    """Two of three nodes: one to spare, warm if it says so, with preempted ones on top; not more than there are."""
    plan = _plan(tmp_path)
    assert (plan.machines, plan.hot, plan.warm.size, plan.preempted.size) == (2, Pool(1, Duration(0.0)), 0, 0)
    warm = _plan(tmp_path, {"spares": {"warm": 1, "selection": "3 min", "preempted": 5, "preemption": "20 min"}})
    assert (warm.hot.size, warm.warm, warm.preempted) == (0, Pool(1, Duration(180.0)), Pool(5, Duration(1200.0)))
    with pytest.raises(ScenarioError, match="2 spares are more than the 1 of the cluster's 3 nodes"):
        _plan(tmp_path, {"spares": 2})
    assert job_spares(load_small(tmp_path, reliability=None)) == (0, 0)


def test_stops_and_what_every_step_suffers(tmp_path: Path) -> None:
    """Maintenance at random or regularly, data stalls, evaluation; sequences, garbage and the time of day."""
    section = {
        "maintenance": {"every": "7 d", "duration": "1 h"},
        "data_stalls": {"rate": "2 per day", "duration": "5 min"},
        "evaluation": {"every": "1000 steps", "duration": "5 min"},
        "sequence_imbalance": 0.02,
        "garbage_collection": {"every": "100 steps", "pause": "1 s"},
        "diurnal": {"amplitude": 0.015},
    }
    plan = _plan(tmp_path, section)
    assert plan.pauses == (
        Pause("maintenance", "planned", Hazard("renewal", 1 / (7 * DAY), sigma=0.0), Duration(3600.0)),
        Pause("data_stalls", "data_stall", Hazard("poisson", 2 / DAY), Duration(300.0)),
    )
    assert plan.evaluation == Evaluation(1000, 300.0)
    assert (plan.step_factor, plan.garbage_collection, plan.diurnal) == (1.02, 0.01, (0.015, DAY))
    random = _plan(tmp_path, {"maintenance": {"rate": "0.87 per day", "duration": "1 h"}}).pauses
    assert random[0].hazard == Hazard("poisson", 0.87 / DAY)


def test_elastic_replicas(tmp_path: Path) -> None:
    """tp 4, pp 2, dp 2 on two nodes: both replicas share both nodes, so none can go. With tp 8, pp 1 they can."""
    with pytest.raises(ScenarioError, match=r"leaves none of dp 2 \(2 of them share nodes or experts\) to lose"):
        _plan(tmp_path, {"recovery": "elastic"})
    plan = _plan(tmp_path, {"recovery": "elastic"}, parallelism={"tp": 8, "pp": 1, "dp": 2})
    assert plan.elastic == Elastic(1, 2, 1, Duration(30.0), Duration(60.0), keeps_state=False)
    assert plan.policy == "elastic"


def test_presets_and_lemons(tmp_path: Path) -> None:
    """RSC-1: 6.5 per 1000 node-days over two nodes, and its lemons' part of them."""
    plan = _plan(tmp_path, {"preset": "rsc-1", "failures": []})
    assert sum(failure.hazard.rate for failure in plan.failures) * DAY == pytest.approx(2 * 6.5e-3, rel=0.02)
    assert plan.lemons.share > 0
    assert any(failure.lemon_share > 0 for failure in plan.failures)


PARTS = {"scheduling": "2 min", "container": "3 min", "communicators": "30 s", "per_gpu": "0.5 s"}


@pytest.mark.parametrize(("stage", "keeps"), [(0, True), (1, False)])
def test_a_partial_restart_waits_for_new_machines_only(stage: int, keeps: bool, tmp_path: Path) -> None:
    """New machines take 5 min, all together 30 s and 0.5 s for each of 16 GPUs.

    Without ZeRO a new node reads its replica, 14 B each of 115,922,944 parameters, an eighth over each NIC of 24 GB/s,
    and no step but that in progress is lost; with it everybody goes back to a save.
    """
    split = {"tp": 8, "pp": 1, "dp": 2}
    optimizer = {"optimizer": {"zero_stage": stage}}
    plan = _plan(tmp_path, {"recovery": "partial", "restart": PARTS}, parallelism=split, training=optimizer)
    assert (plan.policy, plan.restart, plan.restart_in_place) == ("elastic", Duration(300.0), Duration(38.0))
    assert plan.elastic is not None
    assert (plan.elastic.fewest, plan.elastic.replicas, plan.elastic.keeps_state) == (2, 2, keeps)
    load_time = 14 * PARAMETERS / 8 / 24e9 if keeps else 0.0
    assert plan.elastic.reconfigure.mean == pytest.approx(38.0 + load_time, rel=1e-3)
    alone = _plan(tmp_path, {"recovery": "partial", "restart": PARTS}, parallelism={"tp": 8, "pp": 2, "dp": 1})
    assert alone.elastic == Elastic(2, 1, 1, Duration(38.0), Duration(0.0), keeps_state=False)


def test_a_partial_restart_loses_a_step_and_the_time_of_a_machine(tmp_path: Path) -> None:
    """Each lost machine: its detection, 5 min of waiting for the new one, 38 s and the load together; half a step."""
    changes: dict[str, Any] = {"parallelism": {"tp": 8, "pp": 1, "dp": 2}, "training": {"optimizer": {"zero_stage": 0}}}
    topology = small()["cluster"]["topology"]
    changes["cluster"] = {"topology": {**topology, "nodes": 12, "nodes_per_leaf": 12}}
    section = {"recovery": "partial", "restart": PARTS, "failures": [{"name": "node", "rate": "1 per node-day"}]}
    scenario = _scenario(tmp_path, {**section, "failures_during_restart": False}, job_gpus=16, **changes)
    plan = _planned(scenario)
    found = simulate_campaign(plan, 5)
    failures = found.failures["node"]
    assert failures > 10
    assert found.recoveries == {"replicas": failures}
    assert found.time_s["waiting"] == pytest.approx(300.0 * failures)
    assert plan.elastic is not None
    assert found.time_s["restart"] == pytest.approx(plan.elastic.reconfigure.mean * failures)
    assert found.time_s["lost_work"] < 10.0 * failures
    assert found.wall_clock == pytest.approx(expected_run_time(plan), rel=0.01)


def test_every_reader_takes_longer_the_more_replicas_there_are(tmp_path: Path) -> None:
    """Two replicas that both read 14 B of each parameter from a slow storage take twice as long as one."""
    cluster = {"storage": {"write_bandwidth": "1 GB/s", "read_bandwidth": "1 GB/s"}}
    changes: dict[str, Any] = {"cluster": cluster, "training": {"optimizer": {"zero_stage": 0}}}
    once, every = (
        _plan(tmp_path, {"checkpoint": {"readers": readers}}, **changes).phases[0].tiers[0].load
        for readers in ("once", "every")
    )
    assert every == pytest.approx(28 * PARAMETERS / 1e9, rel=1e-3)
    assert once < 0.6 * every


def test_elastic_replicas_that_keep_the_state_save_for_the_rest(tmp_path: Path) -> None:
    """Lost machines take no save back: one failure in ten that hits the job sets the optimum."""
    failures = [{"name": "node", "rate": "9 per day", "component": "node", "needs_machine": True}]
    software = {"name": "software", "rate": "1 per day"}
    changes: dict[str, Any] = {"parallelism": {"tp": 8, "pp": 1, "dp": 2}, "training": {"optimizer": {"zero_stage": 0}}}
    section = {"recovery": "elastic", "checkpoint": TIMES, "failures": [*failures, software]}
    alone = {"checkpoint": TIMES, "failures": [{**software, "needs_machine": False}]}
    section["failures"] = [*failures, {**software, "needs_machine": False}]
    every = [_plan(tmp_path, each, **changes).phases[0].tiers[0].every for each in (section, alone)]
    assert every[0] == every[1]


def test_a_phase_has_its_models_checkpoint(tmp_path: Path) -> None:
    """Twice the layers: its saves are larger by 4 layers' parameters."""
    scenario = _scenario(tmp_path)
    big = scenario.model.model_copy(update={"num_layers": 8})
    works = [
        PhaseWork("text", 100, 10.0, 1e15, scenario),
        PhaseWork("vision", 100, 10.0, 1e15, scenario.model_copy(update={"model": big})),
    ]
    text, vision = plan_campaign(scenario, build_cluster(scenario.cluster), works).phases
    ratio = big.total_parameters / scenario.model.total_parameters
    assert vision.tiers[0].blocking / text.tiers[0].blocking == pytest.approx(ratio, rel=1e-3)
    assert text.tokens == 16 * 1024
