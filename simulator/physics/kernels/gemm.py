"""Matrix multiplication: tiles dealt to streaming multiprocessors, a roofline with a round shoulder, a launch.

Idea
----
The output is cut into tiles, one per streaming multiprocessor at a time. A last, partly filled wave costs up to a full
one (`quantisation`: schedulers that cut tiles over k, or keep two on a multiprocessor, cost less). A tile runs at a
fitted share of the peak and pays a prologue and an epilogue; where tiles are few and k is long, k is split and the
partial sums are added up in memory. Compute and memory traffic overlap but for a shoulder where they are equal.
Batched and grouped products count their groups as tiles.

Chips that run into their power limit lower the clock: `throttle`. A short kernel measured by itself ends before the
clock falls; inside a training step, which loads the chip without pause, no kernel is short (`isolated`).

Without tensor cores (`tensor_cores=False`) the same tiles run at the peak of fp32's CUDA cores, which multiply 16-bit
inputs into fp32 sums, and need no alignment; a prologue is latency and costs no more than it did.

Limits: no cache effects; tiles chosen as if by an oracle; layouts differ only by their alignment.

Pinned by tests/physics/test_kernels.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.physics.kernels.roofline import ITEM_SIZE, nearest, peak_flops
from simulator.scenario.hardware import Accelerator, Gemm
from simulator.scenario.units import Bytes, FlopPerSecond, Seconds

FloatArray: TypeAlias = NDArray[np.float64]

# Output tiles of the GEMM kernels that vendor libraries ship (CUTLASS's default set).
_TILES = np.array([(256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64)], float)
# Parts into which the sum over k may be cut when the output has too few tiles to fill the machine (split-k, stream-k).
_SPLITS = np.array([1, 2, 3, 4, 6, 8, 16], float)
_SHOULDER = 3.0
"""Sharpness of the roofline, (compute^3 + memory^3)^(1/3): fitted, 2.4 to 3.4 of most accelerators."""
_THROTTLE_AFTER = 0.3e-3
"""Seconds of compute within which the clock falls in a benchmark: fitted, 0.26 to 0.37 ms on H100, H200, B200."""
_THROTTLE_SHARPNESS = 4.0

# Share of a tile's speed by the alignment of the rows that it reads and writes. Tensor cores want 16 bytes, and 128 for
# full speed since the A100 (NVIDIA, "Matrix Multiplication Background User's Guide", section 3); below 16 bytes
# copies to shared memory are no longer vectorised. Shares of 8 and 4 bytes: batched products with head sizes of 130 to
# 148 and 290 to 310 on A100 (EleutherAI/cookbook, sizing/results/transformer_data/h_sweep.out, the data of arXiv
# 2401.14489) run at 0.68 and 0.77 of the speed with 16 or 32, and 4 bytes are no worse than 8. Assumption: the others.
_ALIGNMENT = {128: 1.0, 64: 0.98, 32: 0.96, 16: 0.92, 8: 0.7, 4: 0.7, 2: 0.35, 1: 0.35, 0: 0.35}


def gemm_bytes(dtype: str, m: int, n: int, k: int, *, groups: int = 1, accumulate_fp32: bool = False) -> Bytes:
    """Memory traffic of `gemm_time`'s product: both inputs once, the output once.

    8- and 4-bit products leave in bf16; `accumulate_fp32` reads and writes a 4-byte output.
    """
    item = ITEM_SIZE[dtype]
    output = 8 if accumulate_fp32 else max(item, 2)
    return groups * ((m * k + k * n) * item + m * n * output)


@lru_cache(maxsize=65536)
def gemm_time(
    acc: Accelerator,
    dtype: str,
    m: int,
    n: int,
    k: int,
    *,
    groups: int = 1,
    accumulate_fp32: bool = False,
    weight_gradient: bool = False,
    tensor_cores: bool = True,
    isolated: bool = False,
) -> Seconds:
    """Time of `groups` independent products [m, k] x [k, n] in one kernel.

    Parameters
    ----------
    m, n, k
        Rows and columns of the output, length of the sum.
    groups
        Products of this shape in the kernel: experts, or heads of unfused attention.
    accumulate_fp32
        A weight gradient added to an fp32 buffer.
    weight_gradient
        Whether the inputs lie along m and n in memory, as in a weight gradient, not along k.
    tensor_cores
        Whether it runs on tensor cores; else on the units that fp32 has.
    isolated
        Measured by itself, as the tables are, not in a training step: a short kernel runs at the boost clock.

    Raises
    ------
    ScenarioError
        If the accelerator has no peak for `dtype`.

    Notes
    -----
    launch + ((compute x throttle)^3 + (bytes / (bandwidth_fraction bandwidth))^3)^(1/3), times the weight gradient's
    factor, with compute the least over tiles a x b and splits s of

        waves SMs 2ab (k/s + k_padding) / (peak efficiency tile_efficiency) + reduction,
        waves = max(1, q ceil(x) + (1 - q) x),  x = ceil(m/a) ceil(n/b) groups s / SMs.

    Wave quantisation: NVIDIA, "Matrix Multiplication Background User's Guide"; a fractional last wave: stream-k, arXiv
    2301.03598. Parameters fitted by benchmarks/fit_kernels.py.
    """
    shape = (np.array([float(m)]), np.array([float(n)]), np.array([float(k)]), np.array([float(groups)]))
    fp32, transposed = np.array([accumulate_fp32]), np.array([weight_gradient or accumulate_fp32])
    found = gemm_times(
        acc, dtype, *shape, accumulate_fp32=fp32, weight_gradient=transposed, tensor_cores=tensor_cores,
        isolated=isolated,
    )  # fmt: skip
    return float(found[0])


def gemm_times(
    acc: Accelerator,
    dtype: str,
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    groups: ArrayLike = 1.0,
    *,
    accumulate_fp32: ArrayLike = False,
    weight_gradient: ArrayLike = False,
    tensor_cores: bool = True,
    isolated: bool = False,
    model: Gemm | None = None,
) -> FloatArray:
    """`gemm_time` of many products at once; arrays of one shape (R,).

    Parameters
    ----------
    model
        In place of the accelerator's.
    """
    fitted = nearest(acc.kernels.gemm, dtype) if model is None else model
    rows, columns, depth, count = (np.asarray(each, dtype=float) for each in np.broadcast_arrays(m, n, k, groups))
    adds = np.asarray(accumulate_fp32, dtype=bool)
    item, bandwidth = ITEM_SIZE[dtype], fitted.bandwidth_fraction * acc.memory_bandwidth
    output = np.where(adds, 8.0, max(item, 2))
    memory = count * ((rows + columns) * depth * item + rows * columns * output) / bandwidth
    aligned = np.where(np.asarray(weight_gradient, dtype=bool), rows, depth)
    peak, speed = peak_flops(acc, dtype), _aligned_share(np.minimum(_alignment(aligned), _alignment(columns)) * item)
    if not tensor_cores:
        slower = peak_flops(acc, "fp32") / peak
        fitted = fitted.model_copy(update={"k_padding": fitted.k_padding * slower})
        peak, speed = peak * slower, np.ones_like(speed)
    compute = _compute(fitted, peak, acc.sm_count, rows, columns, depth, count, bandwidth) / speed
    compute = compute * (1 + fitted.throttle * (_hot_share(compute) if isolated else 1.0))
    busy = (compute**_SHOULDER + memory**_SHOULDER) ** (1 / _SHOULDER)
    return np.asarray(fitted.launch + busy * np.where(adds, fitted.accumulate_fp32_factor, 1.0))


def _hot_share(compute: FloatArray) -> FloatArray:
    # of the throttling that a kernel sees which is timed by itself
    return 1 / (1 + (_THROTTLE_AFTER / np.maximum(compute, 1e-9)) ** _THROTTLE_SHARPNESS)


def _alignment(length: FloatArray) -> FloatArray:
    # largest power of two, up to 256, that divides a length in elements
    whole = length.astype(np.int64)
    return np.asarray(np.minimum(whole & -whole, 256), dtype=float)


def _aligned_share(size: FloatArray) -> FloatArray:
    edges = np.array(sorted(_ALIGNMENT))
    shares = np.array([_ALIGNMENT[edge] for edge in edges])
    return np.asarray(shares[np.searchsorted(edges, np.minimum(size, 128), side="right") - 1])


def _compute(
    model: Gemm, peak: FlopPerSecond, sms: int, m: FloatArray, n: FloatArray, k: FloatArray, groups: FloatArray,
    bandwidth: float,
) -> FloatArray:  # fmt: skip
    """Seconds of the tiles, by row: the least over (rows, tiles, splits)."""
    known = np.array(
        [(a, b, model.tile_efficiency[int(a * b)]) for a, b in _TILES if int(a * b) in model.tile_efficiency]
    )
    high, wide, relative = (column[None, :, None] for column in known.T)
    m, n, k, groups = (each[:, None, None] for each in (m, n, k, groups))
    splits = _SPLITS[None, None, :]
    tiles = np.ceil(m / high) * np.ceil(n / wide) * groups
    waves = tiles * splits / sms
    waves = np.maximum(model.quantisation * np.ceil(waves) + (1 - model.quantisation) * waves, 1.0)
    steps = (k / splits + model.k_padding) * high * wide / relative
    seconds: Any = waves * steps * (2 * sms / (peak * model.efficiency))
    # partial sums in fp32 are written once per part and read once; a full machine gains nothing from cutting further
    reduction = np.where(splits > 1, m * n * groups * 4 * splits / bandwidth, 0.0)
    allowed = (splits == 1) | (tiles * (splits - 1) < sms)
    best: FloatArray = np.where(allowed, seconds + reduction, np.inf).min(axis=(1, 2))
    return best
