"""Fused attention: tiles of queries that sweep over the keys they may see.

Idea
----
A block of 128 queries takes the keys that it sees, and a padding of keys' worth of prologue and epilogue, at a share of
the peak that depends on the head size; blocks are dealt to the streaming multiprocessors. Backward does five matrix
products where forward does two.

Limits: no dropout, no mask but the causal one; parameters fitted by benchmarks/fit_kernels.py.

Pinned by tests/physics/test_kernels.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from math import ceil

from simulator.errors import ScenarioError
from simulator.physics.kernels.roofline import ITEM_SIZE, nearest, peak_flops
from simulator.scenario.hardware import Accelerator, Attention
from simulator.scenario.units import Bytes, Flop, Seconds

_QUERY_TILE = 128  # rows of Q per block: FlashAttention-2 (arXiv 2307.08691) uses 64 or 128
_HEAD_DIM_STEP = 32  # FlashAttention compiles kernels for head sizes 32, 64, 96, 128, 160, 192, 224, 256
# Backward of fused attention does 5 matrix products where forward does 2 (arXiv 2307.08691).
BACKWARD_FLOPS = 2.5


def attention_flops(
    *,
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    head_dim: int,
    v_head_dim: int | None = None,
    causal: bool,
    backward: bool = False,
) -> Flop:
    """FLOPs of fused attention; a causal mask counts only the pairs that see each other.

    Causal masks are aligned to the end: the last query sees every key.

    Raises
    ------
    ValueError
        If `causal` and there are more queries than keys.
    """
    pairs = q_len * kv_len
    if causal:
        _check_causal(q_len, kv_len)
        pairs -= q_len * (q_len - 1) // 2
    widths = head_dim + (head_dim if v_head_dim is None else v_head_dim)
    return 2.0 * widths * batch * heads * pairs * (BACKWARD_FLOPS if backward else 1.0)


def attention_bytes(
    dtype: str,
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    q_len: int,
    kv_len: int,
    head_dim: int,
    v_head_dim: int | None = None,
    backward: bool = False,
) -> Bytes:
    """Memory traffic of fused attention: Q, K, V and O once; backward also their four gradients."""
    widths = head_dim + (head_dim if v_head_dim is None else v_head_dim)
    size = ITEM_SIZE[dtype] * batch * widths * (heads * q_len + kv_heads * kv_len)
    return size * (2.0 if backward else 1.0)


@lru_cache(maxsize=65536)
def attention_time(
    acc: Accelerator,
    dtype: str,
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    q_len: int,
    kv_len: int,
    head_dim: int,
    v_head_dim: int | None = None,
    causal: bool,
    backward: bool = False,
    implementation: str | None = None,
) -> Seconds:
    """Time of fused (FlashAttention-like) attention, forward or backward.

    Parameters
    ----------
    batch, heads, kv_heads
        Sequences, query heads and key-value heads on this accelerator.
    q_len, kv_len
        Queries and keys per sequence.
    head_dim, v_head_dim
        Width of queries and keys, and of values (`None`: the same).
    implementation
        A key of `acc.kernels.attention`; `None` is the accelerator's default.

    Raises
    ------
    ScenarioError
        If the accelerator has no peak for `dtype` or does not know the implementation.
    ValueError
        If `causal` and there are more queries than keys.

    Notes
    -----
    A block of 128 queries sweeps over the keys that it sees (a causal block the whole of its diagonal tile) plus
    `kv_padding`; blocks are dealt to the SMs. Tiling: arXiv 2307.08691, section 3. The saturating
    efficiencies are fitted by benchmarks/fit_kernels.py.
    """
    peak = peak_flops(acc, dtype)
    model = _attention_model(acc, dtype, implementation)
    v_dim = head_dim if v_head_dim is None else v_head_dim
    size = attention_bytes(
        dtype, batch=batch, heads=heads, kv_heads=kv_heads, q_len=q_len, kv_len=kv_len,
        head_dim=head_dim, v_head_dim=v_dim, backward=backward,
    )  # fmt: skip
    width = _padded(head_dim) + _padded(v_dim)
    efficiency = model.backward_efficiency if backward else model.forward_efficiency
    efficiency *= _interpolate(model.head_dim_efficiency, width / 2)
    keys = _keys_per_sm(acc.sm_count, batch * heads, q_len, kv_len, model.kv_padding, causal)
    flops = 2.0 * width * _QUERY_TILE * keys * acc.sm_count * (BACKWARD_FLOPS if backward else 1.0)
    memory = size / (acc.kernels.memory_bandwidth_fraction * acc.memory_bandwidth)
    return model.launch + max(flops / (peak * efficiency), memory)


def _keys_per_sm(sms: int, rows: int, q_len: int, kv_len: int, padding: float, causal: bool) -> float:
    # Keys that the busiest SM sweeps over, in units of one block of queries.
    blocks = ceil(q_len / _QUERY_TILE)
    if not causal:
        return ceil(rows * blocks / sms) * (kv_len + padding)
    _check_causal(q_len, kv_len)
    # Block i of n sees kv_len - q_len + 128 (i + 1) keys, the last one all of them. The longest start first, so that
    # the short ones fill the gaps: no wave is quantised, but none ends before its longest block.
    seen = (blocks - 1) * (kv_len - q_len) + _QUERY_TILE * blocks * (blocks - 1) / 2 + kv_len
    return max(rows * (seen + blocks * padding) / sms, kv_len + padding)


def _check_causal(q_len: int, kv_len: int) -> None:
    if q_len > kv_len:
        raise ValueError(f"causal attention needs at least as many keys as queries: {q_len} queries, {kv_len} keys")


def _interpolate(table: Mapping[int, float], at: float) -> float:
    points = sorted(table.items())
    for (left, low), (right, high) in pairwise(points):
        if left <= at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return points[0][1] if at < points[0][0] else points[-1][1]


def _padded(head_dim: int) -> int:
    return ceil(head_dim / _HEAD_DIM_STEP) * _HEAD_DIM_STEP


def _attention_model(acc: Accelerator, dtype: str, implementation: str | None) -> Attention:
    known = acc.kernels.attention
    name = acc.kernels.default_attention if implementation is None else implementation
    if name not in known:
        raise ScenarioError(f"{acc.name} has no attention {name!r}; allowed: {', '.join(known)}")
    return nearest(known[name], dtype)
