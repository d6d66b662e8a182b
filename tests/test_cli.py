"""The command line: what each command prints and writes, and what a user's mistake looks like."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator import cli

SMALL = """\
name: small
cluster:
  name: two boxes
  accelerator: a100-80gb
  price_per_gpu_hour: 1 USD/h
  topology:
    kind: rail_clos
    nodes: 2
    gpus_per_node: 8
    scale_up: {bandwidth: 300 GB/s, efficiency: 0.8}
    nic: {bandwidth: 200 Gbps, efficiency: 0.96}
    nodes_per_leaf: 2
    tiers: 1
  storage: {write_bandwidth: 10 GB/s, read_bandwidth: 10 GB/s}
model: gpt2
parallelism: {tp: 4, pp: 2, dp: 2}
training:
  sequence_length: 1024
  global_batch_size: 16
  tokens: 10e9 tokens
reliability:
  failures:
    - {name: hardware, rate: 4 per 1000 node-days}
  checkpoint: {interval: 10 min}
expected:
  mfu: {at_most: 1.0, source: "a law"}
seed: 3
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A scenario file of 16 GPUs that everything below varies."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def trainsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trainsim", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def changed(path: Path, old: str, new: str) -> Path:
    """The same scenario with one passage replaced."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


# --- what works ------------------------------------------------------------------------------------------------------


def test_run_prints_every_figure_that_the_readme_promises(trainsim: Run, small: Path) -> None:
    """`run` prints step, breakdown, memory, campaign and the published figures."""
    code, out, err = trainsim("run", changed(small, "4 per 1000 node-days", "4 per node-day"))
    assert (code, err) == (0, "")
    for word in (
        "step time", "tokens/s", "MFU", "HFU", "bubble fraction", "theory", "ideal_compute", "capacity", "wall-clock",
        "effective MFU", "failures", "lost work", "checkpoint", "restart", "goodput", "GPU-hours", "cost", "published",
    ):  # fmt: skip
        assert word in out


def test_json_has_the_documented_keys(trainsim: Run, small: Path) -> None:
    """`--json` prints one object with units in the names, the resolved scenario, version and seed."""
    code, out, _ = trainsim("run", small, "--json")
    result = json.loads(out)
    assert code == 0
    assert {"step", "memory", "campaign", "expected", "warnings", "scenario", "version", "seed"} <= set(result)
    assert {
        "step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "mfu_causal", "mfu_6nd", "hfu",
        "bubble_fraction", "bubble_overhead", "breakdown_s",
    } <= set(result["step"])  # fmt: skip
    assert {
        "wall_clock_s", "effective_mfu", "effective_mfu_owned", "goodput", "failures", "lost_work_s", "checkpoint_s",
        "restart_s", "gpu_hours", "cost_usd",
    } <= set(result["campaign"])  # fmt: skip
    assert {"stage", "total_bytes", "parts_bytes"} <= set(result["memory"]["stages"][0])
    assert {"name", "simulated", "published", "source"} <= set(result["expected"][0])
    assert sum(result["step"]["breakdown_s"].values()) == result["step"]["step_time_s"]
    assert result["seed"] == 3


def test_no_campaign_without_tokens(trainsim: Run, small: Path) -> None:
    """Without `tokens` there is a step and no run."""
    code, out, _ = trainsim("run", changed(small, "  tokens: 10e9 tokens\n", ""), "--json")
    assert code == 0
    assert "campaign" not in json.loads(out)


def test_set_overrides_a_field(trainsim: Run, small: Path) -> None:
    """`--set` reaches any field, and the result embeds what was run."""
    code, out, _ = trainsim("run", small, "--json", "--set", "parallelism.tp=2", "--set", "parallelism.dp=4")
    assert code == 0
    assert json.loads(out)["scenario"]["parallelism"]["tp"] == 2


def test_same_seed_same_bytes_in_another_process(trainsim: Run, small: Path) -> None:
    """Nothing depends on the process or its hash seed."""
    _, out, _ = trainsim("run", small, "--json")
    for seed in ("1", "2"):
        other = subprocess.run(
            [sys.executable, "-m", "simulator.cli", "run", str(small), "--json"],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert other.stdout == out


def test_a_result_can_be_run_again(trainsim: Run, small: Path, tmp_path: Path) -> None:
    """The embedded scenario is a scenario file that gives the same result."""
    _, first, _ = trainsim("run", small, "--json")
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps(json.loads(first)["scenario"]), encoding="utf-8")
    code, second, err = trainsim("run", again, "--json")
    assert (code, err) == (0, "")
    assert second == first


def test_compare_puts_scenarios_side_by_side(trainsim: Run, small: Path, tmp_path: Path) -> None:
    """`compare` prints each figure of each scenario and the difference from the first."""
    other = tmp_path / "other.yaml"
    other.write_text(SMALL.replace("tp: 4, pp: 2, dp: 2", "tp: 2, pp: 4, dp: 2"), encoding="utf-8")
    code, out, err = trainsim("compare", small, other)
    assert (code, err) == (0, "")
    for word in ("small", "other", "difference", "step_time_s", "exposed_tp", "points", "wall_clock_s"):
        assert word in out


def test_compare_needs_two(trainsim: Run, small: Path) -> None:
    """One scenario is nothing to compare."""
    code, _, err = trainsim("compare", small)
    assert code == 2
    assert "two scenarios or more" in err


def test_show_describes_without_simulating(trainsim: Run, small: Path) -> None:
    """`show` prints cluster, model, groups, memory per stage and the schedule."""
    code, out, err = trainsim("show", small)
    assert (code, err) == (0, "")
    for word in ("GPUs", "124,4", "forward FLOPs per token", "tp", "dp", "stage", "rank 0", "F0"):
        assert word in out


def test_schema_is_a_json_schema(trainsim: Run) -> None:
    """`schema` names every section of the scenario file."""
    code, out, _ = trainsim("schema")
    schema = json.loads(out)
    assert code == 0
    assert {"cluster", "model", "parallelism", "training", "reliability", "expected"} <= set(schema["properties"])


def test_output_goes_to_a_new_file(trainsim: Run, small: Path, tmp_path: Path) -> None:
    """`--output` writes the same text to a file."""
    target = tmp_path / "result.json"
    _, printed, _ = trainsim("run", small, "--json")
    code, out, _ = trainsim("run", small, "--json", "--output", target)
    assert (code, out) == (0, "")
    assert target.read_text(encoding="utf-8") == printed


def test_help_imports_no_simulation() -> None:
    """`--help` stays quick: none of the heavy libraries is imported for it."""
    code = """
import sys
sys.argv = ["trainsim", "--help"]
import simulator.cli
try:
    simulator.cli.main()
except SystemExit:
    pass
print([name for name in ("numpy", "networkx", "simpy", "pydantic", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


# --- bad input: one clear message, exit code 2, nothing written --------------------------------------------------

BAD: list[tuple[str, str, str, list[str]]] = [
    ("unknown key", "training:", "training:\n  micro_batch: 1", ["micro_batch", "did you mean 'micro_batch_size'"]),
    ("bare number", "bandwidth: 300 GB/s", "bandwidth: 300", ["scale_up.bandwidth", "300", "unit"]),
    ("wrong unit", "bandwidth: 200 Gbps", "bandwidth: 200 ms", ["nic.bandwidth", "ms", "time"]),
    ("negative value", "global_batch_size: 16", "global_batch_size: -16", ["training.global_batch_size", "-16"]),
    ("negative quantity", "tokens: 10e9 tokens", "tokens: -10e9 tokens", ["training.tokens", "-10e9"]),
    ("nan", "efficiency: 0.8", "efficiency: .nan", ["efficiency"]),
    ("nan as a word", "efficiency: 0.8", "efficiency: nan", ["efficiency", "nan"]),
    ("heads by tp", "tp: 4, pp: 2, dp: 2", "tp: 8, pp: 2, dp: 1", ["num_attention_heads 12", "tp 8"]),
    ("too many GPUs", "dp: 2}", "dp: 16}", ["128 GPUs", "16"]),
    ("degree not whole", "tp: 4, pp: 2, dp: 2", "tp: 3, pp: 1", ["tp 3", "does not divide 16"]),
    ("unknown model", "model: gpt2", "model: gpt22", ["gpt22", "did you mean 'gpt2'"]),
    ("unknown accelerator", "accelerator: a100-80gb", "accelerator: a100-81gb", ["a100-81gb", "did you mean"]),
    ("unknown stack", "training:", "training:\n  stack: megatron-core", ["megatron-core", "known"]),
    ("unknown figure", "  mfu: {", "  mffu: {", ["mffu", "did you mean 'mfu'"]),
    ("bare number expected", "  mfu: {at_most: 1.0", "  step_time_s: {value: 1.0", ["step_time_s", "unit"]),
    ("unknown topology", "kind: rail_clos", "kind: rail_clod", ["rail_clod", "did you mean 'rail_clos'"]),
    ("interval too short", "interval: 10 min", "interval: 1 ms", ["interval"]),
    ("too many actions", "global_batch_size: 16", "global_batch_size: 16000000", ["actions", "at most"]),
    ("too many nodes", "nodes: 2\n    gpus_per_node: 8", "nodes: 2\n    gpus_per_node: 8000000", ["GPUs", "at most"]),
    ("duplicate key", "seed: 3", "seed: 3\nseed: 4", ["seed", "line"]),
    ("unknown cluster", "cluster:\n  name: two boxes", "cluster: nowhere\nx:\n  name: two boxes", ["nowhere"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_one_clear_message(
    trainsim: Run, small: Path, tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    """Each mistake names what is wrong, exits with 2 and writes nothing."""
    target = tmp_path / "never.json"
    code, out, err = trainsim("run", changed(small, old, new), "--json", "--output", target)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such file"]),
        (b"", ["empty"]),
        (b"a: [1, 2", [":1:", "not YAML"]),
        (b"- 1\n- 2\n", ["mapping"]),
        (b"\xff\xfe\x00", ["UTF-8"]),
    ],
    ids=["missing", "empty", "not YAML", "no mapping", "not text"],
)
def test_bad_files(trainsim: Run, tmp_path: Path, content: bytes | None, words: list[str]) -> None:
    """A file that is no scenario at all is refused by name."""
    path = tmp_path / "scenario.yaml"
    if content is not None:
        path.write_bytes(content)
    code, out, err = trainsim("run", path)
    assert (code, out) == (2, "")
    assert "scenario.yaml" in err
    for word in words:
        assert word in err


def test_errors_name_file_and_line(trainsim: Run, small: Path) -> None:
    """The message points at the line."""
    code, _, err = trainsim("run", changed(small, "seed: 3", "seed: -3"))
    line = small.read_text(encoding="utf-8").split("\n").index("seed: -3") + 1
    assert code == 2
    assert f"small.yaml:{line}: seed" in err


def test_a_model_that_does_not_fit(trainsim: Run, small: Path) -> None:
    """Needed, available and the three largest parts; with `enforce: false` it is a warning."""
    big = changed(small, "model: gpt2", "model: gpt3-175b")
    code, _, err = trainsim("run", big, "--set", "parallelism.tp=8", "--set", "parallelism.dp=1")
    assert code == 2
    assert "needs" in err
    assert err.count(" GB") >= 5
    lenient = changed(big, "seed: 3", "seed: 3\nmemory: {enforce: false}")
    code, out, _ = trainsim("run", lenient, "--set", "parallelism.tp=8", "--set", "parallelism.dp=1", "--json")
    assert code == 0
    assert any("needs" in warning for warning in json.loads(out)["warnings"])


def test_no_route_between_two_gpus(trainsim: Run, small: Path) -> None:
    """Boxes without a fabric cannot run a job that spans them: the message names two GPUs."""
    text = small.read_text(encoding="utf-8")
    start, end = text.index("  topology:"), text.index("  storage:")
    boxes = "  topology: {kind: nvlink_box, nodes: 2, gpus_per_node: 8, scale_up: {bandwidth: 300 GB/s}}\n"
    small.write_text(text[:start] + boxes + text[end:], encoding="utf-8")
    code, _, err = trainsim("run", small)
    assert code == 2
    assert "no route from gpu" in err


@pytest.mark.parametrize("setting", ["parallelism.tpp=2", "paralelism.tp=2", "nonsense", "cluster.topology.nodez=3"])
def test_set_of_an_unknown_field(trainsim: Run, small: Path, setting: str) -> None:
    """A field that does not exist cannot be set."""
    code, out, err = trainsim("run", small, "--set", setting)
    assert (code, out) == (2, "")
    assert "--set" in err


def test_an_existing_output_file_is_not_overwritten(trainsim: Run, small: Path, tmp_path: Path) -> None:
    """The user's file stays as it was."""
    target = tmp_path / "mine.json"
    target.write_text("mine", encoding="utf-8")
    code, _, err = trainsim("run", small, "--json", "--output", target)
    assert code == 2
    assert "not overwritten" in err
    assert target.read_text(encoding="utf-8") == "mine"


def test_a_hopeless_run_says_so(trainsim: Run, small: Path) -> None:
    """A campaign that fails faster than it restarts is refused instead of running for ever."""
    code, _, err = trainsim("run", changed(small, "4 per 1000 node-days", "4000 per node-day"))
    assert code == 2
    assert "would hardly ever end" in err


def test_a_mistake_that_is_found_late_has_its_line(trainsim: Run, small: Path) -> None:
    """How long a save takes is known only behind the step: file, line and field are still named."""
    code, _, err = trainsim(
        "run", changed(small, "interval: 10 min", "interval: 1 steps, mode: async, save_time: 60 s")
    )
    assert code == 2
    assert "yaml:24: reliability.checkpoint.interval: 1 step, with its save" in err


def test_schedule_is_drawn(trainsim: Run) -> None:
    """A row per rank, the bubble beside its theory; JSON says the same."""
    code, out, _ = trainsim("schedule", "1f1b", "--pp", 2, "--microbatches", 2)
    assert code == 0
    assert "bubble          33.3 %  (theory 33.3 %)" in out
    assert "rank 1 |.. F0 B0--- F1 B1--- ....." in out
    code, out, _ = trainsim("schedule", "zb-h1", "--pp", 4, "--microbatches", 8, "--input", 2, "--json")
    assert code == 0
    assert json.loads(out)["bubble_fraction"] == pytest.approx(3 * (1 + 2 - 1) / (8 * 4 + 3 * (1 + 2 - 1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zb-h3", "--pp", 4, "--microbatches", 8), "did you mean 'zb-h2'?"),
        (("interleaved", "--pp", 4, "--microbatches", 8), "needs vpp of 2 or more"),
        (("1f1b", "--pp", 1, "--microbatches", 8), "pp is 1"),
        (("dualpipe", "--pp", 4, "--microbatches", 7), "use 8 microbatches"),
    ],
)
def test_impossible_schedules_are_refused(trainsim: Run, arguments: tuple[object, ...], message: str) -> None:
    """One message with the fix."""
    code, out, err = trainsim("schedule", *arguments)
    assert (code, out) == (2, "")
    assert message in err
