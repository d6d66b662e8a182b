"""Validation of collectives: rows to machines, errors by group, refusals, and the fit's stored errors."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from simulator.errors import ScenarioError
from simulator.physics.collectives.tuning import catalogue
from simulator.studies.collective_rows import SHIPPED, Row, floor_of, machine_of, predict, read_rows, with_floor
from simulator.studies.validate import LARGE, validate_collectives

HEADER = "op,gpus,nodes,platform,network,msg_bytes,time_us"


def table(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    """Write a table."""
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def row(**changes: object) -> Row:
    """Build an H100 row."""
    fields = {
        "row": "1", "op": "all_reduce", "gpus": 16, "nodes": 2, "platform": "H100", "network": "NVLink4 + IB",
        "size": 2.0**30, "seconds": 5e-3,
    }  # fmt: skip
    return Row(**{**fields, **changes})  # type: ignore[arg-type]


def test_stored_errors_of_the_fit_are_reproduced() -> None:
    """Median and 90th percentile of every fitted platform, operation and side of 1 MiB, from the shipped rows."""
    rows = [each for each in read_rows(SHIPPED)[0] if each.fitted]
    found: dict[tuple[str, str, str], list[float]] = {}
    for each, seconds in zip(rows, predict(rows), strict=True):
        if not isinstance(seconds, str):
            side = "large" if each.size >= LARGE else "small"
            found.setdefault((each.platform, each.op, side), []).append(abs(seconds / each.seconds - 1))
    checked = 0
    for architecture in catalogue()["architectures"].values():
        for platform, ops in architecture.get("errors", {}).items():
            for op, sides in ops.items():
                for side, errors in sides.items():
                    sizes = found[platform, op, side]
                    assert len(sizes) == errors["in_sample"]["rows"]
                    assert np.median(sizes) == pytest.approx(errors["in_sample"]["median"], abs=0.01)
                    assert np.percentile(sizes, 90) == pytest.approx(errors["in_sample"]["p90"], abs=0.02)
                    checked += 1
    assert checked > 30


def test_shipped_rows_are_all_counted() -> None:
    """A hundred rows a second at the least; at most one in twenty refused, none malformed; groups add up."""
    began = time.perf_counter()
    found = validate_collectives()
    assert found.overall.rows + len(found.refused) > 100 * (time.perf_counter() - began)
    assert found.malformed == []
    assert len(found.refused) <= 0.05 * found.overall.rows
    assert sum(group.score.rows for group in found.groups) == found.overall.rows == found.large.rows + found.small.rows
    assert found.large.median_error is not None
    assert found.large.median_error <= 0.08
    assert found.small.median_error is not None
    assert found.small.median_error <= 0.20


def test_figures_have_the_promised_keys() -> None:
    """Groups, overall and refused, nothing else."""
    figures = validate_collectives().figures()
    assert set(figures) == {"groups", "overall", "refused"}
    assert set(figures["groups"][0]) == {"hardware", "op", "decade", "rows", "median_error", "p90_error", "bias"}
    assert {"rows", "refused", "median_error", "p90_error", "bias"} < set(figures["overall"])
    assert set(figures["refused"][0]) == {"row", "reason"}


def test_decade_and_error(tmp_path: Path) -> None:
    """65,536 bytes are of decade 4; error is predicted over measured, less one."""
    path = table(tmp_path, "all_reduce,8,1,H100,NVLink4,65536,20")
    (group,) = validate_collectives(path).groups
    (seconds,) = predict(read_rows(path)[0])
    assert isinstance(seconds, float)
    assert (group.hardware, group.op, group.decade) == ("H100", "all_reduce", 4)
    assert group.score.bias == pytest.approx(seconds / 20e-6 - 1, abs=1e-6)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("all_reduce,8,1,Z9,NVLink,1024,20", "platform 'Z9' is not one of V100"),
        ("scan,8,1,H100,NVLink,1024,20", "op 'scan' is not one of all_reduce"),
        ("all_reduce,1,1,H100,NVLink,1024,20", "one GPU alone"),
        ("all_reduce,9,2,H100,IB,1024,20", "do not spread evenly over 2 nodes"),
        ("sendrecv,4,1,H100,NVLink,1024,20", "only pairs"),
        ("all_reduce,16,2,H100,pigeons,1024,20", "network 'pigeons' names no network that we know; known words: efa"),
    ],
)
def test_rows_that_cannot_be_represented_are_refused(tmp_path: Path, line: str, reason: str) -> None:
    """Counted with their line and reason, never dropped."""
    found = validate_collectives(table(tmp_path, line))
    (refused,) = found.refused
    assert refused.row == "2"
    assert reason in refused.reason
    assert found.overall.rows == 0
    assert found.figures()["overall"]["median_error"] is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("all_reduce,8,1,H100,NVLink,abc,20", "msg_bytes 'abc' is not a number"),
        ("all_reduce,8,1,H100,NVLink,1024,-1", "time_us '-1' must be finite and above zero"),
        ("all_reduce,8,1,H100,NVLink,1024,nan", "must be finite"),
        ("all_reduce,2.5,1,H100,NVLink,1024,20", "gpus '2.5' must be whole"),
        ("all_reduce,8,1,,NVLink,1024,20", "platform is empty"),
        ("all_reduce,8,1,H100,NVLink,1024,20,9", "more fields"),
    ],
)
def test_rows_that_cannot_be_read_are_malformed(tmp_path: Path, line: str, reason: str) -> None:
    """Told apart from those that are refused."""
    found = validate_collectives(table(tmp_path, line))
    (malformed,) = found.malformed
    assert malformed.row == "2"
    assert reason in malformed.reason
    assert found.refused == []


def test_missing_file_and_missing_column(tmp_path: Path) -> None:
    """One message with file and column."""
    with pytest.raises(
        ScenarioError, match=r"rows\.csv:1: columns 'nodes', 'platform', .* are missing; it has op, gpus"
    ):
        validate_collectives(table(tmp_path, "all_reduce,8", header="op,gpus"))
    with pytest.raises(ScenarioError, match=r"none\.csv: cannot be read"):
        validate_collectives(tmp_path / "none.csv")


def test_machine_of_a_row() -> None:
    """Nodes of eight, two GPUs used of each; sixteen 200G NICs are 400 Gb/s a GPU; blanks are listed as assumed."""
    machine = machine_of(row(gpus=4, network="NVLink4 + 16x200G EFAv3/node", nics_per_node=16, nic_gbps=200.0))
    assert machine.gpus.tolist() == [0, 1, 8, 9]
    link = machine.cluster.link_between("node0.nic0", "leaf0.0")
    assert machine.cluster.capacity[link] == pytest.approx(50e9 * 0.97)
    assert "nic_Gbps" not in machine.assumed
    assert machine_of(row()).assumed["nic_Gbps"] == "400"
    racks = machine_of(row(platform="GB200", gpus=128, nodes=32, network="NVLink5 + RoCE, 2 racks"))
    assert racks.gpus[64] == 72
    assert racks.groups.shape == (128, 2, 64)


def test_a_named_algorithm_is_used() -> None:
    """A forced ring is never quicker than the best, and NVLSTree inside one node is NVLS."""
    times = predict([row(gpus=8, nodes=1), row(gpus=8, nodes=1, algo="Ring"), row(gpus=8, nodes=1, algo="NVLSTree")])
    best, ring, nvls = (float(each) for each in times)
    assert best == nvls < ring


def test_floor_of_the_harness() -> None:
    """Graphs have none, messages between two neither; far above it the kernel's time is what counts."""
    assert floor_of(row(harness="graph")) == floor_of(row(op="sendrecv", gpus=2, harness="torch")) == 0.0
    floor = floor_of(row(harness="nccl-tests"))
    assert 10e-6 < floor < 60e-6
    assert with_floor(0.1 * floor, floor) == pytest.approx(floor, rel=1e-4)
    assert with_floor(10 * floor, floor) == pytest.approx(10 * floor, rel=1e-4)
