"""What a simulation costs against the number of GPUs and against the number of microbatches: a table and two pictures.

The GPT-4 scenario with 2 to 848 replicas in pods of the same make (240 to 101,760 GPUs), and the 175B scenario with 16
to 4,096 microbatches. Each point builds everything anew; seconds are also given over a fixed reference workload of the
same run, because machines are noisy. Folded cost should grow with the graph only, and with microbatches hardly at all.

    python benchmarks/scaling.py --output FOLDER     writes scaling.md, cost-gpus.png and cost-microbatches.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

from run import reference

from simulator.engine.iteration import simulate_step
from simulator.physics.program.build import build_program
from simulator.scenario.scenario import load
from simulator.studies.simulate import build

REPLICAS = (8, 16, 32, 64, 128, 208, 416, 848)
MICROBATCHES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Point(NamedTuple):
    """One simulation: its size, seconds in the graph, the program and the step, and its counted work."""

    size: int
    graph: float
    program: float
    step: float
    rank_classes: int
    events: int


def measure(name: str, overrides: list[str], size: int, *, skip: bool = True) -> Point:
    """Build and simulate once."""
    scenario = load(name, overrides)
    start = time.perf_counter()
    cluster = build(scenario)
    graph = time.perf_counter()
    program = build_program(scenario, cluster)
    built = time.perf_counter()
    result = simulate_step(program, skip=skip)
    done = time.perf_counter()
    return Point(size, graph - start, built - graph, done - built, len(program.rank_counts), result.events)


def by_gpus() -> list[Point]:
    """GPT-4 with more and more replicas."""
    points = []
    for replicas in REPLICAS:
        gpus = 120 * replicas
        nodes = -(-gpus // 8 // 20) * 20
        settings = [f"cluster.topology.nodes={nodes}", f"parallelism.dp={replicas}"]
        settings += [f"training.global_batch_size={35 * replicas}", f"parallelism.ep={min(16, replicas)}"]
        points.append(measure("gpt4-a100", [*settings, "memory={enforce: false}"], gpus))
    return points


def by_microbatches(*, skip: bool) -> list[Point]:
    """175B with more and more microbatches."""
    settings = ["training.schedule=1f1b", "parallelism.dp=16"]
    return [
        measure("megatron-175b-1024", [*settings, f"training.global_batch_size={16 * count}"], count, skip=skip)
        for count in MICROBATCHES
    ]


def table(title: str, points: list[Point], unit: float) -> str:
    """Points as Markdown."""
    lines = [f"| {title} | graph | program | step | together | ratio | rank classes | events |", "|" + "---|" * 8]
    for point in points:
        total = point.graph + point.program + point.step
        seconds = " | ".join(f"{value:.3f} s" for value in (point.graph, point.program, point.step, total))
        lines.append(f"| {point.size:,} | {seconds} | {total / unit:.2f} | {point.rank_classes} | {point.events:,} |")
    return "\n".join(lines) + "\n"


def draw(file: Path, title: str, series: dict[str, tuple[list[int], list[float]]]) -> None:
    """Seconds against size, both logarithmic, with a line of slope one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, (sizes, seconds) in series.items():
        axes.loglog(sizes, seconds, marker="o", label=name)
    sizes, seconds = next(iter(series.values()))
    axes.loglog(sizes, [seconds[-1] * size / sizes[-1] for size in sizes], "k:", linewidth=1, label="in proportion")
    axes.set_xlabel(title)
    axes.set_ylabel("seconds")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="an existing folder")
    folder = parser.parse_args().output
    unit = reference()
    gpus, skipped, whole = by_gpus(), by_microbatches(skip=True), by_microbatches(skip=False)
    text = f"Reference workload: {unit:.2f} s.\n\n" + table("GPUs (GPT-4)", gpus, unit)
    text += "\n" + table("microbatches (175B, 1f1b)", skipped, unit)
    text += "\n" + table("microbatches, --no-skip", whole, unit)
    print(text, end="")
    (folder / "scaling.md").write_text(text, encoding="utf-8")
    sizes = [point.size for point in gpus]
    parts = {name: (sizes, [getattr(point, name) for point in gpus]) for name in ("graph", "program", "step")}
    together = (sizes, [point.graph + point.program + point.step for point in gpus])
    draw(folder / "cost-gpus.png", "GPUs (GPT-4 on a100-25k's make)", {"together": together, **parts})
    steps = {
        "step": ([point.size for point in skipped], [point.step for point in skipped]),
        "step, --no-skip": ([point.size for point in whole], [point.step for point in whole]),
    }
    draw(folder / "cost-microbatches.png", "microbatches (175B, pipeline 8, 1f1b)", steps)


if __name__ == "__main__":
    main()
