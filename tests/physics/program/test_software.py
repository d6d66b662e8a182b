"""What a stack changes in a layer: tensor parallelism that hides, layers that are repeated by half."""

from __future__ import annotations

from simulator.physics.operations import Await, Collective, Kernel, Launch, Operation
from simulator.physics.program.software import half, overlapped, without_fused_casts

LAYER: list[Operation] = [
    Collective("gather", "tp", "all_gather", 100.0),
    Kernel("gemm", 2.0, 10.0),
    Collective("reduce", "tp", "all_reduce", 100.0),
    Collective("exchange", "cp", "all_gather", 100.0),
    Launch("grad", "dp", "reduce_scatter", 100.0),
    Await("grad"),
]


def test_gathers_and_scatters_of_tp_hide() -> None:
    """A quarter of the tp gather leaves; all-reduces and other axes stay."""
    assert overlapped(LAYER, 0.25) == [Collective("gather", "tp", "all_gather", 75.0), *LAYER[1:]]
    assert overlapped(LAYER, 0.0) == LAYER


def test_casts_that_a_norm_does() -> None:
    """The cast of the norm's output goes, that of attention's output stays."""
    casts: list[Operation] = [Kernel("qkv.cast", 1.0), Kernel("proj.cast", 1.0), Await("grad")]
    assert without_fused_casts(casts) == casts[1:]


def test_half_a_layer() -> None:
    """Half of its kernels' time and FLOPs, without its collectives."""
    assert half(LAYER) == [Kernel("gemm", 1.0, 5.0)]
