"""Kernel validation: a row by hand, what is refused, what is malformed, and the errors of the shipped tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.errors import ScenarioError
from simulator.physics.kernels.attention import attention_time
from simulator.physics.kernels.gemm import gemm_time
from simulator.physics.kernels.streaming import memory_bound_time
from simulator.scenario.hardware import find_accelerator
from simulator.studies.validate_kernels import validate_kernels

GEMM = "hardware,dtype,m,n,k,time_ms,note\n"
ATTENTION = "hardware,impl,dtype,pass,causal,batch,heads,seqlen,head_dim,tflops\n"


def table(folder: Path, text: str) -> Path:
    """A table of these lines."""
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_product_is_predicted_by_itself(tmp_path: Path) -> None:
    """2 ms measured; we say what the kernel takes outside a training step."""
    found = validate_kernels(table(tmp_path, GEMM + "H100,bf16,8192,4096,4096,2.0,\n"))
    predicted = gemm_time(find_accelerator("h100"), "bf16", 8192, 4096, 4096, isolated=True)
    (row,) = found.rows
    assert (row.predicted, row.measured) == (pytest.approx(predicted), 2e-3)
    assert found.overall.bias == pytest.approx(predicted / 2e-3 - 1)
    assert found.groups[0].group == "gemm H100 bf16"


@pytest.mark.parametrize(("scales", "launch"), [("fp8", 5e-6), ("fp8_block", 2e-6)])
def test_an_operator_is_predicted_with_its_cast(tmp_path: Path, scales: str, launch: float) -> None:
    """A row that times the framework's fp8 operator also reads 8192 x 4096 numbers in 2 B and writes them in 1."""
    note = f"{scales} torch_flow; may include activation quantisation"
    found = validate_kernels(table(tmp_path, GEMM + f"H100,fp8,8192,4096,4096,1,{note}\nH100,fp8,8192,4096,4096,1,\n"))
    operator, kernel = (row.predicted or 0.0 for row in found.rows)
    cast = memory_bound_time(find_accelerator("h100"), 8192 * 4096 * 3, "cast")
    assert operator - kernel == pytest.approx(launch + cast)


def test_attention_is_measured_from_its_tflops(tmp_path: Path) -> None:
    """Forward and backward of 16 heads of 128 over 4096 keys, causal: 3.5 * 4 * 128 * 16 * 4096^2 / 2 FLOPs."""
    found = validate_kernels(table(tmp_path, ATTENTION + "A100,FlashAttention-2,fp16,fwd+bwd,1,1,16,4096,128,150\n"))
    (row,) = found.rows
    assert row.measured == pytest.approx(3.5 * 4 * 128 * 16 * 4096**2 / 2 / 150e12)
    shape = {"batch": 1, "heads": 16, "kv_heads": 16, "q_len": 4096, "kv_len": 4096, "head_dim": 128, "causal": True}
    acc = find_accelerator("a100")
    both = sum(attention_time(acc, "fp16", **shape, implementation="flash2", backward=b) for b in (False, True))
    assert row.predicted == pytest.approx(both)


def test_what_we_cannot_predict_is_refused_with_a_reason(tmp_path: Path) -> None:
    """An unknown chip, a precision it lacks and a blank shape are refused; the other row counts."""
    lines = "TPU v9,bf16,1,1,1,1,\nA100,fp8,64,64,64,1,\nA100,bf16,,64,64,1,\nA100,bf16,64,64,64,0.01,\n"
    found = validate_kernels(table(tmp_path, GEMM + lines))
    assert (found.overall.rows, found.overall.refused, found.malformed) == (1, 3, [])
    reasons = [row.refused or "" for row in found.refused]
    assert ["not in the catalogue" in reasons[0], "no peak" in reasons[1], "m is blank" in reasons[2]] == [True] * 3


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    """Without k it is no table of GEMMs, without heads none of attention."""
    with pytest.raises(ScenarioError, match=r"cases\.csv:1: column 'k' is missing from a table of GEMMs"):
        validate_kernels(table(tmp_path, "hardware,dtype,m,n,time_ms\n"))
    with pytest.raises(ScenarioError, match="column 'heads' is missing from a table of attention"):
        validate_kernels(table(tmp_path, ATTENTION.replace("heads,", "") + "\n"))
    with pytest.raises(ScenarioError, match="has no rows"):
        validate_kernels(table(tmp_path, GEMM))


def test_a_bad_number_is_named_and_the_others_carry_on(tmp_path: Path) -> None:
    """From the command line: exit code 1, the row and column on stderr, JSON of the rest on stdout."""
    path = table(tmp_path, GEMM + "H100,bf16,64,64,x,1,\nH100,bf16,64,64,64,0.01,\n")
    command = [sys.executable, "-m", "simulator.cli", "validate", "--kernels", "--cases", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "line 2: k 'x' is not a number" in done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) >= {"overall", "groups", "rows", "refused"}
    assert figures["overall"]["rows"] == 1


def test_shipped_rows_keep_the_errors_of_their_fits() -> None:
    """Every fitted group of 15 rows or more has a median error of at most 6.5 % (GEMMs) or 8 % (attention)."""
    found = validate_kernels()
    assert found.malformed == []
    large = [group for group in found.groups if group.score.rows >= 15]
    assert len(large) == 17
    for group in large:
        limit = 0.065 if group.group.startswith("gemm") else 0.08
        assert (group.score.median_error or 0.0) <= limit, group.group
    assert len(found.csv().splitlines()) == len(found.rows) + 1
