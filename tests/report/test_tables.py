"""What people read: every figure, no overflow, differences with the right sign."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from simulator.report.formats import seconds
from simulator.report.tables import compare_report, list_report, render, run_report, show_report
from simulator.studies.compare import compare
from simulator.studies.show import describe_scenario
from simulator.studies.simulate import simulate
from tests.small import load_small, write_small

WIDTHS = pytest.mark.parametrize("width", [80, 120])
LONG = "A very long source, with authors, a title that goes on and on, a venue, an identifier and a remark " * 3

RICH: dict[str, Any] = {
    "description": LONG,
    "model": {"moe": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 2048}, "num_layers": 16},
    "parallelism": {"tp": 1, "pp": 8, "dp": 2, "ep": 2},
    "expected": {
        "effective_mfu": {"between": [0.32, 0.36], "source": LONG, "note": "blamed on failures"},
        "wall_clock_s": {"between": ["90 d", "100 d"], "source": "[red]markup[/red] is text"},
        "cost_usd": {"value": "63e6 USD", "source": "someone"},
        "gpu_hours": {"at_most": "1e9 GPU-h", "source": "someone"},
    },
}


def row(text: str, label: str) -> list[str]:
    """Cells of the line that begins with a label."""
    (line,) = [line for line in text.splitlines() if re.match(rf"{re.escape(label)}(  |$)", line)]
    return [cell.strip() for cell in re.split(r"  +", line)[1:]]


def assert_fits(text: str, width: int) -> None:
    """No line is too wide, cut off, or coloured; no blank at a line's end."""
    for line in text.splitlines():
        assert len(line) <= width, line
        assert line == line.rstrip()
        assert "\x1b" not in line


# --- run -------------------------------------------------------------------------------------------------------------


def test_a_run_shows_its_figures(tmp_path: Path) -> None:
    """Step, parts with their sum, memory of the fullest stage, campaign: the numbers of the JSON output."""
    simulation = simulate(load_small(tmp_path))
    text = render(run_report(simulation))
    step, run = simulation.step_figures, simulation.campaign_figures
    assert run is not None
    assert row(text, "step time")[0] == f"{step['step_time_s'] * 1e3:.3f} ms"
    assert row(text, "MFU")[0] == f"{100 * step['mfu']:.1f} %"
    assert row(text, "bubble fraction") == [f"{100 * step['bubble_fraction']:.1f} %", "(theory of the schedule 11.1 %)"]
    assert row(text, "sum") == [f"{step['step_time_s'] * 1e3:.3f} ms", "100.0 %"]
    assert row(text, "exposed_tp")[0] == f"{step['breakdown_s']['exposed_tp'] * 1e3:.3f} ms"
    fullest = max(simulation.memory, key=lambda stage: stage.total)
    assert f"Memory per GPU, fullest pipeline stage ({fullest.rank})\n" in text
    assert row(text, "total")[0] == f"{fullest.total / 1e9:.4g} GB"
    assert row(text, "wall-clock") == [f"{run['wall_clock_s'] / 86400:.1f} d"]
    assert row(text, "goodput")[0] == f"{100 * run['goodput']:.1f} %"
    assert row(text, "failures")[0] == f"{run['failures']}"
    assert row(text, "lost work")[0] == seconds(run["lost_work_s"])
    assert row(text, "GPU-hours")[1] == "(16 + 8 spare GPUs)"
    assert "Run of 610,351,563 steps, 10 T tokens" in text


def test_rows_of_nothing_are_left_out(tmp_path: Path) -> None:
    """Parts of the step, of the memory and of the run that are zero have no row."""
    changes: dict[str, Any] = {"parallelism": {"pp": 1, "dp": 4}, "reliability": {"failures": [], "spares": 0}}
    text = render(run_report(simulate(load_small(tmp_path, **changes))))
    for absent in ("exposed_cp", "bubble", "host", "lost work", "restart", "spares"):
        assert not re.search(rf"^{absent}  ", text, re.MULTILINE), absent
    assert row(text, "failures") == ["0"]
    assert len(re.findall("^checkpoint  ", text, re.MULTILINE)) == 2, "a fate and its cause"
    assert len(row(text, "effective MFU")) == len(row(text, "GPU-hours")) == 1, "no spares to tell about"


def test_without_price_or_run_the_report_says_less(tmp_path: Path) -> None:
    """No price is said so; no tokens leave the run out."""
    text = render(run_report(simulate(load_small(tmp_path, cluster={"price_per_gpu_hour": None}))))
    assert row(text, "cost") == ["no price given"]
    text = render(run_report(simulate(load_small(tmp_path, training={"tokens": None}))))
    assert "Run of" not in text
    assert "warning: the job uses 16 of 24 GPUs; 8 stay idle\n" in text


def test_published_figures_have_a_verdict(tmp_path: Path) -> None:
    """Inside or OUTSIDE of a range, over or under a bound, a signed error for a value."""
    expected = {
        "mfu": {"between": [0.0, 0.9], "source": "one"},
        "hfu": {"at_least": 0.95, "source": "two", "note": "a dream"},
        "total_parameters": {"value": 1e8, "source": "three"},
        "goodput": {"value": 0.5, "source": "four"},
    }
    simulation = simulate(load_small(tmp_path, training={"tokens": None}, expected=expected))
    text = render(run_report(simulation))
    mfu = f"{100 * simulation.step_figures['mfu']:.1f} %"
    assert row(text, "mfu") == [mfu, "0.0 % – 90.0 %", "inside", "one"]
    assert row(text, "hfu") == [mfu, "at least 95.0 %", "OUTSIDE", "two (a dream)"]
    error = simulation.scenario.model.total_parameters / 1e8 - 1
    assert row(text, "total_parameters") == ["115.9 M", "100 M", f"{error:+.1%}", "three"]
    assert row(text, "goodput") == ["–", "50.0 %", "not simulated", "four"]


# --- compare ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def comparison_of_two(tmp_path: Path) -> Any:
    """The second without pipeline: slower or faster, without bubble."""
    first = write_small(tmp_path, "first")
    return compare([str(first), str(write_small(tmp_path, "second", parallelism={"pp": 1, "dp": 4}))])


def test_differences_have_the_sign_of_second_minus_first(comparison_of_two: Any) -> None:
    """Percent for amounts, points for fractions, time for parts of the step."""
    text = render(compare_report(comparison_of_two))
    first, second = (simulation.step_figures for simulation in comparison_of_two.simulations)
    assert row(text, "step_time_s")[2] == f"{second['step_time_s'] / first['step_time_s'] - 1:+.1%}"
    assert row(text, "mfu")[2] == f"{100 * (second['mfu'] - first['mfu']):+.1f} points"
    assert row(text, "bubble_fraction")[1:] == ["0.0 %", f"{-100 * first['bubble_fraction']:+.1f} points"]
    bubble = 1e3 * first["breakdown_s"]["bubble"]
    assert row(text, "bubble") == [f"{bubble:.3f} ms", "0.000 ms", f"-{bubble:.3f} ms"]
    assert row(text, "model_flops")[2] == "="
    assert row(text, "first") == ["small"]
    assert "exposed_cp" not in text
    assert "events" not in text


def test_a_figure_that_appears_is_new(tmp_path: Path) -> None:
    """No percentage of zero."""
    quiet = write_small(tmp_path, "quiet", reliability={"failures": []})
    text = render(compare_report(compare([str(quiet), str(write_small(tmp_path, "loud"))])))
    assert row(text, "failures")[0] == "0"
    assert row(text, "failures")[2] == "new"


@WIDTHS
def test_too_many_scenarios_wrap_into_blocks(width: int, tmp_path: Path) -> None:
    """Each block repeats the first scenario, every other one appears once per table, and nothing is cut."""
    names = [str(write_small(tmp_path, f"scenario-{position}")) for position in range(7)]
    text = render(compare_report(compare(names)), width=width)
    assert_fits(text, width)
    assert "…" not in text
    headers = [line for line in text.splitlines() if line.startswith("   ") and "difference" in line]
    for position in range(1, 7):
        assert sum(header.split().count(f"scenario-{position}") for header in headers) == 5
    assert all(header.split()[0] == "scenario-0" for header in headers)


# --- all -------------------------------------------------------------------------------------------------------------


@WIDTHS
def test_nothing_overflows(width: int, tmp_path: Path) -> None:
    """Long texts wrap, numbers stay whole, square brackets are no markup."""
    scenario = load_small(tmp_path, **RICH)
    text = render(run_report(simulate(scenario)), width=width)
    assert_fits(text, width)
    assert "[red]markup[/red]" in text
    assert "…" not in text
    shown = render(show_report(describe_scenario(scenario)), width=width)
    assert_fits(shown, width)
    grid = [line for line in shown.splitlines() if line.startswith("rank 0 |")]
    assert len(grid) == 1
    assert len(grid[0]) == width
    assert grid[0].endswith("…"), "the drawing fills the line and says that it goes on"
    stages = shown.split("Memory per GPU by pipeline stage (GB)\n")[1].split("\n\n")[0].splitlines()
    assert len(stages) == 1 + 8
    for stage in stages[1:]:
        *parts, total, share, _ = map(float, stage.replace("%", "0").split()[1:])
        assert sum(parts) == pytest.approx(total, abs=0.03)
        assert share == pytest.approx(total * 1e11 / scenario.accelerator.memory, abs=0.1)


def test_only_texts_wrap(tmp_path: Path) -> None:
    """However narrow, a number or a range is not broken over lines."""
    text = render(run_report(simulate(load_small(tmp_path, **RICH))), width=66)
    assert "32.0 % – 36.0 %" in text
    assert "90.0 d – 100.0 d" in text


def test_show_tells_what_would_run(tmp_path: Path) -> None:
    """Cluster, model, groups, stages, schedule, classes."""
    text = render(show_report(describe_scenario(load_small(tmp_path))))
    for title in (
        "Cluster two boxes",
        "Model tiny",
        "Groups of 16 ranks",
        "Schedule 1f1b, 8 microbatches",
        "Simulated as",
    ):
        assert f"\n{title}" in text
    assert row(text, "tp") == ["4", "4", "1", "0, 1, 2, 3"]
    assert row(text, "parameters") == ["115,922,944"]
    assert row(text, "steps") == ["610,351,563"]
    assert "rank 0 |F0 F1 ..... B0---" in text


def test_the_list_indents_what_is_shipped() -> None:
    """Kinds as headings, names wrapped below them."""
    text = render(list_report({"models": [f"model-{n}" for n in range(40)], "stacks": ["one"]}), width=60)
    lines = text.splitlines()
    assert_fits(text, 60)
    assert lines[0] == "models"
    assert lines[-2:] == ["stacks", "  one"]
    assert all(line.startswith("  model-") for line in lines[1 : lines.index("stacks") - 1])


def test_a_pipe_gets_plain_text_and_a_terminal_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No escape codes and 120 columns in a pipe; on a terminal both are its own, unless plain text is asked for."""
    report = run_report(simulate(load_small(tmp_path, description=LONG)))
    assert "\x1b" not in render(report)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = render(report)
    assert "\x1b[1m" in coloured
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in coloured.splitlines()) <= 70
    assert_fits(render(report, plain=True), 120)
