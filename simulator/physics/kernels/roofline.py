"""The bound of every kernel, and whose measurements a dtype borrows.

Pinned by tests/physics/test_kernels.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from simulator.errors import ScenarioError
from simulator.scenario.hardware import Accelerator, Dtype
from simulator.scenario.units import Bytes, Flop, FlopPerSecond, Seconds

_Model = TypeVar("_Model")

ITEM_SIZE = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "fp4": 0.5, "int8": 1}

# Whose efficiencies a dtype borrows when its own kernels were not measured. fp16 and bf16 run on the same units
# at the same rate; for the others this is an assumption.
_NEIGHBOURS = {
    "fp16": ("fp16", "bf16"),
    "bf16": ("bf16", "fp16"),
    "fp8": ("fp8", "bf16", "fp16"),
    "int8": ("int8", "fp8", "bf16", "fp16"),
    "fp4": ("fp4", "fp8", "bf16", "fp16"),
    "tf32": ("tf32", "bf16", "fp16"),
    "fp32": ("fp32", "bf16", "fp16"),
}


def speed_of_light(acc: Accelerator, dtype: str, flops: Flop, size_bytes: Bytes) -> Seconds:
    """Least time on the roofline: max(flops / dense peak, bytes / memory bandwidth).

    Raises
    ------
    ScenarioError
        If the accelerator has no peak for `dtype`.

    Notes
    -----
    Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009.
    """
    return max(flops / peak_flops(acc, dtype), size_bytes / acc.memory_bandwidth)


def peak_flops(acc: Accelerator, dtype: str) -> FlopPerSecond:
    """Dense peak.

    Raises
    ------
    ScenarioError
        If the accelerator has no peak for `dtype`.
    """
    for name, peak in acc.peak_flops.items():
        if name == dtype:
            return peak
    raise ScenarioError(f"{acc.name} has no peak for {dtype!r}; allowed: {', '.join(acc.peak_flops)}")


def nearest(models: Mapping[Dtype, _Model], dtype: str) -> _Model:
    """The model of the dtype, or of the one that it borrows from."""
    known: dict[str, _Model] = {name: model for name, model in models.items()}
    return next((known[name] for name in _NEIGHBOURS[dtype] if name in known), next(iter(known.values())))
