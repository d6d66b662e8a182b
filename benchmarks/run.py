"""How fast, and how much memory: cold commands, and the warm step, beside a fixed reference workload of the same run.

Machines differ and are noisy, so every time is also given as a ratio to the reference (a fixed amount of Python and
numpy work, measured in the same run): compare ratios between runs, not seconds. Nothing is asserted.

    python benchmarks/run.py                  prints the table
    python benchmarks/run.py --repeat 5       best of five
    python benchmarks/run.py --output FILE    writes it as Markdown to a new file
"""

from __future__ import annotations

import argparse
import heapq
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

GPT4_102K = [
    "gpt4-a100", "--set", "cluster.topology.nodes=12800", "--set", "parallelism.dp=848",
    "--set", "training.global_batch_size=29680",
]  # fmt: skip
GPT4_1M = [
    "gpt4-a100", "--set", "cluster.topology.nodes=131072", "--set", "parallelism.dp=8720",
    "--set", "training.global_batch_size=305200", "--set", "training.tokens=null", "--set", "reliability=null",
]  # fmt: skip
FAULTS = "conditions=[{kind: slow_gpu, gpu: 17, speed: 0.9}, {kind: slow_nic, node: 900, nic: 3, capacity: 0.5}]"
ONE_MICROBATCH = [
    "parallelism.pp=1", "training.schedule=1f1b", "memory={enforce: false}",
]  # fmt: skip
COLD = {
    "trainsim --help": (["--help"], "0.5 s"),
    "trainsim run megatron-175b-1024": (["run", "megatron-175b-1024"], "2 s"),
    "GPT-4 step, 24,960 GPUs: trainsim run gpt4-a100": (["run", "gpt4-a100"], "3 s, 1 GB"),
    "the same with one slow GPU and one slow NIC": (["run", "gpt4-a100", "--set", FAULTS], "5 s"),
    "GPT-4 step, 101,760 of 102,400 GPUs": (["run", *GPT4_102K], "10 s, 4 GB"),
    "trainsim run mt-nlg-530b-2240": (["run", "mt-nlg-530b-2240"], ""),
    "175B, 1,024 GPUs, --no-fold": (["run", "megatron-175b-1024", "--no-fold"], "30 s"),
    "trainsim show gpt4-a100": (["show", "gpt4-a100"], ""),
}
LARGE = {"GPT-4 step, 1,046,400 of 1,048,576 GPUs": (["run", *GPT4_1M], "90 s, 16 GB (stretch)")}
WARM: dict[str, tuple[str, list[str], bool, str]] = {
    "175B, 1,024 GPUs, interleaved": ("megatron-175b-1024", [], True, "20 ms"),
    "the same, 1f1b": ("megatron-175b-1024", ["training.schedule=1f1b"], True, "20 ms"),
    "the same, 1f1b, --no-skip": ("megatron-175b-1024", ["training.schedule=1f1b"], False, "to be reported"),
    "1T, 3,072 GPUs, pp 64, 512 microbatches": ("megatron-1t-3072", [], True, "0.2 s"),
    "the same, --no-skip": ("megatron-1t-3072", [], False, ""),
    "530B, 2,240 GPUs": ("mt-nlg-530b-2240", [], True, ""),
    "GPT-4, 24,960 GPUs": ("gpt4-a100", [], True, ""),
}
BUILT = {
    f"175B, one microbatch, tp 8, {gpus} GPUs: scenario to result, in process": (
        [*ONE_MICROBATCH, f"job_gpus={gpus}", f"parallelism.dp={gpus // 8}", f"training.global_batch_size={gpus // 8}"],
        target,
    )
    for gpus, target in ((256, "0.5 s"), (1024, "0.7 s"))
}


class Row(NamedTuple):
    """One line of the table."""

    name: str
    seconds: float
    megabytes: float | None
    target: str


def reference() -> float:
    """Seconds of a fixed workload like ours: a heap of Python objects and numpy sorts."""
    start = time.perf_counter()
    heap: list[tuple[float, int]] = []
    for i in range(200_000):
        heapq.heappush(heap, ((i * 7919 % 100_003) / 7.0, i))
    while heap:
        heapq.heappop(heap)
    values = np.arange(2_000_000, dtype=np.float64) * 1e9 % 1_000_003
    for _ in range(3):
        np.sort(values)
    return time.perf_counter() - start


def cold(name: str, arguments: list[str], target: str, repeat: int) -> Row:
    """Wall-clock and peak memory of a whole command in a fresh process."""
    best, peak = float("inf"), 0.0
    for _ in range(repeat):
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "simulator.cli", *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name} failed")
        best = min(best, time.perf_counter() - start)
        peak = max(peak, usage.ru_maxrss / 1e3)
    return Row(name, best, peak, target)


def warm(name: str, work: tuple[str, list[str], bool, str], repeat: int) -> Row:
    """The step alone, its program built: every event simulated after exact skipping, no cached result."""
    from simulator.engine.iteration import simulate_step
    from simulator.physics.program.build import build_program
    from simulator.scenario.scenario import load
    from simulator.studies.simulate import build

    file, overrides, skip, target = work
    scenario = load(file, overrides)
    program = build_program(scenario, build(scenario))
    return Row(f"warm step: {name}", _best(lambda: simulate_step(program, skip=skip), repeat), None, target)


def built(name: str, overrides: list[str], target: str, repeat: int) -> Row:
    """From the scenario file to the step, with nothing built before."""
    from simulator.engine.iteration import simulate_step
    from simulator.physics.program.build import build_program
    from simulator.scenario.scenario import load
    from simulator.studies.simulate import build

    def work() -> None:
        scenario = load("megatron-175b-1024", overrides)
        simulate_step(build_program(scenario, build(scenario)))

    return Row(name, _best(work, repeat), None, target)


def _best(work: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def table(rows: list[Row], unit: float) -> str:
    """The rows as Markdown."""
    lines = [
        f"Reference workload: {unit:.2f} s. Best of the repetitions; `ratio` = seconds / reference.",
        "",
        "| work | seconds | ratio | peak memory | target on two cores |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        memory = "" if row.megabytes is None else f"{row.megabytes:.0f} MB"
        lines.append(f"| {row.name} | {row.seconds:.3f} | {row.seconds / unit:.2f} | {memory} | {row.target} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="also a million GPUs: a minute or two, many gigabytes")
    parser.add_argument("--output", type=Path, help="a Markdown file that does not exist yet")
    arguments = parser.parse_args()
    if arguments.output is not None and arguments.output.exists():
        parser.error(f"{arguments.output} exists already")
    unit = min(reference() for _ in range(arguments.repeat))
    rows = [cold(name, *work, arguments.repeat) for name, work in COLD.items()]
    if arguments.large:
        rows += [cold(name, *work, 1) for name, work in LARGE.items()]
    rows += [built(name, *work, arguments.repeat) for name, work in BUILT.items()]
    rows += [warm(name, work, arguments.repeat) for name, work in WARM.items()]
    text = table(rows, unit)
    print(text, end="")
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
