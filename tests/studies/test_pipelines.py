"""Every schedule from the scenario file to the figures: bubbles in the papers' order, parts that add up, memory."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from simulator.physics.schedules.tables import home
from simulator.scenario.pipeline import ScheduleKind, num_stages
from simulator.studies.show import describe_scenario
from simulator.studies.simulate import Simulation, simulate
from tests.small import load_small

SPLIT = {"tp": 1, "pp": 4, "dp": 2}


@lru_cache
def step(kind: ScheduleKind, **more: Any) -> Simulation:
    """A step of eight equal layers on four pipeline ranks, 16 microbatches; the vocabulary is too small to matter."""
    vpp = {"vpp": 2} if kind == "interleaved" else {}
    with TemporaryDirectory() as folder:
        scenario = load_small(
            Path(folder),
            model={"num_layers": 8, "hidden_size": 2048, "ffn_hidden_size": 8192, "vocab_size": 128},
            parallelism=SPLIT,
            training={"schedule": {"kind": kind, **vpp, **more}, "global_batch_size": 32, "tokens": None},
        )
    return simulate(scenario)


KINDS: tuple[ScheduleKind, ...] = (
    "gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-1p", "zb-2p", "zbv", "dualpipe", "dualpipev",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_schedule_runs(kind: ScheduleKind) -> None:
    """The parts add up to the step, all model FLOPs are done, and no bubble is larger than a pass of the pipeline."""
    figures = step(kind).step_figures
    assert sum(figures["breakdown_s"].values()) == figures["step_time_s"]
    assert figures["model_flops"] == step("1f1b").step_figures["model_flops"]
    assert 0.0 <= figures["bubble_fraction"] <= 0.16


@pytest.mark.parametrize("kind", KINDS)
def test_every_message_is_sent_and_received_once(kind: ScheduleKind) -> None:
    """Between the ranks where the stages live, whether a gradient comes from a B or an I; none inside a rank."""
    program = step(kind).program
    place = home(kind, 4, 16)
    stages = num_stages(kind, 4, 2 if kind == "interleaved" else 1)
    sent, received = {}, {}
    for rank, tasks in enumerate(program.tasks):
        for task in tasks:
            if task.send is not None:
                sent[task.send[1:]] = rank
            if task.receive is not None:
                received[task.receive[1:]] = rank
    wanted = {
        (letter, stage, microbatch)
        for letter, source in (("F", -1), ("B", 1))
        for stage in range(stages)
        for microbatch in range(16)
        if 0 <= stage + source < stages and place(stage, microbatch) != place(stage + source, microbatch)
    }
    assert sent.keys() == received.keys() == wanted
    for letter, stage, microbatch in wanted:
        assert received[letter, stage, microbatch] == place(stage, microbatch)
        assert sent[letter, stage, microbatch] == place(stage + (-1 if letter == "F" else 1), microbatch)


def test_bubbles_come_in_the_order_of_the_papers() -> None:
    """ZB-H1 has less than interleaved's 1F1B with as many activations as 1F1B; ZB-H2 and ZB-V have hardly any."""
    bubble = {kind: step(kind).step_figures["bubble_fraction"] for kind in KINDS}
    assert bubble["zbv"] < bubble["zb-h1"] < bubble["1f1b"]
    assert bubble["zb-h2"] < bubble["zb-h1"]
    assert bubble["zb-2p"] < bubble["zb-1p"] <= bubble["1f1b"]
    assert bubble["dualpipe"] < bubble["1f1b"]
    assert bubble["dualpipev"] < bubble["interleaved"] < bubble["1f1b"]


def test_1f1b_has_its_closed_form() -> None:
    """3 / 19 but for the time that is not spent in the schedule (messages, optimizer)."""
    figures = step("1f1b").step_figures
    assert figures["bubble_fraction"] == pytest.approx(3 / 19, rel=0.1)
    assert figures["bubble_fraction_theory"] == 3 / 19


def test_waiting_for_the_gradient_norm_brings_the_bubble_back() -> None:
    """ZB-H2 without post-validation: the (p - 1) F by which ranks begin apart."""
    alone, together = step("zb-h2"), step("zb-h2", post_validation=False)
    assert together.step_figures["bubble_fraction_theory"] == 3 / (3 * 16 + 3)
    assert alone.step_figures["bubble_fraction_theory"] == 0.0
    assert alone.step.step_time < together.step.step_time


def uneven(tmp_path: Path, **schedule: Any) -> Simulation:
    """Ten layers on four pipeline ranks."""
    scenario = load_small(
        tmp_path,
        model={"num_layers": 10},
        parallelism=SPLIT,
        training={"schedule": {"kind": "1f1b", **schedule}, "tokens": None},
    )
    return simulate(scenario)


def test_layers_that_do_not_divide_are_cut_and_said(tmp_path: Path) -> None:
    """3, 3, 2 and 2, with a warning; said in the scenario there is none, and the longest stage sets the pace."""
    told = "10 layers do not divide into 4 stages: the first 2 have 3 and the others 2"
    default = uneven(tmp_path)
    assert any(told in warning for warning in default.warnings)
    assert describe_scenario(default.scenario).figures()["schedule"]["stage_layers"] == [3, 3, 2, 2]
    listed = uneven(tmp_path, layers=[2, 2, 2, 4])
    assert not any("do not divide" in warning for warning in listed.warnings)
    assert listed.step.step_time > 1.15 * default.step.step_time
    ends = uneven(tmp_path, embedding_and_loss_as_layers=True)
    assert describe_scenario(ends.scenario).figures()["schedule"]["stage_layers"] == [2, 3, 3, 2]


def test_dualpipe_keeps_two_copies() -> None:
    """Twice the weights of 1F1B on every rank, and gradients that the two copies have to sum."""
    weights = {kind: [stage.parts["weights"] for stage in step(kind).memory] for kind in ("1f1b", "dualpipe")}
    assert sum(weights["dualpipe"]) == pytest.approx(2 * sum(weights["1f1b"]))
    ties = [name for name in (call.name for call in step("dualpipe").program.coflows) if "copies" in name]
    assert ties


def test_stages_in_flight() -> None:
    """As the papers have them: ZB-H1 p, ZB-H2 2p - 1, ZB-V 2p half stages, DualPipe p + 1."""
    flight = {kind: [stage.in_flight for stage in step(kind).memory] for kind in KINDS}
    assert flight["1f1b"] == [4, 3, 2, 1]
    assert flight["zb-h1"] == [4] * 4
    assert flight["zb-h2"] == [7] * 4
    assert flight["zbv"] == [8] * 4
    assert flight["dualpipe"] == [5] * 4
