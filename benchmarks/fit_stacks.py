"""Fit one efficiency per software stack to the calibration rows of the shipped training runs.

`python benchmarks/fit_stacks.py [--write] [STACK ...]` prints, for every stack with calibration rows, the factor that
makes the sum of absolute relative errors least (so that half of the rows are above and half below) and the error that
is left, and with --write puts both into simulator/scenario/catalogue/stacks.yaml. Nothing but calibration rows is
looked at.

A step is close to linear in the time of its kernels, so two simulations of a row give its line; the fit is checked by
simulating once more.
"""

from __future__ import annotations

import re
import sys
from concurrent.futures import ProcessPoolExecutor

from simulator.scenario.stacks import CATALOGUE, read_stacks
from simulator.studies.runs.scenarios import stack_of
from simulator.studies.runs.score import bias, mape
from simulator.studies.runs.table import Row, read_table
from simulator.studies.validate_runs import SHIPPED, predict_batch

_SLOWER = 1.3


def calibration_rows() -> dict[str, list[Row]]:
    """Calibration rows by stack."""
    found: dict[str, list[Row]] = {}
    for row in read_table(SHIPPED):
        if isinstance(row, Row) and row.split == "calibration":
            found.setdefault(stack_of(row)[0].name, []).append(row)
    return found


def _times(name: str, rows: list[Row], slowdown: float, **changes: float) -> list[float | None]:
    stacks = read_stacks()
    changed = {"compute_efficiency": 1 / slowdown, **changes}
    stacks[name] = stacks[name].model_copy(update=changed)
    return [outcome.predicted for outcome in predict_batch(rows)]


def fit(name: str, rows: list[Row], **changes: float) -> tuple[float, float, float, int]:
    """Efficiency, MAPE and bias that are left, and rows that could be simulated.

    Parameters
    ----------
    changes
        Other fields of the stack to try.
    """
    slow = 1.0
    for _ in range(2):
        one, two = _times(name, rows, slow, **changes), _times(name, rows, slow * _SLOWER, **changes)
        lines = []
        for first, second, row in zip(one, two, rows, strict=True):
            if first is not None and second is not None:
                slope = (second - first) / (slow * (_SLOWER - 1))
                lines.append((first - slope * slow, slope, row.step_time))
        candidates = [(time - rest) / slope for rest, slope, time in lines if slope > 0]
        slow = min(candidates, key=lambda x: sum(abs(rest + slope * x - time) / time for rest, slope, time in lines))
        slow = min(max(slow, 0.7), 3.0)
    _times(name, rows, slow, **changes)
    outcomes = predict_batch(rows)
    error, mean = mape(outcomes), bias(outcomes)
    assert error is not None
    assert mean is not None
    return 1 / slow, error, mean, len(lines)


PRIORS = {
    "megatron-deepspeed-2021": "megatron-deepspeed-2022",  # the same layers, pipeline engine and repository
    "megatron-deepspeed-2023": "megatron-2021",  # the same layers, a fork of that Megatron-LM
    "zero-bubble-2023": "megatron-core-no-overlap",
    "megatron-core-2023": "nemo-2024",
    "megatron-core-2024": "nemo-2024",
    "megatron-core-2025": "nemo-2025",
    "nemo-2026": "nemo-2025",
    "mlperf-nemo": "nemo-2025",
    "fsdp-2024": "torchtitan-2024",
    "maxtext": "nemo-2025",
    "deepspeed-zero3": "megatron-deepspeed-2022",
}
"""Stacks without calibration rows take the factor of the one that is nearest by layers and year."""


def _found(name: str) -> tuple[str, tuple[float, float, float, int] | None]:
    try:
        return name, fit(name, calibration_rows()[name])
    except (ValueError, AssertionError, UnboundLocalError):
        return name, None


def write(found: dict[str, tuple[float, float, float, int]]) -> None:
    """Put the factors into the catalogue."""
    text = CATALOGUE.read_text(encoding="utf-8")
    for name, (efficiency, error, mean, rows) in found.items():
        text = _put(text, name, "compute_efficiency", f"{efficiency:.3f}")
        text = _drop(text, name, "prior")
        text = _put(text, name, "fit", f"{{rows: {rows}, mape: {error:.4f}, bias: {mean:.4f}}}")
    for name, nearest in PRIORS.items():
        if name not in found and nearest in found:
            text = _put(text, name, "compute_efficiency", f"{found[nearest][0]:.3f}")
            text = _put(text, name, "prior", nearest)
    CATALOGUE.write_text(text, encoding="utf-8")


def _drop(text: str, name: str, field: str) -> str:
    """Take a field out of an entry."""
    start = text.index(f"- name: {name}\n")
    end = text.find("\n- name: ", start) + 1 or len(text)
    return text[:start] + re.sub(rf"  {field}: .*\n", "", text[start:end]) + text[end:]


def _put(text: str, name: str, field: str, value: str) -> str:
    """Set a field of an entry, before its habits if it is new."""
    start = text.index(f"- name: {name}\n")
    end = text.find("\n- name: ", start) + 1 or len(text)
    entry = text[start:end]
    line = f"  {field}: {value}\n"
    changed, count = re.subn(rf"  {field}: .*\n", line, entry)
    return text[:start] + (changed if count else entry.replace("  habits:", f"{line}  habits:")) + text[end:]


def main() -> None:
    """Fit, print, and with --write put the factors into the catalogue."""
    wanted = [name for name in sys.argv[1:] if not name.startswith("--")]
    found = {}
    with ProcessPoolExecutor(2) as pool:
        for name, result in pool.map(_found, wanted or list(calibration_rows())):
            if result is None:
                print(f"{name}: no calibration row can be simulated", flush=True)
                continue
            found[name] = result
            efficiency, error, mean, rows = result
            print(f"{name}: {efficiency:.3f}, {rows} rows, MAPE {error:.2%}, bias {mean:+.2%}", flush=True)
    if "--write" in sys.argv:
        write(found)


if __name__ == "__main__":
    main()
