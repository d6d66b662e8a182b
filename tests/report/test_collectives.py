"""Collectives for people: the table's columns, the validation's totals, a picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.report.collectives import collective_report, plot_collective, size_text, validation_report
from simulator.report.tables import render
from simulator.studies.collectives import collective_table
from simulator.studies.validate import validate_collectives


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1 B"), (1024, "1 KiB"), (1.5 * 2**20, "1.5 MiB"), (2**33, "8 GiB"), (1000, "1000 B")]
)
def test_sizes(size: float, text: str) -> None:
    """In powers of two."""
    assert size_text(size) == text


def test_table_and_picture(tmp_path: Path) -> None:
    """A line per size under a title that says where; a PNG that is one."""
    found = collective_table("selene-a100", "all_reduce", 16, "1 MiB", "4 MiB")
    lines = render(collective_report(found), plain=True).splitlines()
    assert "between 16 GPUs of selene-a100, over 2 scale-up domains (fitted to ampere kernels)" in lines[0]
    assert lines[1].split()[:4] == ["size", "algorithm", "protocol", "time"]
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "4"]
    plot_collective(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_validation_names_refusals_and_assumptions(tmp_path: Path) -> None:
    """Totals by size, what was assumed, and how many rows were refused and why."""
    path = tmp_path / "rows.csv"
    path.write_text(
        "op,gpus,nodes,platform,network,msg_bytes,time_us\n"
        "all_reduce,16,2,H100,IB,1048576,120\nall_reduce,8,1,Z9,NVLink,1024,20\n",
        encoding="utf-8",
    )
    text = render(validation_report(validate_collectives(path)), plain=True)
    assert "1 MiB and more" in text
    assert "nic_Gbps 400" in text
    assert "Refused: 1 rows" in text
    assert "(row 3): platform 'Z9'" in text
