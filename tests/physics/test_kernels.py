"""Kernel times: a tile count by hand, laws that hold for every shape, and published timings."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ScenarioError
from simulator.physics.kernels import (
    attention_bytes,
    attention_flops,
    attention_time,
    gemm_bytes,
    gemm_time,
    gemm_times,
    memory_bound_time,
    speed_of_light,
)
from simulator.scenario.hardware import Accelerator, Attention, Fit, Gemm, find_accelerator, read_accelerators

HERE = Path(__file__).parent
CHIPS = sorted({acc.name for acc in read_accelerators().values()})
CASES = [(name, dtype) for name in CHIPS for dtype in find_accelerator(name).peak_flops]
# The test tables hold every n-th of the fitted rows, four to a dozen per fit, so that one fit's median scatters. Each
# must be within the p90 of its fit; all together must have the stored medians, up to this factor.
SAMPLING = 1.3

lengths = st.integers(1, 20000)
accelerators = st.sampled_from(CASES)


def round_chip(**fields: float) -> Accelerator:
    """An accelerator of round numbers: 100 SMs, 100 TFLOP/s, 1 TB/s, one tile of 256 x 128; fields of its GEMM."""
    gemm = Gemm.model_validate(
        {
            "efficiency": 0.5, "launch": "3 us", "k_padding": 24, "bandwidth_fraction": 0.5,
            "tile_efficiency": {32768: 1.0}, "accumulate_fp32_factor": 1.1, "source": "made up", **fields,
        }
    )  # fmt: skip
    attention = Attention.model_validate(
        {
            "forward_efficiency": 0.5, "backward_efficiency": 0.4, "kv_padding": 100, "launch": "5 us",
            "head_dim_efficiency": {64: 0.8, 128: 1.0}, "source": "made up",
        }
    )  # fmt: skip
    base = find_accelerator("a100-80gb")
    kernels = base.kernels.model_copy(
        update={
            "gemm": {"bf16": gemm}, "attention": {"flash2": {"bf16": attention}},
            "memory_bandwidth_fraction": 0.8, "memory_launch": 2e-6,
        }
    )  # fmt: skip
    return base.model_copy(
        update={
            "name": f"round {fields}", "sm_count": 100, "peak_flops": {"bf16": 1e14}, "memory_bandwidth": 1e12,
            "kernels": kernels,
        }
    )  # fmt: skip


def shoulder(compute: float, memory: float) -> float:
    """Seconds of a kernel that computes and moves bytes at the same time."""
    return float((compute**3 + memory**3) ** (1 / 3))


def test_gemm_by_hand() -> None:
    """16 x 32 = 512 tiles make six waves of 100, each of 2 * 256 * 128 * (1024 + 24) FLOPs per SM."""
    # An SM has 1 TFLOP/s, half of it here: a wave takes 2 * 32768 * 1048 / 0.5e12 = 137.363456 us, six 824.180736 us.
    # Traffic is (2 * 4096 * 1024 + 4096 * 4096) * 2 B = 50.331648 MB: 100.663296 us at 0.5 TB/s.
    expected = 3e-6 + shoulder(824.180736e-6, 100.663296e-6)
    assert gemm_time(round_chip(), "bf16", 4096, 4096, 1024) == pytest.approx(expected, rel=1e-12)
    # Without quantisation the 512 tiles were 5.12 waves; half of it costs 5.56.
    half = 3e-6 + shoulder(5.56 * 137.363456e-6, 100.663296e-6)
    assert gemm_time(round_chip(quantisation=0.5), "bf16", 4096, 4096, 1024) == pytest.approx(half, rel=1e-12)


def test_gemm_split_over_k_by_hand() -> None:
    """10 tiles leave 90 of 100 SMs idle; cut into 8 parts of k = 1000, all 80 run in one short wave."""
    # one wave of k = 8000 / 8 + 24 = 1024: 134.217728 us, and 8 partial sums of 2560 * 128 * 4 B: 20.97152 us at
    # 0.5 TB/s; traffic is (2560 * 8000 + 8000 * 128 + 2560 * 128) * 2 B = 43.66336 MB: 87.32672 us
    expected = 3e-6 + shoulder(134.217728e-6 + 20.97152e-6, 87.32672e-6)
    assert gemm_time(round_chip(), "bf16", 2560, 128, 8000) == pytest.approx(expected, rel=1e-12)


def test_weight_gradient_reads_and_writes_fp32() -> None:
    """A weight gradient of few steps is bound by its 8 B per output element, and 1.1 times slower."""
    size = 8192 * 8192 * 8 + 2 * 8192 * 8 * 2
    assert gemm_bytes("bf16", 8192, 8192, 8, accumulate_fp32=True) == size
    expected = 3e-6 + 1.1 * shoulder(21 * 2 * 32768 * (8 + 24) / 0.5e12, size / 0.5e12)
    assert gemm_time(round_chip(), "bf16", 8192, 8192, 8, accumulate_fp32=True) == pytest.approx(expected, rel=1e-12)


def test_a_step_runs_at_the_sustained_clock() -> None:
    """Throttling of 0.2 lengthens compute by 20 % in a step; measured by itself, a kernel of 0.3 ms sees half of it."""
    chip = round_chip(throttle=0.2)
    # 10 x 8 = 80 tiles: one wave, of 0.305 ms
    wave = 2 * 32768 * (2304 + 24) / 0.5e12
    memory = gemm_bytes("bf16", 2560, 1024, 2304) / 0.5e12
    share = 1 / (1 + (0.3e-3 / wave) ** 4)
    assert gemm_time(chip, "bf16", 2560, 1024, 2304) == pytest.approx(3e-6 + shoulder(1.2 * wave, memory), rel=1e-12)
    alone = gemm_time(chip, "bf16", 2560, 1024, 2304, isolated=True)
    assert alone == pytest.approx(3e-6 + shoulder((1 + 0.2 * share) * wave, memory), rel=1e-12)


@pytest.mark.parametrize(
    ("k", "share"), [(4096, 1.0), (4128, 0.98), (4112, 0.96), (4104, 0.92), (4100, 0.7), (4098, 0.7), (4097, 0.35)]
)
def test_unaligned_rows_slow_a_gemm(k: int, share: float) -> None:
    """A row of 4104 bf16 numbers is a multiple of 16 B, one of 4097 of 2 B: tensor cores want 128 B."""
    chip = round_chip()
    memory = gemm_bytes("bf16", 2560, 2560, k) / 0.5e12
    compute = 2 * 2 * 32768 * (k + 24) / 0.5e12 / share
    assert gemm_time(chip, "bf16", 2560, 2560, k) == pytest.approx(3e-6 + shoulder(compute, memory), rel=1e-12)


def test_a_product_without_tensor_cores() -> None:
    """fp32's 19.5 of 100 TFLOP/s: a prologue of 24 lasts as long as before, rows of any length run alike."""
    chip = round_chip()
    chip = chip.model_copy(update={"peak_flops": {**chip.peak_flops, "fp32": 19.5e12}})
    for k in (4096, 4097):
        memory = gemm_bytes("bf16", 2560, 2560, k) / 0.5e12
        compute = 2 * 2 * 32768 * (k + 24 * 0.195) / (0.195 * 0.5e12)
        found = gemm_time(chip, "bf16", 2560, 2560, k, tensor_cores=False)
        assert found == pytest.approx(3e-6 + shoulder(compute, memory), rel=1e-12)


def test_a_weight_gradient_reads_along_its_output() -> None:
    """Odd tokens do not hurt a weight gradient, whose operands lie along m and n; an odd vocabulary does."""
    chip = round_chip()
    tokens = gemm_time(chip, "bf16", 2560, 2560, 4097, weight_gradient=True)
    assert tokens < gemm_time(chip, "bf16", 2560, 2560, 4097)
    assert gemm_time(chip, "bf16", 2559, 2560, 4096, weight_gradient=True) > 2 * tokens


def test_many_products_are_each_as_one() -> None:
    """`gemm_times` of arrays is `gemm_time` of each."""
    acc = find_accelerator("h100")
    shapes = np.array([(8192, 4096, 1024), (100, 3000, 77), (64, 64, 64)])
    together = gemm_times(acc, "bf16", *shapes.T)
    assert list(together) == [gemm_time(acc, "bf16", *map(int, shape)) for shape in shapes]


def test_attention_by_hand() -> None:
    """16 heads of 1024 queries are 128 blocks, two waves of 100, over 1024 + 100 keys each."""
    shape = {"batch": 1, "heads": 16, "kv_heads": 16, "q_len": 1024, "kv_len": 1024, "head_dim": 128}
    # forward FLOPs of a block and key: 2 * (128 + 128) * 128 = 65536; 2 * 1124 keys at 0.5 TFLOP/s per SM
    busy = 65536 * 2 * 1124 / 0.5e12
    assert attention_time(round_chip(), "bf16", **shape, causal=False) == pytest.approx(5e-6 + busy, rel=1e-12)
    # backward: 2.5 times the FLOPs at 0.4 instead of 0.5 of the peak
    assert attention_time(round_chip(), "bf16", **shape, causal=False, backward=True) == pytest.approx(
        5e-6 + busy * 2.5 * 0.5 / 0.4, rel=1e-12
    )


def test_causal_attention_by_hand() -> None:
    """A head's 8 blocks see 128 + 256 + ... + 1024 = 4608 keys, and pay 8 * 100 more."""
    shape = {"batch": 1, "kv_heads": 8, "q_len": 1024, "kv_len": 1024, "head_dim": 128, "causal": True}
    # 32 heads keep every SM busy: 32 * 5408 / 100 keys each; 16 heads wait for the longest block of 1124
    for heads, keys in ((32, 1730.56), (16, 1124)):
        expected = 5e-6 + 65536 * keys / 0.5e12
        assert attention_time(round_chip(), "bf16", heads=heads, **shape) == pytest.approx(expected, rel=1e-12)


def test_narrow_heads_interpolate_and_pad() -> None:
    """Heads of 80 run as heads of 96: efficiency half-way between 64 and 128, FLOPs of 96."""
    shape = {"batch": 1, "heads": 100, "kv_heads": 100, "q_len": 128, "kv_len": 4096, "causal": False}
    busy = 2 * (96 + 96) * 128 * (4096 + 100) / (0.5e12 * 0.9)
    assert attention_time(round_chip(), "bf16", **shape, head_dim=80) == pytest.approx(5e-6 + busy, rel=1e-12)


def test_memory_bound_by_hand() -> None:
    """8 MB at 0.8 TB/s are 10 us, after 2 us of launch."""
    assert memory_bound_time(round_chip(), 8e6) == pytest.approx(12e-6, rel=1e-12)


def test_kinds_of_streams_reach_their_share() -> None:
    """A norm reaches 0.76 of the 0.8 TB/s; 8 MB of one take 13.2 us more than the launch. An unknown kind lists all."""
    assert memory_bound_time(round_chip(), 8e6, "norm") == pytest.approx(2e-6 + 10e-6 / 0.76, rel=1e-12)
    measured = round_chip()
    measured = measured.model_copy(
        update={"kernels": measured.kernels.model_copy(update={"memory_kinds": {"norm": 0.4}})}
    )
    assert memory_bound_time(measured, 8e6, "norm") == pytest.approx(2e-6 + 20e-6, rel=1e-12)
    with pytest.raises(ScenarioError, match="'norn'; allowed: elementwise, norm,"):
        memory_bound_time(round_chip(), 8e6, "norn")


def test_speed_of_light_is_the_roofline() -> None:
    """1 TFLOP at 100 TFLOP/s takes 10 ms unless more than 10 GB must move at 1 TB/s."""
    assert speed_of_light(round_chip(), "bf16", 1e12, 1e9) == pytest.approx(10e-3)
    assert speed_of_light(round_chip(), "bf16", 1e12, 20e9) == pytest.approx(20e-3)


@given(case=accelerators, m=lengths, n=lengths, k=lengths, groups=st.integers(1, 64), accumulate=st.booleans())
def test_no_gemm_beats_light(case: tuple[str, str], m: int, n: int, k: int, groups: int, accumulate: bool) -> None:
    """No product is faster than its FLOPs at peak or its bytes at full bandwidth."""
    acc, dtype = find_accelerator(case[0]), case[1]
    size = gemm_bytes(dtype, m, n, k, groups=groups, accumulate_fp32=accumulate)
    light = speed_of_light(acc, dtype, 2 * m * n * k * groups, size)
    assert gemm_time(acc, dtype, m, n, k, groups=groups, accumulate_fp32=accumulate) >= light


@given(
    case=accelerators, m=lengths, n=lengths, k=lengths, groups=st.integers(1, 64), more=st.integers(1, 3000),
    grown=st.sampled_from(["m", "n", "k", "groups"]),
)  # fmt: skip
def test_more_work_is_never_faster(
    case: tuple[str, str], m: int, n: int, k: int, groups: int, more: int, grown: str
) -> None:
    """Growing any aligned dimension or the number of groups never shortens a product."""
    acc, dtype = find_accelerator(case[0]), case[1]
    sizes = {"m": 256 * m, "n": 256 * n, "k": 256 * k, "groups": groups}
    larger = sizes | {grown: sizes[grown] + 256 * more}
    assert gemm_time(acc, dtype, **larger) >= gemm_time(acc, dtype, **sizes) * (1 - 1e-12)


@given(
    case=accelerators, batch=st.integers(1, 8), groups=st.integers(1, 8), kv_heads=st.integers(1, 16),
    q_len=lengths, cached=st.integers(0, 20000), head_dim=st.integers(16, 256), v_head_dim=st.integers(16, 256),
    causal=st.booleans(), backward=st.booleans(),
)  # fmt: skip
def test_no_attention_beats_light(
    case: tuple[str, str], batch: int, groups: int, kv_heads: int, q_len: int, cached: int,
    head_dim: int, v_head_dim: int, causal: bool, backward: bool,
) -> None:  # fmt: skip
    """No attention is faster than the FLOPs of the pairs that see each other or its bytes, in any implementation."""
    acc, dtype = find_accelerator(case[0]), case[1]
    heads, kv_len = groups * kv_heads, q_len + cached
    flops = attention_flops(
        batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, head_dim=head_dim, v_head_dim=v_head_dim,
        causal=causal, backward=backward,
    )  # fmt: skip
    size = attention_bytes(
        dtype, batch=batch, heads=heads, kv_heads=kv_heads, q_len=q_len, kv_len=kv_len, head_dim=head_dim,
        v_head_dim=v_head_dim, backward=backward,
    )  # fmt: skip
    light = speed_of_light(acc, dtype, flops, size)
    for implementation in acc.kernels.attention:
        time = attention_time(
            acc, dtype, batch=batch, heads=heads, kv_heads=kv_heads, q_len=q_len, kv_len=kv_len, head_dim=head_dim,
            v_head_dim=v_head_dim, causal=causal, backward=backward, implementation=implementation,
        )  # fmt: skip
        assert time >= light


@given(case=accelerators, size=st.floats(0, 1e12), more=st.floats(0, 1e12))
def test_no_stream_beats_light(case: tuple[str, str], size: float, more: float) -> None:
    """A streaming kernel takes longer than its bytes at full bandwidth, and more bytes take no less."""
    acc = find_accelerator(case[0])
    assert memory_bound_time(acc, size) >= speed_of_light(acc, case[1], 0, size)
    assert memory_bound_time(acc, size + more) >= memory_bound_time(acc, size)


@given(q_len=st.integers(1, 200), cached=st.integers(0, 200))
def test_causal_flops_count_pairs(q_len: int, cached: int) -> None:
    """Oracle: a causal mask aligned to the end lets query i see the first kv_len - q_len + i + 1 keys."""
    kv_len = q_len + cached
    pairs = sum(1 for i in range(q_len) for j in range(kv_len) if j <= i + cached)
    flops = attention_flops(batch=1, heads=1, q_len=q_len, kv_len=kv_len, head_dim=1, causal=True)
    assert flops == 4 * pairs


def test_causal_needs_keys() -> None:
    """More queries than keys under a causal mask is refused, with both numbers."""
    with pytest.raises(ValueError, match="8 queries, 4 keys"):
        attention_time(
            find_accelerator("a100"), "bf16", batch=1, heads=1, kv_heads=1, q_len=8, kv_len=4, head_dim=64, causal=True
        )


def test_unknown_dtype_names_the_accelerator() -> None:
    """An A100 has no fp8; the message says so and lists what it has."""
    with pytest.raises(ScenarioError, match="a100-80gb has no peak for 'fp8'; allowed: fp32, tf32, fp16, bf16, int8"):
        gemm_time(find_accelerator("a100"), "fp8", 64, 64, 64)


def test_unknown_attention_lists_the_known() -> None:
    """An A100 has no FlashAttention-3; the message lists what was measured."""
    shape = {"batch": 1, "heads": 1, "kv_heads": 1, "q_len": 128, "kv_len": 128, "head_dim": 64}
    with pytest.raises(ScenarioError, match="a100-80gb has no attention 'flash3'; allowed: flash1, flash2"):
        attention_time(find_accelerator("a100"), "bf16", **shape, causal=True, implementation="flash3")


def read_table(name: str) -> list[dict[str, str]]:
    """Rows of a test table."""
    with (HERE / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def gemm_errors() -> dict[tuple[str, str], list[float]]:
    """|predicted / measured - 1| of the shipped GEMM rows, by accelerator and fitted dtype."""
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read_table("gemm_rows.csv"):
        predicted = gemm_time(
            find_accelerator(row["accelerator"]), row["dtype"], int(row["m"]), int(row["n"]), int(row["k"]),
            groups=int(row["groups"]), accumulate_fp32=row["accumulate_fp32"] == "1", isolated=True,
        )  # fmt: skip
        dtype = {"fp16": "bf16"}.get(row["dtype"], row["dtype"])
        errors[row["accelerator"], dtype].append(abs(predicted / float(row["seconds"]) - 1))
    return errors


def attention_errors() -> dict[tuple[str, str], list[float]]:
    """|predicted / measured - 1| of the shipped attention rows, by accelerator and implementation."""
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read_table("attention_rows.csv"):
        length, causal = int(row["sequence_length"]), row["causal"] == "1"
        shape = {"batch": int(row["batch"]), "heads": int(row["heads"]), "head_dim": int(row["head_dim"])}
        predicted = measured = 0.0
        for backward in {"fwd": [False], "bwd": [True], "fwd+bwd": [False, True]}[row["passes"]]:
            predicted += attention_time(
                find_accelerator(row["accelerator"]), "bf16", **shape, q_len=length, kv_len=length,
                kv_heads=int(row["kv_heads"]), causal=causal, backward=backward, implementation=row["implementation"],
            )  # fmt: skip
            # The charts count a causal mask as half of all pairs.
            flops = attention_flops(**shape, q_len=length, kv_len=length, causal=False, backward=backward)
            measured += flops / (2 if causal else 1) / (float(row["tflops"]) * 1e12)
        errors[row["accelerator"], row["implementation"]].append(abs(predicted / measured - 1))
    return errors


def stored_fits() -> dict[tuple[str, str], Fit]:
    """Fits of the catalogue, by accelerator and by GEMM dtype or attention implementation."""
    fits: dict[tuple[str, str], Fit] = {}
    for name in ("a100", *CHIPS):
        kernels = find_accelerator(name).kernels
        fits |= {(name, str(dtype)): model.fit for dtype, model in kernels.gemm.items() if model.fit}
        fits |= {
            (name, kind): by["bf16"].fit for kind, by in kernels.attention.items() if "bf16" in by and by["bf16"].fit
        }
    return fits


ERRORS = gemm_errors() | attention_errors()


@pytest.mark.parametrize(("accelerator", "kernel"), sorted(ERRORS))
def test_kernel_matches_published_timings(accelerator: str, kernel: str) -> None:
    """Half of the published rows of each fit lie within the error that nine tenths of the fitted ones kept."""
    assert median(ERRORS[accelerator, kernel]) <= stored_fits()[accelerator, kernel].p90_abs_error


def test_stored_errors_are_those_of_the_shipped_models() -> None:
    """Over all published rows, errors are as large as the catalogue says: the median of their ratio is about 1."""
    fits = stored_fits()
    ratios = [error / fits[key].median_abs_error for key, errors in ERRORS.items() for error in errors]
    assert 1 / SAMPLING <= median(ratios) <= SAMPLING


def test_large_gemm_speeds() -> None:
    """A product of 8192 x 8192 x 8192 in 16 bit reaches the published TFLOP/s within 10 %."""
    # A100: 254 (Azure AI-benchmarking-guide), 262 (aiconfigurator), 278 (LLMCompass), 292 (NVIDIA's CUDA 11 blog),
    # their mean; H100: aiconfigurator, h100_sxm GEMM table
    for name, tflops in (("a100", 271), ("h100", 790)):
        time = gemm_time(find_accelerator(name), "bf16", 8192, 8192, 8192)
        assert 2e-12 * 8192**3 / time == pytest.approx(tflops, rel=0.1)
