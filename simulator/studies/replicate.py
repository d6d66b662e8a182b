"""The same run many times over, with other failures each time: what can be promised, and how sure that is.

Replication r of a scenario draws its failures from (seed, r, class): scenarios that are replicated together meet the
same failures, so that their differences are known better than either is. Replications run in other processes and are
counted in order, so that how many processes there are changes nothing; with a precision they stop at the first
multiple of `BLOCK` at which it is reached. Only figures are kept, a few dozen numbers a replication.

Pinned by tests/studies/test_replicate.py.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace

from simulator.engine.campaign import simulate_campaign
from simulator.errors import ScenarioError
from simulator.physics.campaign.plan import CampaignPlan, StepTimes
from simulator.results.campaign import Fleet, campaign_figures, fleet_of
from simulator.results.replications import Replications, Row, reached_precision, row_of
from simulator.scenario.scenario import Scenario, load, located
from simulator.studies.compare import naming, short_names
from simulator.studies.phases import prepare_run
from simulator.studies.simulate import choose_plan, fit_or_refuse, plan_memory

RUNS = 200
MOST_RUNS = 10_000
"""Replications where none are asked for: without a precision, and at most with one."""
BLOCK = 20
"""Replications between two looks at the precision; the first look is at the second block."""

# Assumption: answers to Ctrl-C and the progress bar are late by this much at most, and sending a piece of work to
# another process (under a millisecond) costs nothing beside it.
_CHUNK: float = 0.3
# Starting processes takes a second or two: less work than that is done here.
_WORTH_PROCESSES: float = 3.0
_PATIENCE: float = 1.0

Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Run:
    """A campaign that can be sent to another process: what is run, on what, and how long its steps take."""

    name: str
    plan: CampaignPlan
    fleet: Fleet
    step_times: StepTimes | None = None


# --- one replication -------------------------------------------------------------------------------------------------


def replication(runs: Sequence[Run], seed: int, number: int) -> tuple[Row, ...]:
    """Figures of one replication of every run, with the same random numbers."""
    return tuple(_row(run, seed, number) for run in runs)


def _row(run: Run, seed: int, number: int) -> Row:
    result = simulate_campaign(run.plan, seed, number, step_times=run.step_times)
    return row_of(campaign_figures(run.fleet, run.plan, result))


_here: tuple[Sequence[Run], int] = ((), 0)


def _prepare(runs: Sequence[Run], seed: int) -> None:
    """Once in each process: what to run."""
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that was asked
    _here = runs, seed


def _chunk(numbers: range) -> list[tuple[Row, ...]]:
    runs, seed = _here
    return [replication(runs, seed, number) for number in numbers]


# --- many ------------------------------------------------------------------------------------------------------------


def _replications(
    runs: Sequence[Run], seed: int, number: int, jobs: int, patience: float
) -> Generator[tuple[Row, ...], None, None]:
    """Replications in order: here, until what is left is worth other processes and `patience` seconds have passed."""
    each, passed = math.inf, 0.0
    for position in range(number):
        # the first replication may simulate steps that are remembered from then on
        if position > 1 and jobs > 1 and passed >= patience and each * (number - position) >= _WORTH_PROCESSES:
            size = max(1, min(64, round(_CHUNK / max(each, 1e-4))))
            yield from _elsewhere(runs, seed, range(position, number), jobs, size)
            return
        began = time.perf_counter()
        row = replication(runs, seed, position)
        took = time.perf_counter() - began
        each, passed = min(each, took), passed + took
        yield row


def _elsewhere(
    runs: Sequence[Run], seed: int, numbers: range, jobs: int, size: int
) -> Generator[tuple[Row, ...], None, None]:
    """Replications of other processes, in order. However this ends, they end too."""
    waiting = deque(numbers[start : start + size] for start in range(0, len(numbers), size))
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_prepare, initargs=(tuple(runs), seed))
    running: deque[Future[list[tuple[Row, ...]]]] = deque()
    finished = False
    try:
        while waiting or running:
            while waiting and len(running) < 2 * jobs + 2:
                with _no_interrupt():
                    running.append(pool.submit(_chunk, waiting.popleft()))
            yield from running.popleft().result()
        finished = True
    except BrokenProcessPool:
        raise ScenarioError(
            "a process that replicated was ended from outside, out of memory perhaps; use fewer", field="--jobs"
        ) from None
    finally:
        if not finished:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Let processes that start here be deaf to Ctrl-C from their first instruction; it is heard afterwards."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def replicate(
    runs: Sequence[Run],
    seed: int,
    *,
    number: int | None = None,
    precision: float | None = None,
    jobs: int | None = None,
    tell: Tell | None = None,
) -> Replications:
    """Replicate one run or several with the same random numbers.

    Parameters
    ----------
    runs
        What to replicate.
    number
        Replications, at most those with a precision; left out, 200 without a precision and 10,000 with one.
    precision
        Stop when the confidence interval of the mean wall-clock of every run reaches no further than this share of
        it to either side.
    jobs
        Processes; as many as processors if left out.
    tell
        Called with what is done and how much of it. A KeyboardInterrupt, from there or from the terminal, ends the
        replications; those that were finished are reported.

    Raises
    ------
    ScenarioError
        Numbers out of range, or a run that would hardly ever end.
    """
    asked = (RUNS if precision is None else MOST_RUNS) if number is None else number
    _check(asked, precision, jobs)
    tell = tell or (lambda _what, _fraction: None)
    rows: list[tuple[Row, ...]] = []
    stopped, expected = "number", float(asked)
    # with a precision, the number is only the most that there may be
    source = _replications(runs, seed, asked, jobs or os.cpu_count() or 1, 0.0 if precision is None else _PATIENCE)
    collecting = gc.isenabled()
    gc.freeze()  # what is there stays (a cluster graph is large); what a replication leaves behind does not
    gc.enable()
    try:
        for row in source:
            rows.append(row)
            if precision is not None and _is_look(len(rows)):
                reached = reached_precision(rows) or 0.0
                if reached <= precision:
                    stopped = "precision"
                    break
                expected = min(asked, len(rows) * (reached / precision) ** 2)
            tell("replications", len(rows) / max(expected, len(rows)))
    except KeyboardInterrupt:
        if not rows:
            raise
        stopped = "interrupted"
    finally:
        source.close()
        gc.unfreeze()
        if not collecting:
            gc.disable()
    return Replications(tuple(run.name for run in runs), seed, asked, precision, stopped, tuple(rows))


def _check(number: int, precision: float | None, jobs: int | None) -> None:
    if number < 1:
        raise ScenarioError(f"{number} replications are none; ask for 1 or more", field="--runs")
    if jobs is not None and jobs < 1:
        raise ScenarioError(f"{jobs} processes do nothing; use 1 or more", field="--jobs")
    if precision is not None and not 0 < precision < 1:
        raise ScenarioError(
            f"a precision of {precision:g} is not between 0 and 1; an example: 0.5%", field="--precision"
        )


def read_precision(text: str) -> float:
    """A share written as ``0.5%`` or ``0.005``.

    Raises
    ------
    ScenarioError
        It is neither.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ScenarioError(f"{text!r} is no precision between 0 and 1; examples: 0.5%, 0.005", field="--precision")
    return value


def _is_look(done: int) -> bool:
    return done >= 2 * BLOCK and done % BLOCK == 0


# --- from scenarios --------------------------------------------------------------------------------------------------


def run_of(name: str, scenario: Scenario, tell: Tell | None = None) -> Run:
    """A scenario's campaign, its steps simulated, so that it can be replicated anywhere.

    Raises
    ------
    ScenarioError
        There is no run: the scenario does not say how many tokens to train on.
    """
    fit_or_refuse(scenario, plan_memory(scenario))
    prepared = prepare_run(scenario, progress=None if tell is None else lambda fraction: tell("steps", fraction))
    if prepared is None:
        raise ScenarioError(
            "there is no run to replicate without its length; write how much to train on, for example"
            " tokens: 1e12 tokens",
            field="training.tokens",
        )
    plan = choose_plan(prepared, None if tell is None else lambda fraction: tell("interval", fraction))
    return Run(name, plan, fleet_of(scenario, plan), prepared.step_times)


def replicate_scenarios(
    names: Sequence[str],
    overrides: Iterable[str] = (),
    *,
    number: int | None = None,
    precision: float | None = None,
    jobs: int | None = None,
    tell: Tell | None = None,
) -> Replications:
    """Replicate scenarios, all with the seed of the first; the other parameters as for `replicate`.

    Parameters
    ----------
    names
        Scenario files or shipped names.
    overrides
        Fields to set in all of them.

    Raises
    ------
    ScenarioError
        One of them is wrong, or has no run.
    """
    overrides = tuple(overrides)
    _check(1 if number is None else number, precision, jobs)
    scenarios, runs = [], []
    for name in names:
        with naming(name):
            scenarios.append(load(name, overrides))
    called = tuple(scenario.name for scenario in scenarios)
    called = called if len(set(called)) == len(called) else short_names(names)
    for name, short, scenario in zip(names, called, scenarios, strict=True):
        with naming(name), located(name, overrides):
            runs.append(run_of(short, scenario, tell))
    found = replicate(runs, scenarios[0].seed, number=number, precision=precision, jobs=jobs, tell=tell)
    return replace(found, scenarios=tuple(scenario.resolved() for scenario in scenarios))
