"""The optimizer step on the host: a worked example, the published table, and what can be the slowest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.layers.rank import Rank
from simulator.physics.operations import Kernel
from simulator.physics.program.bodies import Bodies
from simulator.physics.program.offload import CPU_SHARE, host_step
from simulator.physics.stages import cut
from simulator.scenario.hosts import Host, read_hosts
from simulator.scenario.stacks import read_stacks
from tests.physics.shapes import gpt, make_rank

SPEEDS = st.floats(1e8, 1e12)


def offloaded(host: Host, target: str = "cpu", precision: str = "bf16", **optimizer: Any) -> Rank:
    """Build a rank whose optimizer lives on the host."""
    rank = make_rank(gpt(), dp=4, precision=precision, optimizer={"offload": target, **optimizer})
    return replace(rank, host=host)


def a_host(**changes: float) -> Host:
    """Build a host of round numbers: 10 GB/s link, 100 GB/s memory, 1 GB/s drives."""
    fields = {"link_bandwidth": 1e10, "memory_bandwidth": 1e11, "memory": 1e12, "nvme_bandwidth": 1e9}
    return read_hosts()["h100"].model_copy(update={**fields, **changes})


def seconds(kernels: list[Kernel]) -> list[float]:
    """Return the times."""
    return [kernel.seconds for kernel in kernels]


def test_worked_example() -> None:
    """1e9 parameters, fp32 gradients, 16-bit weights: 4 GB down in 0.4 s, then the slowest of three.

    Up: 2 GB in 0.2 s. Adam: 4 read, master and moments of 12 read and written, 2 written: 30 GB at 0.46 · 100 GB/s in
    0.652 s. Drives: 24 GB at 1 GB/s in 24 s.
    """
    assert seconds(host_step(offloaded(a_host()), 1e9)) == pytest.approx([0.4, 30 / 46])
    assert seconds(host_step(offloaded(a_host(), "nvme"), 1e9)) == pytest.approx([0.4, 24.0])
    assert seconds(host_step(offloaded(a_host(memory_bandwidth=1e13)), 1e9)) == pytest.approx([0.4, 0.2])


def test_sixteen_bit_gradients_and_fp32_weights() -> None:
    """bf16 gradients and moments: 2 + 2 · 8 + 2 B; fp32: 4 + 2 · 12 B, the master being a copy of the weight."""
    host = a_host()
    light = host_step(offloaded(host, grad_dtype="bf16", state_dtype="bf16"), 1e9)
    assert seconds(light) == pytest.approx([0.2, 20 / 100 / CPU_SHARE])
    plain = host_step(offloaded(host, precision="fp32"), 1e9)
    assert seconds(plain) == pytest.approx([0.4, 28 / 100 / CPU_SHARE])


@pytest.mark.parametrize(("parameters", "measured"), [(1e9, 0.22), (2e9, 0.51), (4e9, 1.03), (8e9, 2.41), (10e9, 2.57)])
def test_adam_on_a_dgx2(parameters: float, measured: float) -> None:
    """ArXiv 2101.06840, table 4: CPU-Adam of one model on a whole DGX-2, whose memory 16 GPUs share; within a fifth."""
    whole = a_host(memory_bandwidth=16 * read_hosts()["v100-32gb"].memory_bandwidth, link_bandwidth=1e12)
    assert seconds(host_step(offloaded(whole), parameters))[1] == pytest.approx(measured, rel=0.2)


@given(link=SPEEDS, memory=SPEEDS, drives=SPEEDS, target=st.sampled_from(["cpu", "nvme"]), faster=st.floats(1, 100))
def test_no_faster_host_is_slower(link: float, memory: float, drives: float, target: str, faster: float) -> None:
    """More bandwidth never costs time, time is in proportion to parameters, and drives never help."""
    fields = {"link_bandwidth": link, "memory_bandwidth": memory, "nvme_bandwidth": drives}
    base = sum(seconds(host_step(offloaded(a_host(**fields), target), 1e6)))
    assert sum(seconds(host_step(offloaded(a_host(**fields), target), 3e6))) == pytest.approx(3 * base)
    assert sum(seconds(host_step(offloaded(a_host(**fields)), 1e6))) <= base
    for name in fields:
        better = a_host(**{**fields, name: fields[name] * faster})
        assert sum(seconds(host_step(offloaded(better, target), 1e6))) <= base


def test_a_step_runs_on_the_host_instead_of_the_gpu() -> None:
    """The optimizer's pass over GPU memory is gone, clipping stays; ranks walk over their share only."""
    rank = offloaded(a_host(), zero_stage=1)
    stages = cut(rank.model, 1)
    found = Bodies(rank, stages, read_stacks()["generic"]).epilogue(stages)
    kernels = {op.name: op.seconds for op, state in found if isinstance(op, Kernel) and state == "optimizer"}
    assert "optimizer" not in kernels
    assert list(kernels)[-3:] == ["gradient_clip", "offload.gradients", "offload.optimizer"]
    assert kernels["offload.gradients"] == pytest.approx(rank.model.total_parameters / 4 * 4 / 1e10)
