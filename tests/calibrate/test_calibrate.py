"""Calibration with a bench that is a formula: what went in comes out, and no GPU gives one clear message."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from simulator.calibrate.entry import fit_stream, make_entry, write_entry
from simulator.calibrate.measuring import Stream, attention_shapes, gemm_shapes, measure
from simulator.calibrate.torch_bench import open_bench
from simulator.errors import ScenarioError
from simulator.physics.kernels.attention import attention_time
from simulator.physics.kernels.gemm import gemm_time
from simulator.physics.kernels.streaming import memory_bound_time
from simulator.scenario.hardware import find_accelerator
from simulator.scenario.scenario import load
from simulator.studies.simulate import simulate
from tests.small import small, write_small

H100 = find_accelerator("h100")


class Formula:
    """A GPU that is 1.25 times as slow as the catalogue's H100."""

    name, gpus = "Made-up GPU", 2

    def gemm(self, dtype: str, m: int, n: int, k: int) -> float:
        """As predicted, slower."""
        return 1.25 * gemm_time(H100, dtype, m, n, k, isolated=True)

    def attention(self, batch: int, heads: int, length: int, head_dim: int, *, backward: bool) -> float:
        """As predicted, slower."""
        shape = {"batch": batch, "heads": heads, "kv_heads": heads, "q_len": length, "kv_len": length}
        return 1.25 * attention_time(H100, "bf16", **shape, head_dim=head_dim, causal=True, backward=backward)

    def stream(self, kind: str, size: float) -> float:
        """As predicted, slower."""
        return 1.25 * memory_bound_time(H100, size, kind)

    def adam(self, parameters: int) -> float:
        """As predicted, slower."""
        return 1.25 * memory_bound_time(H100, 28.0 * parameters)

    def all_reduce(self, size: float) -> float:
        """10 us and 100 GB/s."""
        return 1e-5 + size / 1e11


def test_stream_fit_by_hand() -> None:
    """2 us and 0.5 TB/s of 1: 10 MB take 22 us, 1 GB 2002 us."""
    launch, share = fit_stream([Stream("norm", 1e7, 22e-6), Stream("norm", 1e9, 2002e-6)], 1e12)
    assert (launch, share) == (pytest.approx(2e-6), pytest.approx(0.5))


def test_an_entry_predicts_what_was_measured(tmp_path: Path) -> None:
    """The written file is an accelerator a quarter slower than the H100 in every kind of kernel."""
    measured = measure(Formula(), quick=True)
    assert (len(measured.gemms), len(measured.attention)) == (len(gemm_shapes(True)), 2 * len(attention_shapes(True)))
    path = tmp_path / "mine.yaml"
    write_entry(make_entry(measured, H100, "mine"), path)
    mine = find_accelerator(str(path))
    assert (mine.name, mine.memory, mine.sm_count) == ("mine", H100.memory, H100.sm_count)
    for row in measured.gemms:
        time = gemm_time(mine, "bf16", row.m, row.n, row.k, isolated=True)
        assert time == pytest.approx(row.seconds, rel=0.1)
    assert memory_bound_time(mine, 1e9, "norm") == pytest.approx(1.25 * memory_bound_time(H100, 1e9, "norm"), rel=0.02)
    assert mine.kernels.gemm["bf16"].fit is not None
    assert "collectives:" in path.read_text(encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"mine\.yaml: exists already"):
        write_entry({}, path)


def test_without_pytorch_or_gpu_one_message_says_so() -> None:
    """Where PyTorch is missing or sees no GPU, calibration asks for it."""
    with pytest.raises(ScenarioError, match="calibration needs"):
        open_bench()


def test_a_file_that_is_no_accelerator_is_named(tmp_path: Path) -> None:
    """A missing file and one of something else are refused with their name."""
    with pytest.raises(ScenarioError, match=r"none\.yaml: cannot be read"):
        find_accelerator(str(tmp_path / "none.yaml"))
    other = tmp_path / "other.yaml"
    other.write_text("accelerators: {}\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"other\.yaml: is not one accelerator"):
        find_accelerator(str(other))


def test_a_scenario_uses_what_was_measured(tmp_path: Path) -> None:
    """By the file's path from the cluster's own place, or the scenario's; collectives are those of the H100."""
    (tmp_path / "machines").mkdir()
    write_entry(make_entry(measure(Formula(), quick=True), H100, "mine"), tmp_path / "machines" / "mine.yaml")
    content = small()
    cluster = {**content["cluster"], "accelerator": "mine.yaml"}
    (tmp_path / "machines" / "box.yaml").write_text(yaml.safe_dump(cluster), encoding="utf-8")
    apart = load(write_small(tmp_path, "apart", cluster="machines/box.yaml"))
    assert apart.accelerator.name == "mine"
    assert apart.cluster.platform == "h100"
    inline = load(write_small(tmp_path, "inline", cluster={"accelerator": "machines/mine.yaml"}))
    assert inline.accelerator == apart.accelerator
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(inline.resolved()), encoding="utf-8")
    assert load(again).accelerator == apart.accelerator
    plain = load(write_small(tmp_path, "h100", cluster={"accelerator": "h100"}))
    slow, fast = (simulate(each).step.step_time for each in (inline, plain))
    assert slow > fast


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the line that names it and what would do."""
    path = write_small(tmp_path, cluster={"accelerator": "none.yaml"})
    with pytest.raises(
        ScenarioError, match=r"cluster\.accelerator: no file none\.yaml; name one that `trainsim calibrate`"
    ):
        load(path)
