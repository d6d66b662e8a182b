"""What a user installs: the wheel holds the code, the catalogue and the shipped files, and runs from anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
SHIPPED = ("topologies", "scenarios")

# A clean installation: nothing of the environment that runs the tests leads to the checkout.
CLEAN = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command to its end and return what it printed; a failure shows both streams."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Current folder of a user who has no checkout."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, elsewhere: Path) -> Path:
    """Folder of the programs of a fresh environment that holds the built wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("package")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=elsewhere)
    (wheel,) = folder.glob("trainsim-*.whl")
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=elsewhere)
    return programs


def test_shipped_folders_exist() -> None:
    """Scenarios and topologies go into the wheel as siblings, each from a folder that holds YAML files."""
    assert WHEEL["sources"] == {name: f"simulator/shipped/{name}" for name in SHIPPED}
    assert set(WHEEL["only-include"]) == {"simulator", *SHIPPED}
    assert not [name for name in SHIPPED if not any((ROOT / name).rglob("*.yaml"))]


def test_script_has_a_module() -> None:
    """The `trainsim` command leads to a file that is part of the wheel."""
    module, function = PYPROJECT["project"]["scripts"]["trainsim"].split(":")
    source = ROOT.joinpath(*module.split("."), "__init__.py")
    assert module.partition(".")[0] in WHEEL["only-include"]
    assert f"def {function}(" in source.read_text()


@pytest.mark.slow
def test_wheel_holds_every_data_file(installed: Path, elsewhere: Path) -> None:
    """Every YAML and CSV file of the package, the scenarios and the topologies lies in the installed package."""
    where = "import simulator, pathlib; print(pathlib.Path(simulator.__file__).parent)"
    package = Path(run(installed / "python", "-c", where, cwd=elsewhere).strip())
    assert package.is_relative_to(installed.parent)
    pairs = [("simulator", package), *((name, package / "shipped" / name) for name in SHIPPED)]
    missing = [
        path.relative_to(ROOT)
        for folder, target in pairs
        for suffix in ("yaml", "csv")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
        if not (target / path.relative_to(ROOT / folder)).is_file()
    ]
    assert not missing


@pytest.mark.slow
def test_wheel_version(installed: Path, elsewhere: Path) -> None:
    """The distribution's version is the package's."""
    ask = "import simulator, importlib.metadata as m; print(m.version('trainsim'), simulator.__version__)"
    distribution, package = run(installed / "python", "-c", ask, cwd=elsewhere).split()
    assert distribution == package


@pytest.mark.slow
def test_wheel_explains_itself(installed: Path, elsewhere: Path) -> None:
    """`trainsim --help` names the command that the README starts with."""
    assert "run" in run(installed / "trainsim", "--help", cwd=elsewhere)


@pytest.mark.slow
def test_wheel_runs_a_shipped_scenario(installed: Path, elsewhere: Path) -> None:
    """A shipped scenario runs by name from a folder without a checkout, and prints one JSON object."""
    assert isinstance(json.loads(run(installed / "trainsim", "run", "gpt4-a100", "--json", cwd=elsewhere)), dict)
