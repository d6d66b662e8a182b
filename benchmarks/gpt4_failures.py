"""Which failures and recoveries would give what was rumoured of GPT-4: 32-36 % effective MFU, 90-100 days.

Effective MFU against the failure rate for several recoveries, for the shipped scenario and for healthy steps that the
rumour leaves open, from simulated campaigns. The picture and the table of docs/campaign.md are made here.

    python benchmarks/gpt4_failures.py            prints the tables
    python benchmarks/gpt4_failures.py --write    draws docs/gpt4-failures.png and writes them into docs/campaign.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simulator.engine.campaign import simulate_campaign
from simulator.results.statistics import mean
from simulator.scenario.scenario import Scenario, load
from simulator.studies.phases import PreparedRun, prepare_run
from simulator.studies.simulate import simulate

DOCS = Path(__file__).parents[1] / "docs"
MFU, DAYS = (0.32, 0.36), (90.0, 100.0)
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
RUNS = 4
MEASURED = {"RSC-2": 2.34, "Llama 3": 3.79, "RSC-1": 6.50}
"""Failures per 1,000 node-days (arXiv 2410.21680; 419 in 54 days on 2,048 nodes, arXiv 2407.21783)."""

VARIANTS = {
    "as shipped": (),
    "experts whole (etp 1)": ("parallelism.etp=1",),
    "4 chunks a rank, 30 microbatches": (
        "training.schedule={kind: interleaved, vpp: 4}",
        "training.global_batch_size=6240",
    ),
    "both": (
        "parallelism.etp=1",
        "training.schedule={kind: interleaved, vpp: 4}",
        "training.global_batch_size=6240",
    ),
    "both, 60 microbatches": (
        "parallelism.etp=1",
        "training.schedule={kind: interleaved, vpp: 4}",
        "training.global_batch_size=12480",
    ),
}
"""Healthy steps that fit into 80 GB; the rumour's 35 microbatches do not interleave in 15 stages."""


class Recovery(NamedTuple):
    """From a failure to training again, loading included where it is short, and how saves are written."""

    name: str
    restart: str
    saves: str
    colour: str


RECOVERIES = (
    Recovery("1 h, saves block", "59 min", "sync", "#8c2d04"),
    Recovery("15 min, saves block", "14 min", "sync", "#d94801"),
    Recovery("15 min, saves in the background", "14 min", "async", "#4292c6"),
    Recovery("3 min, saves in the background", "2 min", "async", "#084594"),
)


class Variant(NamedTuple):
    """A healthy step and what becomes of it: effective MFU by recovery and rate [recoveries, rates]."""

    name: str
    mfu: float
    bubble: float
    fits: bool
    days: float
    effective: np.ndarray[tuple[int, int], np.dtype[np.float64]]


def _reliability(overrides: tuple[str, ...], recovery: Recovery, rate: float) -> Scenario:
    failures = (
        f"{{name: hardware, rate: {0.3 * rate} per 1000 node-days, detection: 1 min}}, "
        f"{{name: transient, rate: {0.7 * rate} per 1000 node-days, detection: 1 min, needs_machine: false}}"
    )
    return load(
        "gpt4-a100",
        (
            *overrides,
            "memory.enforce=false",
            f"reliability.failures=[{failures}]",
            f"reliability.restart={recovery.restart}",
            f"reliability.checkpoint={{interval: optimal, mode: {recovery.saves}}}",
        ),
    )


def _effective(run: PreparedRun, scenario: Scenario, healthy: float) -> float:
    plan = run.plan(scenario)
    results = [simulate_campaign(plan, scenario.seed, number) for number in range(RUNS)]
    return mean([healthy * each.time_s["productive"] / each.wall_clock for each in results]).value


def variant(name: str) -> Variant:
    """Simulate one healthy step and its campaigns."""
    overrides = VARIANTS[name]
    alone = simulate(load("gpt4-a100", (*overrides, "memory.enforce=false", "training.tokens=null")))
    healthy = alone.step_figures["mfu"]
    run = prepare_run(load("gpt4-a100", (*overrides, "memory.enforce=false")))
    assert run is not None
    assert run.scenario.steps is not None
    needed = max(stage.total for stage in alone.memory)
    effective = np.array(
        [[_effective(run, _reliability(overrides, how, rate), healthy) for rate in RATES] for how in RECOVERIES]
    )
    return Variant(
        name,
        healthy,
        alone.step_figures["bubble_fraction"],
        needed <= run.scenario.accelerator.memory,
        run.scenario.steps * alone.step_figures["step_time_s"] / 86400,
        effective,
    )


def most_failures(found: Variant, recovery: int, least: float) -> str:
    """Failures per 1,000 node-days up to which so much MFU is left."""
    curve = found.effective[recovery]
    if found.mfu < least:
        return "none"
    if curve[0] < least:
        return f"< {RATES[0]:g}"
    if curve[-1] >= least:
        return f"> {RATES[-1]:g}"
    return f"{np.exp(np.interp(-least, -curve, np.log(RATES))):.1f}"


def table(variants: list[Variant]) -> list[str]:
    """Healthy steps, and the failure rates that leave the rumour standing."""
    lines = [
        "| step | healthy MFU | its bubble | without bubble | days without failures | "
        + " | ".join(f"recovery {how.name}" for how in RECOVERIES)
        + " |",
        "|---" * (5 + len(RECOVERIES)) + "|",
    ]
    for one in variants:
        rates = [" / ".join(most_failures(one, which, least) for least in (MFU[0], least_both(one)))
                 for which in range(len(RECOVERIES))]  # fmt: skip
        lines.append(
            f"| {one.name}{'' if one.fits else ' (does not fit)'} | {one.mfu:.1%} | {one.bubble:.1%} |"
            f" {one.mfu / (1 - one.bubble):.1%} | {one.days:.0f} | " + " | ".join(rates) + " |"
        )
    return lines


def least_both(one: Variant) -> float:
    """Effective MFU that takes 100 days."""
    return one.mfu * one.days / DAYS[1]


def draw(variants: list[Variant], path: Path) -> None:
    """One panel for each step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(variants), figsize=(3.0 * len(variants), 5.0), sharey=True)
    for axis, one in zip(axes, variants, strict=True):
        axis.axhspan(100 * MFU[0], 100 * MFU[1], color="#dddddd", lw=0)
        axis.axhspan(100 * least_both(one), 100 * MFU[1], color="#bbbbbb", lw=0)
        axis.axhline(100 * one.mfu, color="black", lw=1)
        axis.axhline(100 * one.mfu / (1 - one.bubble), color="black", lw=1, ls=":")
        for how, curve in zip(RECOVERIES, one.effective, strict=True):
            axis.plot(RATES, 100 * curve, color=how.colour, label=how.name, lw=1.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES], fontsize=8)
        axis.set_title(one.name.replace(", ", ",\n"), fontsize=9)
        axis.set_xlabel("failures per 1,000 node-days", fontsize=8)
        axis.set_ylim(0, 50)
        for rate in MEASURED.values():
            axis.axvline(rate, color="#999999", lw=0.6, ls=(0, (2, 3)), zorder=0)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("MFU, %")
    axes[0].text(RATES[0], 100 * variants[0].mfu + 0.7, "healthy", fontsize=8)
    axes[0].text(RATES[0], 100 * variants[0].mfu / (1 - variants[0].bubble) + 0.7, "healthy, no bubble", fontsize=8)
    axes[0].text(RATES[-1], 35.4, "100 d or less", fontsize=7, ha="right", va="center")
    axes[0].text(RATES[-1], 33.2, "rumour: 32–36 %", fontsize=7, ha="right", va="center")
    for name, rate in MEASURED.items():
        axes[0].text(rate, 49.5, name, fontsize=7, rotation=90, ha="right", va="top", color="#666666")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8, frameon=False, title="recovery")
    figure.suptitle("GPT-4 on 24,960 A100: effective MFU by failure rate and recovery", fontsize=11)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    path.unlink(missing_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    variants = [variant(name) for name in VARIANTS]
    lines = table(variants)
    print("\n".join(lines))
    for one in variants:
        print(one.name, np.round(100 * one.effective, 1).tolist())
    if options.write:
        from evidence import write

        draw(variants, DOCS / "gpt4-failures.png")
        write({"gpt-4": lines}, "benchmarks/gpt4_failures.py")


if __name__ == "__main__":
    main()
