"""Scenarios side by side: rows, differences from the first, and whose mistake it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.errors import CapacityError, LayoutError, ScenarioError, SimulatorError
from simulator.studies.compare import Comparison, compare
from tests.small import write_small


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Two files that differ in their tensor parallelism."""
    narrow = write_small(tmp_path, "narrow", parallelism={"tp": 2, "pp": 2, "dp": 4})
    return [str(narrow), str(write_small(tmp_path, "wide"))]


def row(comparison: Comparison, key: str) -> list[float | None]:
    """Values of one figure."""
    return dict(comparison.rows())[key]


def test_every_number_has_a_row(pair: list[str]) -> None:
    """Figures of step, parts, memory and run, in this order, each with a value per scenario."""
    comparison = compare(pair)
    assert comparison.names == ("narrow", "wide")
    keys = [key for key, _ in comparison.rows()]
    groups = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    assert groups == ["step", "breakdown_s", "memory", "campaign", "mfu_loss"]
    first, second = comparison.simulations
    assert row(comparison, "step.mfu") == [first.step_figures["mfu"], second.step_figures["mfu"]]
    assert row(comparison, "breakdown_s.bubble")[1] == second.step_figures["breakdown_s"]["bubble"]
    fullest = max(stage.total for stage in second.memory)
    assert row(comparison, "memory.total_bytes")[1] == fullest


def test_differences_are_from_the_first(pair: list[str]) -> None:
    """Second minus first: positive where the second is larger; zero for the first itself; parts add up too."""
    figures = compare(pair).figures()
    for key, (first, second) in figures["figures"].items():
        assert figures["differences"][key] == [0, second - first]
    parts = [difference[1] for key, difference in figures["differences"].items() if key.startswith("breakdown_s.")]
    assert sum(parts) == pytest.approx(figures["differences"]["step.step_time_s"][1])
    assert [result["scenario"]["parallelism"]["tp"] for result in figures["results"]] == [2, 4]
    json.dumps(figures, allow_nan=False)


def test_a_figure_that_one_scenario_lacks_has_no_difference(tmp_path: Path) -> None:
    """No run in the first: its campaign figures are null, and so are the differences."""
    step_only = write_small(tmp_path, "step", training={"tokens": None})
    figures = compare([str(step_only), str(write_small(tmp_path, "run"))]).figures()
    assert figures["figures"]["campaign.goodput"][0] is None
    assert figures["figures"]["campaign.goodput"][1] > 0
    assert figures["differences"]["campaign.goodput"] == [None, None]


def test_overrides_hold_for_all(pair: list[str]) -> None:
    """The same change in every scenario."""
    comparison = compare(pair, iter(["training.global_batch_size=32"]))
    assert [simulation.scenario.num_microbatches for simulation in comparison.simulations] == [8, 16]


def test_files_of_the_same_name_keep_their_folders(tmp_path: Path) -> None:
    """Names that would be equal are shown as they were given."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [str(write_small(tmp_path / folder)) for folder in ("a", "b")]
    assert compare(paths).names == tuple(paths)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_are_refused(count: int, pair: list[str]) -> None:
    """The message says how many there were and which command shows one."""
    with pytest.raises(ScenarioError, match=rf"two scenarios or more, not {count}.* trainsim run"):
        compare(pair[:count])


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("parallelism.tp=3", LayoutError, r"^narrow\.yaml:\d+: parallelism: .*tp 3"),
        ("model.hidden_size=65536", CapacityError, r"^narrow\.yaml: pipeline stage"),
        ("cluster.storage=null", ScenarioError, r"^narrow\.yaml: reliability\.checkpoint\.save_time"),
    ],
)
def test_an_error_names_the_scenario(
    override: str, kind: type[SimulatorError], message: str, pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, whichever step of its simulation it comes from."""
    monkeypatch.chdir(Path(pair[0]).parent)
    with pytest.raises(kind, match=message) as caught:
        compare([Path(path).name for path in pair], [override])
    assert str(caught.value).count("narrow.yaml") == 1


def test_progress_counts_scenarios(pair: list[str]) -> None:
    """None done, then one of two."""
    told: list[tuple[str, float]] = []
    compare(pair, progress=lambda what, fraction: told.append((what, fraction)))
    assert told == [("scenarios", 0.0), ("scenarios", 0.5)]
