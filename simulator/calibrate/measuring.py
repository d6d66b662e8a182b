"""What `trainsim calibrate` measures, on whatever can time a kernel.

A `Bench` times one kernel of a shape; `measure` asks it for a table of shapes that spans what training runs: square and
oblong products, causal attention in both directions, streams of a few sizes. The bench of a GPU is in `torch_bench.py`,
that of the tests is a formula.

Pinned by tests/calibrate/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from simulator.scenario.units import Bytes, Seconds
from simulator.studies.kernel_rows import AttentionRow, GemmRow, Passes

GEMM_SIZES = (128, 512, 1024, 2048, 4096, 8192)
STREAM_SIZES = (1e6, 1e7, 1e8, 1e9)
"""Bytes that a streaming kernel reads and writes."""
COLLECTIVE_SIZES = tuple(float(2**power) for power in range(14, 31, 2))
ADAM_PARAMETERS = 100_000_000
ADAM_BYTES = 28
"""Bytes of a parameter in a fused fp32 Adam: weight and two moments read and written, gradient read."""


class Bench(Protocol):
    """Something that times kernels: median seconds of many runs, on the device's own clock."""

    name: str
    gpus: int

    def gemm(self, dtype: str, m: int, n: int, k: int) -> Seconds:
        """Product [m, k] x [k, n]."""
        ...

    def attention(self, batch: int, heads: int, length: int, head_dim: int, *, backward: bool) -> Seconds:
        """Causal fused attention in bf16."""
        ...

    def stream(self, kind: str, size: Bytes) -> Seconds:
        """A memory-bound kernel of a kind: `elementwise`, `norm`, `softmax`."""
        ...

    def adam(self, parameters: int) -> Seconds:
        """One step of a fused optimizer."""
        ...

    def all_reduce(self, size: Bytes) -> Seconds:
        """Over all GPUs of the machine."""
        ...


class Stream(NamedTuple):
    """A timed memory-bound kernel."""

    kind: str
    size: Bytes
    seconds: Seconds


class Measurements(NamedTuple):
    """Everything measured on a machine; `collectives` is empty with one GPU."""

    name: str
    gemms: list[GemmRow]
    attention: list[AttentionRow]
    streams: list[Stream]
    collectives: list[Stream]


def gemm_shapes(quick: bool = False) -> list[tuple[int, int, int]]:
    """Shapes (m, n, k) of products: tokens by widths, less those that no model has."""
    sizes = GEMM_SIZES[2:5] if quick else GEMM_SIZES
    return [(m, n, k) for m in sizes for n in sizes[1:] for k in sizes[1:]]


def attention_shapes(quick: bool = False) -> list[tuple[int, int, int, int]]:
    """Shapes (batch, heads, sequence, head size) of about 16 thousand tokens and a width of 2048."""
    lengths = (1024, 4096) if quick else (512, 1024, 2048, 4096, 8192, 16384)
    return [(16384 // length, 2048 // width, length, width) for length in lengths for width in (64, 128)]


def measure(
    bench: Bench, *, dtype: str = "bf16", quick: bool = False, progress: Callable[[str, float], None] | None = None
) -> Measurements:
    """Time everything.

    Parameters
    ----------
    quick
        A tenth of the shapes, for a trial.
    progress
        Told what is measured and what share of it is done.
    """

    def tell(what: str, index: int, count: int) -> None:
        if progress is not None:
            progress(what, (index + 1) / count)

    gemms = []
    for index, (m, n, k) in enumerate(shapes := gemm_shapes(quick)):
        gemms.append(GemmRow(f"gemm {m}x{n}x{k}", bench.name, dtype, m, n, k, bench.gemm(dtype, m, n, k)))
        tell("GEMM", index, len(shapes))
    attention = []
    for index, (batch, heads, length, width) in enumerate(blocks := attention_shapes(quick)):
        for backward in (False, True):
            seconds = bench.attention(batch, heads, length, width, backward=backward)
            passes: Passes = "bwd" if backward else "fwd"
            shape = (True, batch, heads, heads, length, width, seconds)
            attention.append(AttentionRow(f"attention {length}x{width}", bench.name, "flash2", dtype, passes, *shape))
        tell("attention", index, len(blocks))
    kinds = ("elementwise", "norm", "softmax")
    streams = [Stream(kind, size, bench.stream(kind, size)) for kind in kinds for size in STREAM_SIZES]
    streams.append(Stream("optimizer", float(ADAM_PARAMETERS * ADAM_BYTES), bench.adam(ADAM_PARAMETERS)))
    collectives = [Stream("all_reduce", size, bench.all_reduce(size)) for size in COLLECTIVE_SIZES if bench.gpus > 1]
    return Measurements(bench.name, gemms, attention, streams, collectives)
