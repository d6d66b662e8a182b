"""From measurements to an entry of the accelerator catalogue.

The entry starts from a known accelerator (`like`), whose datasheet figures and unmeasured kernels it keeps, and
replaces what was measured by fits to it. It is a file of its own, which `find_accelerator` takes by its path; a cluster
names it under `accelerator`, or takes its fields, with a `name`, inline.

Pinned by tests/calibrate/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simulator.calibrate.fitting import fit_group
from simulator.calibrate.measuring import Measurements, Stream
from simulator.errors import ScenarioError
from simulator.scenario.hardware import Accelerator

_SOURCE = "measured on this machine by trainsim calibrate"


def fit_stream(streams: Sequence[Stream], bandwidth: float) -> tuple[float, float]:
    """Launch in seconds and share of the bandwidth of timings launch + bytes / (share x bandwidth).

    The largest give the share, the smallest what is left: a least-squares line would let the largest own both.
    """
    largest = max(streams, key=lambda each: each.size)
    smallest = min(streams, key=lambda each: each.size)
    if largest.size == smallest.size:
        return 0.0, min(1.0, largest.size / (largest.seconds * bandwidth))
    slope = (largest.seconds - smallest.seconds) / (largest.size - smallest.size)
    share = 1.0 if slope <= 0 else min(1.0, 1 / (slope * bandwidth))
    return max(0.0, smallest.seconds - smallest.size / (share * bandwidth)), share


def make_entry(measured: Measurements, like: Accelerator, name: str) -> dict[str, Any]:
    """The catalogue file of a measured accelerator, as plain values."""
    fields = {key: value for key, value in like.model_dump(mode="json").items() if value is not None}
    kernels = fields["kernels"]
    dtype = measured.gemms[0].dtype
    accumulate = next(iter(like.kernels.gemm.values())).accumulate_fp32_factor
    gemm = fit_group(like, measured.gemms)
    kernels["gemm"][dtype] = {"accumulate_fp32_factor": accumulate, **gemm, "source": _SOURCE}
    attention = {**fit_group(like, measured.attention), "source": _SOURCE}
    kernels["attention"][measured.attention[0].implementation] = {dtype: attention}
    kernels["default_attention"] = measured.attention[0].implementation
    by_kind: dict[str, list[Stream]] = {}
    for stream in measured.streams:
        by_kind.setdefault(stream.kind, []).append(stream)
    launch, share = fit_stream(by_kind["elementwise"], like.memory_bandwidth)
    kernels |= {"memory_bandwidth_fraction": round(share, 3), "memory_launch": f"{launch * 1e6:.2f} us"}
    shares = {kind: round(fit_stream(timed, like.memory_bandwidth)[1], 3) for kind, timed in by_kind.items()}
    kernels |= {"memory_kinds": {kind: each for kind, each in shares.items() if kind != "elementwise"}}
    kernels["memory_source"] = _SOURCE
    fields |= {"aliases": [], "like": like.like or like.name, "source": f"{like.source}; kernels {_SOURCE}"}
    del fields["name"]
    document: dict[str, Any] = {"accelerators": {name: fields}}
    Accelerator.model_validate({"name": name, **fields})
    if measured.collectives:
        document["collectives"] = [each._asdict() for each in measured.collectives]
    return document


def write_entry(document: dict[str, Any], path: Path) -> None:
    """Write a catalogue file.

    Raises
    ------
    ScenarioError
        When there is a file of that name.
    """
    if path.exists():
        raise ScenarioError("exists already and is not overwritten; remove it or choose another name", file=str(path))
    path.write_text(yaml.safe_dump(_plain(document), sort_keys=False, width=120), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value
