"""Fit the kernel models of an accelerator to timings.

The shipped functions themselves are fitted, on rows as `validate --kernels` predicts them, so that a fitted error is
the error that users see. The loss is the mean of |log(predicted / measured)|, with what exceeds 0.1 weighed 0.3, so
that no outlier owns it; a source of n rows weighs n^(3/4), so that one long table does not drown the others. The search
is a deterministic pattern search: no gradient, no seed. Every fit is repeated without each fifth of its rows and, where
there are several sources of five rows or more, without each source.

Pinned by tests/calibrate/test_calibrate.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import exp
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from simulator.physics.kernels.attention import attention_time
from simulator.scenario.hardware import Accelerator, Attention, Gemm
from simulator.studies.kernel_rows import (
    AttentionRow,
    GemmRow,
    Products,
    attention_prediction,
    gemm_predictions,
    products,
)

FloatArray: TypeAlias = NDArray[np.float64]
Parameters: TypeAlias = dict[str, float]
Predict: TypeAlias = Callable[[Parameters, NDArray[np.int64]], FloatArray]

_FOLDS = 5
# FlashAttention-2 on A100 was published as forward + backward only; its paper gives 73 % and 63 % of peak as the best
# of each (arXiv 2307.08691), which fixes their ratio.
_BACKWARD_RATIO = {"a100-80gb flash1": 63 / 73, "a100-80gb flash2": 63 / 73}


class Search(NamedTuple):
    """A parameter: where its search starts and its bounds."""

    start: float
    low: float
    high: float


class Outcome(NamedTuple):
    """A fit: parameters and the errors |predicted / measured - 1|, in sample and held out."""

    parameters: Parameters
    errors: FloatArray
    folds: FloatArray
    other_sources: FloatArray | None
    sources: list[str]


_GEMM_SEARCH = {
    "efficiency": Search(0.85, 0.3, 0.97),
    "launch": Search(4e-6, 1e-6, 8e-6),
    "k_padding": Search(128, 8, 1024),
    "bandwidth_fraction": Search(0.8, 0.4, 0.95),
    "tile_16384": Search(0.9, 0.3, 1.0),
    "tile_8192": Search(0.85, 0.3, 1.0),
    "tile_4096": Search(0.85, 0.3, 1.0),
    "quantisation": Search(0.7, 0.05, 1.0),
    "throttle": Search(0.05, 0.005, 0.6),
}
_ATTENTION_SEARCH = {
    "forward_efficiency": Search(0.6, 0.1, 1.0),
    "backward_efficiency": Search(0.5, 0.1, 1.0),
    "kv_padding": Search(256, 8, 2048),
    "launch": Search(8e-6, 2e-6, 40e-6),
}
_LAUNCH = 5e-6  # attention whose shortest row is longer than 50 us: too long to tell; between the GEMMs' 2 and 8 us


def gemm_model(base: Gemm, parameters: Mapping[str, float]) -> Gemm:
    """`base` with these parameters."""
    fields = {name: value for name, value in parameters.items() if not name.startswith("tile_")}
    return base.model_copy(update={**fields, "tile_efficiency": tile_efficiency(parameters)})


def tile_efficiency(parameters: Mapping[str, float]) -> dict[int, float]:
    """Efficiency by tile area: each searched parameter is the ratio to the next larger tile."""
    table, value = {32768: 1.0}, 1.0
    for area in (16384, 8192, 4096):
        value *= parameters[f"tile_{area}"]
        table[area] = value
    return table


def predict_gemms(
    acc: Accelerator, dtype: str, rows: Products, parameters: Parameters, which: NDArray[np.int64]
) -> FloatArray:
    """Seconds of some rows."""
    model = gemm_model(next(iter(acc.kernels.gemm.values())), parameters)
    return gemm_predictions(rows.take(which), acc, dtype, model)


def head_dim_efficiency(parameters: Mapping[str, float]) -> dict[int, float]:
    """Efficiency by head size, relative to 128."""
    return {int(name[5:]): value for name, value in parameters.items() if name.startswith("head_")}


def attention_model(parameters: Mapping[str, float], ratio: float | None) -> Attention:
    """The model of these parameters."""
    fields: dict[str, Any] = {name: value for name, value in parameters.items() if not name.startswith("head_")}
    if "backward_efficiency" not in fields:
        fields["backward_efficiency"] = fields["forward_efficiency"] * (63 / 73 if ratio is None else ratio)
    table = head_dim_efficiency(parameters)
    return Attention.model_construct(**{"launch": _LAUNCH, "source": "", **fields, "head_dim_efficiency": table})


def predict_attention(
    acc: Accelerator,
    rows: Sequence[AttentionRow],
    ratio: float | None,
    parameters: Parameters,
    which: NDArray[np.int64],
) -> FloatArray:
    """Seconds of some rows."""
    models = {rows[0].implementation: {rows[0].dtype: attention_model(parameters, ratio)}}
    fitted = acc.model_copy(update={"kernels": acc.kernels.model_copy(update={"attention": models})})
    attention_time.cache_clear()  # accelerators of one name are taken to be equal
    return np.array([attention_prediction(rows[i], fitted) for i in which])


def minimise(loss: Callable[[Parameters], float], search: Mapping[str, Search]) -> Parameters:
    """The better of two pattern searches, one of them from a start with softer waves and more throttling."""
    start = {name: parameter.start for name, parameter in search.items()}
    starts = [start]
    if "throttle" in start:
        starts.append(start | {"quantisation": 0.1, "throttle": 0.3, "k_padding": 16.0, "efficiency": 0.65})
    return min((_descend(loss, search, each) for each in starts), key=loss)


def _descend(loss: Callable[[Parameters], float], search: Mapping[str, Search], best: Parameters) -> Parameters:
    """Pattern search: each parameter up and down by a factor that shrinks when nothing improves."""
    value, step = loss(best), 0.4
    while step > 0.01:
        improved = False
        for name, (_, low, high) in search.items():
            if low == high:
                continue
            for factor in (exp(step), exp(-step)):
                trial = best | {name: min(max(best[name] * factor, low), high)}
                trial_value = loss(trial)
                if trial_value < value - 1e-6:
                    best, value, improved = trial, trial_value, True
        if not improved:
            step /= 2
    return best


def fit(predict: Predict, rows: Sequence[Any], search: Mapping[str, Search]) -> Outcome:
    """Fit all rows, then again without each fifth of them, and without each large source."""
    measured = np.array([row.seconds for row in rows])
    sources = np.array([row.source for row in rows])
    counts: dict[str, int] = defaultdict(int)
    for source in sources:
        counts[source] += 1
    weights = np.array([counts[source] ** -0.25 for source in sources])

    def solve(keep: NDArray[np.int64]) -> Parameters:
        def loss(parameters: Parameters) -> float:
            miss = np.abs(np.log(predict(parameters, keep) / measured[keep]))
            robust = np.where(miss > 0.1, 0.1 + 0.3 * (miss - 0.1), miss)
            return float((weights[keep] * robust).sum() / weights[keep].sum())

        return minimise(loss, search)

    def errors(parameters: Parameters, which: NDArray[np.int64]) -> FloatArray:
        return np.asarray(np.abs(predict(parameters, which) / measured[which] - 1))

    everything = np.arange(len(rows))
    order = np.random.default_rng(0).permutation(len(rows))
    folds = [order[start::_FOLDS] for start in range(min(_FOLDS, len(rows)))]
    large = sorted(source for source, count in counts.items() if count >= 5)

    def held_out(parts: Sequence[NDArray[np.int64]]) -> FloatArray:
        return np.concatenate([errors(solve(np.setdiff1d(everything, part)), part) for part in parts])

    others = [np.flatnonzero(sources == source) for source in large]
    parameters = solve(everything)
    return Outcome(
        parameters, errors(parameters, everything), held_out(folds),
        held_out(others) if len(others) > 1 else None, sorted(counts),
    )  # fmt: skip


def report(outcome: Outcome, ratio: float | None = None) -> dict[str, object]:
    """A fit as the catalogue writes it."""
    fields: dict[str, object] = {}
    for name, value in outcome.parameters.items():
        if name == "launch":
            fields[name] = f"{value * 1e6:.2f} us"
        elif not name.startswith(("tile_", "head_")):
            fields[name] = round(value, 3) if value < 10 else round(value)
    if "tile_4096" in outcome.parameters:
        fields["tile_efficiency"] = {area: round(v, 3) for area, v in tile_efficiency(outcome.parameters).items()}
    else:
        model = attention_model(outcome.parameters, ratio)
        fields["backward_efficiency"] = round(model.backward_efficiency, 3)
        fields["head_dim_efficiency"] = {d: round(v, 3) for d, v in sorted(model.head_dim_efficiency.items())}
        fields.setdefault("launch", f"{_LAUNCH * 1e6:.2f} us")
    errors: dict[str, object] = {
        "rows": len(outcome.errors),
        "median_abs_error": round(float(np.median(outcome.errors)), 3),
        "p90_abs_error": round(float(np.quantile(outcome.errors, 0.9)), 3),
        "cross_validated_error": round(float(np.median(outcome.folds)), 3),
    }
    if outcome.other_sources is not None:
        errors["other_source_error"] = round(float(np.median(outcome.other_sources)), 3)
    return {**fields, "fit": errors, "source": "; ".join(outcome.sources)}


def fit_group(acc: Accelerator, rows: Sequence[Any]) -> dict[str, object]:
    """Fit the rows of one dtype, or implementation and dtype; fields of a `Gemm` or `Attention` of the catalogue."""
    if isinstance(rows[0], GemmRow):
        search = dict(_GEMM_SEARCH)
        if any(row.accumulates for row in rows):
            search["accumulate_fp32_factor"] = Search(1.1, 1.0, 1.5)
        predict = partial(predict_gemms, acc, rows[0].dtype, products(rows, acc))
        return report(fit(predict, rows, search))
    search = dict(_ATTENTION_SEARCH)
    ratio = _BACKWARD_RATIO.get(f"{acc.name} {rows[0].implementation}")
    if ratio is not None or not any("bwd" in row.passes for row in rows):
        del search["backward_efficiency"]
    if min(row.seconds for row in rows) > 50e-6:
        del search["launch"]
    widths = {row.head_dim for row in rows}
    fixed = 128 if 128 in widths else max(widths)
    search |= {
        f"head_{width}": Search(1.0, 1.0, 1.0) if width == fixed else Search(0.9, 0.3, 1.6) for width in sorted(widths)
    }
    return report(fit(partial(predict_attention, acc, rows, ratio), rows, search), ratio)
