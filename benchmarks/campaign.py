"""How fast campaigns are: CPU seconds a replication, beside a fixed reference workload of the same run.

Machines differ and are noisy, so every time is CPU time, the best of several, and also given as a ratio to the
reference (a fixed amount of Python and numpy work, measured in the same run): compare ratios between runs, not
seconds. Nothing is asserted. The plans are written out here: no step is simulated, degraded steps come from a formula.

    python benchmarks/campaign.py                  prints the table
    python benchmarks/campaign.py --repeat 20      best of twenty
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from simulator.engine.campaign import simulate_campaign
from simulator.physics.campaign.plan import (
    CampaignPlan,
    Duration,
    Hazard,
    JobFailure,
    Lemons,
    Pause,
    Phase,
    Pool,
    Shop,
    SlowSource,
    State,
    StepTimes,
    Tier,
)

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

# Interruptions of Llama 3 405B in 54 days (arXiv 2407.21783, Table 5): name, count, whether a machine is replaced.
LLAMA_3 = (
    ("faulty gpu", 148, 1.0), ("hbm3", 72, 1.0), ("software bug", 54, 0.0), ("switch or cable", 35, 0.0),
    ("host maintenance", 32, 1.0), ("gpu sram", 19, 1.0), ("gpu system processor", 17, 1.0), ("nic", 7, 1.0),
    ("nccl watchdog", 7, 0.0), ("silent data corruption", 6, 1.0), ("gpu sensor", 6, 1.0), ("ssd", 3, 1.0),
    ("power supply", 3, 1.0), ("chassis", 2, 1.0), ("io board", 2, 1.0), ("dependency", 2, 0.0), ("cpu", 2, 1.0),
    ("system memory", 2, 1.0),
)  # fmt: skip


class Case(NamedTuple):
    """One line of the table."""

    name: str
    plan: CampaignPlan
    step_times: StepTimes | None
    target: str


def llama_3(name: str = "llama-3") -> CampaignPlan:
    """54 days on 2,048 nodes: 18 classes, planned stops, asynchronous saves every 10 min."""
    failures = tuple(
        JobFailure(
            cause,
            Hazard("poisson", rate=count / (54 * DAY)),
            effect="silent" if cause == "silent data corruption" else "crash",
            detection=Duration(2 * HOUR) if cause == "silent data corruption" else Duration(30.0),
            diagnosis=Duration(5 * MINUTE, 0.5),
            machine_share=share,
        )
        for cause, count, share in LLAMA_3
    )
    steps = int(50 * DAY / 6.0)
    return CampaignPlan(
        phases=(Phase(name, steps, 6.0, 1.0, (Tier("storage", 100, None, 0.6, 51.0, 130.0),)),),
        machines=2048,
        failures=failures,
        pauses=(Pause("maintenance", "planned", Hazard("poisson", rate=47 / (54 * DAY)), Duration(HOUR)),),
        restart=Duration(6 * MINUTE),
        hot=Pool(256, Duration(0.0)),
        shop=Shop(Duration(2 * HOUR, 1.0), 0.2, Duration(2 * DAY, 1.0)),
    )


def llama_3_slow() -> CampaignPlan:
    """The same with 0.5 % fail-slow nodes, more of them over time, and 20 link flaps a day."""
    plan = llama_3()
    slow = SlowSource(
        "slow hosts", "slow_node", (512, 512, 512, 512), 0.005, Hazard("poisson", rate=1 / DAY), (5, 15), None,
        Duration(DAY, 1.0), True,
    )  # fmt: skip
    flaps = JobFailure(
        "link flap", Hazard("poisson", rate=20 / DAY), effect="pause", detection=Duration(10.0, 1.0), machine_share=0.0
    )
    return replace(plan, slow=(slow,), failures=(*plan.failures, flaps), diurnal=(0.015, DAY))


def slow_times() -> StepTimes:
    """The slowest component decides, remembered by state."""
    known: dict[tuple[int, State], float] = {}

    def step_time(phase: int, state: State) -> float:
        key = (phase, state)
        if key not in known:
            known[key] = 6.0 * (1 + max((severity for _, _, severity in state), default=0) / 100)
        return known[key]

    return step_time


def gpt_4() -> CampaignPlan:
    """95 days of training on 3,120 nodes that take 168: about 2,000 failures."""
    classes = (("gpu", 0.5, 1.0), ("node", 0.2, 1.0), ("network", 0.15, 0.0), ("software", 0.15, 0.0))
    rate = 2000 / (168 * DAY)
    failures = tuple(
        JobFailure(
            name, Hazard("poisson", rate=rate * share), detection=Duration(10 * MINUTE),
            diagnosis=Duration(10 * MINUTE), machine_share=machines,
        )
        for name, share, machines in classes
    )  # fmt: skip
    return CampaignPlan(
        phases=(Phase("gpt-4", int(95 * DAY / 25.0), 25.0, 1.0, (Tier("storage", 60, None, 60.0, 0.0, 120.0),)),),
        machines=3120,
        failures=failures,
        restart=Duration(15 * MINUTE),
        hot=Pool(64, Duration(0.0)),
        shop=Shop(Duration(2 * HOUR, 1.0), 0.5, Duration(2 * DAY, 1.0)),
    )


def airesim() -> CampaignPlan:
    """AIReSim's default (arXiv 2603.07041): 4,096 servers, 256 days of compute, 15 % bad servers, no lost work.

    A server fails 0.01 times a day, a bad one 0.06 times. Lost work off: steps of 1 s, saved after each at no cost.
    """
    good = 0.01 * 4096 / DAY
    extra = 0.05 * 0.15 * 4096 / DAY
    failure = JobFailure("server", Hazard("poisson", rate=good + extra), lemon_share=extra / (good + extra))
    return CampaignPlan(
        phases=(Phase("airesim", int(256 * DAY), 1.0, 1.0, (Tier("storage", 1, None, 0.0, 0.0, 0.0),)),),
        machines=4096,
        failures=(failure,),
        restart=Duration(20 * MINUTE),
        failures_during_restart=False,
        hot=Pool(16, Duration(0.0)),
        warm=Pool(48, Duration(3 * MINUTE)),
        preempted=Pool(200, Duration(20 * MINUTE)),
        shop=Shop(Duration(2 * HOUR), 0.8, Duration(2 * DAY), 0.4, 0.2),
        lemons=Lemons(0.15, 6.0),
    )


def cases() -> tuple[Case, ...]:
    """The four campaigns that have a target."""
    return (
        Case("Llama 3, 54 days, 16,384 GPUs, 18 classes", llama_3(), None, "0.02 s"),
        Case("the same, slow hosts, flaps, diurnal swing", llama_3_slow(), slow_times(), "0.1 s"),
        Case("GPT-4, 168 days, 2,000 failures", gpt_4(), None, "0.06 s"),
        Case("AIReSim's default, 411 days, 11,146 failures", airesim(), None, "0.05 s"),
    )


def reference() -> float:
    """CPU seconds of a fixed workload like ours: a heap of Python objects and numpy sorts."""
    start = time.process_time()
    heap: list[tuple[float, int]] = []
    for i in range(200_000):
        heapq.heappush(heap, ((i * 7919 % 100_003) / 7.0, i))
    while heap:
        heapq.heappop(heap)
    values = np.arange(2_000_000, dtype=np.float64) * 1e9 % 1_000_003
    for _ in range(3):
        np.sort(values)
    return time.process_time() - start


def best(work: Callable[[int], object], repeat: int) -> float:
    """CPU seconds of the quickest of several replications."""
    times = []
    for replication in range(repeat):
        start = time.process_time()
        work(replication)
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=10)
    repeat = parser.parse_args().repeat
    fixed = min(reference() for _ in range(3))
    print(f"reference workload: {fixed:.3f} CPU s\n")
    print("| campaign | failures | CPU s a replication | ratio | us a failure | target |")
    print("|---|---|---|---|---|---|")
    for name, plan, step_times, target in cases():
        seconds = best(lambda number: simulate_campaign(plan, 0, number, step_times=step_times), repeat)  # noqa: B023
        failures = sum(simulate_campaign(plan, 0, 0, step_times=step_times).failures.values())
        each = seconds / failures * 1e6
        print(f"| {name} | {failures:,} | {seconds:.4f} | {seconds / fixed:.4f} | {each:.1f} | {target} |")


if __name__ == "__main__":
    main()
