"""The commands `collectives` and `validate`: what they print and write, and what a mistake looks like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulator import cli
from simulator.errors import ScenarioError

RUNNER = CliRunner()
TABLE = ["collectives", "--cluster", "selene-a100", "--op", "all_reduce", "--gpus", "16", "--max", "4 KiB"]
ROWS = "op,gpus,nodes,platform,network,msg_bytes,time_us\nall_reduce,8,1,H100,NVLink,1048576,25\n"


def test_collectives_prints_and_draws(tmp_path: Path) -> None:
    """A line a size; as JSON the same figures; a picture; nothing is overwritten."""
    plain = RUNNER.invoke(cli.app, TABLE)
    assert plain.exit_code == 0
    assert len(plain.stdout.splitlines()) == 2 + 3
    picture = tmp_path / "p.png"
    figures = json.loads(RUNNER.invoke(cli.app, [*TABLE, "--json", "--plot", str(picture)]).stdout)
    assert [row["size"] for row in figures["rows"]] == [1024, 2048, 4096]
    assert picture.exists()
    with pytest.raises(ScenarioError, match="exists already"):
        RUNNER.invoke(cli.app, [*TABLE, "--plot", str(picture)], catch_exceptions=False)
    with pytest.raises(ScenarioError, match="is not a picture"):
        RUNNER.invoke(cli.app, [*TABLE, "--plot", str(tmp_path / "p.txt")], catch_exceptions=False)


def test_validate_exits_with_one_for_rows_it_cannot_read(tmp_path: Path) -> None:
    """Zero for a clean table; one, with the row named, for a malformed row; the rest is scored either way."""
    path, output = tmp_path / "rows.csv", tmp_path / "out.json"
    path.write_text(ROWS, encoding="utf-8")
    clean = RUNNER.invoke(cli.app, ["validate", "--collectives", "--cases", str(path)])
    assert clean.exit_code == 0
    path.write_text(ROWS + "all_reduce,8,1,H100,NVLink,x,25\n", encoding="utf-8")
    broken = RUNNER.invoke(
        cli.app, ["validate", "--collectives", "--cases", str(path), "--json", "--output", str(output)]
    )
    assert broken.exit_code == 1
    assert "row 3: msg_bytes 'x' is not a number" in broken.stderr
    assert json.loads(output.read_text(encoding="utf-8"))["overall"]["rows"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--collectives", "--kernels"], "two tables"),
        (["--kernels", "--split", "test"], "--split does not apply to --kernels"),
        (["--memory", "--jobs", "2"], "--jobs does not apply to --memory"),
        (["--collectives", "--csv", "rows.csv"], "--csv does not apply to --collectives"),
    ],
)
def test_an_option_without_a_use_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is asked for is passed over in silence."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["validate", *arguments])
    assert isinstance(result.exception, ScenarioError)
    assert message in str(result.exception)
