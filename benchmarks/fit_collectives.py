"""Fit the collectives of the catalogue to published timings.

    python benchmarks/fit_collectives.py [--write] [--no-cross-validation] [--table] [--plot FILE.png]

fits one set of numbers per architecture (simulator/physics/collectives/tuning.py) and one floor per harness to the rows
of simulator/validation/collectives.csv, leaving out faults that their sources report (PATHOLOGICAL) and values read off
charts; prints the errors per platform and operation, in sample and with each source left out in turn; `--write` puts
it all into simulator/scenario/catalogue/collectives.yaml.

It fits the shipped functions themselves, so that a fitted error is the error that users see. Parameters move in
logarithms from a prior with a stated width; a source of n rows weighs sqrt(n), and the loss of a residual flattens
(Cauchy) beyond 15 %, so that no table and no outlier owns the result. Needs scipy, which the package does not.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.errors import LayoutError
from simulator.physics.collectives.plans import busbw_factor, solo_time
from simulator.physics.collectives.tuning import CATALOGUE, Tuning
from simulator.studies.collective_rows import SHIPPED, Row, plans_of, read_rows, with_floor

FloatArray = NDArray[np.float64]

ARCHITECTURES = {
    "ampere": ("A100",),
    "hopper": ("H100", "H200", "H20"),
    "blackwell": ("B200", "GB200", "B300", "GB300"),
}
HARNESSES = ("nccl-tests", "torch")


class Prior(NamedTuple):
    """Where a parameter starts, and how far from there (a factor e^width) it costs as much as one bad row."""

    value: float
    width: float


PRIORS: dict[str, Prior] = {
    # NCCL's own constants
    "base": Prior(1.0, 0.4), "hop": Prior(1.3, 0.25), "bulk_hop": Prior(1.0, 0.25),
    "network_hop": Prior(1.0, 0.1), "ll_share": Prior(0.5, 0.2),
    "nvls_latency": Prior(20e-6, 0.3),
    # a link's plateau: measured rings reach 0.97-0.98 of SM link speed, NVLS 0.74-0.85 (src/graph/tuning.cc)
    "ring_efficiency": Prior(0.97, 0.03), "nvls_efficiency": Prior(0.8, 0.1), "direct_efficiency": Prior(0.9, 0.1),
    "network_efficiency": Prior(0.98, 0.03), "pair_efficiency": Prior(0.85, 0.15),
    # assumptions: a local copy is a third to a half of a step; fills are tens of microseconds at megabytes
    "ring_tail": Prior(0.4, 0.4), "direct_tail": Prior(0.4, 0.6),
    "ring_fill": Prior(2e-6, 1.0), "nvls_fill": Prior(60e-6, 0.6), "direct_fill": Prior(25e-6, 0.6),
    "network_fill": Prior(30e-6, 0.25),
    "ring_knee": Prior(1e6, 1.0), "nvls_knee": Prior(12e6, 0.6), "direct_knee": Prior(10e6, 0.6),
    "network_knee": Prior(8e6, 0.5),
    # smallest messages: 8 µs inside a node (aiconfigurator), 19-20 µs across (NVIDIA/nccl-tests issue 150)
    "direct_latency": Prior(13e-6, 0.4), "direct_ll_latency": Prior(8e-6, 0.4), "network_latency": Prior(20e-6, 0.3),
}  # fmt: skip
FLOORS = {"nccl-tests": Prior(38e-6, 0.3), "torch": Prior(38e-6, 0.3)}
SCALE = 0.15
"""Residual beyond which the loss grows as a logarithm (Cauchy's)."""
SECONDS = {name for name in PRIORS if name.endswith(("_fill", "_latency"))}


class Shape(NamedTuple):
    """Rows of one machine, operation and algorithm."""

    first: Row
    places: NDArray[np.int64]
    sizes: FloatArray


class Problem:
    """Rows of an architecture, ready to be predicted many times."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = [row for row in rows if _representable(row)]
        self.measured = np.array([row.seconds for row in self.rows])
        by_shape: dict[Any, list[int]] = defaultdict(list)
        for place, row in enumerate(self.rows):
            by_shape[row.machine, row.op, row.algo].append(place)
        self.shapes = [
            Shape(self.rows[found[0]], np.array(found), np.array([self.rows[place].size for place in found]))
            for found in by_shape.values()
        ]
        pairs = np.array([row.op == "sendrecv" for row in self.rows], dtype=bool)
        self.harness = {
            name: np.array([row.harness == name for row in self.rows], dtype=bool) & ~pairs for name in HARNESSES
        }
        count = Counter(row.source for row in self.rows)
        self.weight = np.array([max(5, count[row.source]) ** -0.25 for row in self.rows])

    def predict(self, tuning: Tuning, floors: Mapping[str, float]) -> FloatArray:
        """Time of every row."""
        kernel = np.empty(len(self.rows))
        for shape in self.shapes:
            plans = plans_of(shape.first, tuning)
            kernel[shape.places] = np.min([solo_time(plan, shape.sizes) + 0 * shape.sizes for plan in plans], axis=0)
        floor = np.zeros(len(self.rows))
        for name, chosen in self.harness.items():
            floor[chosen] = floors[name]
        return np.asarray(with_floor(kernel, floor))


def _representable(row: Row) -> bool:
    try:
        plans_of(row)
    except LayoutError:
        return False
    return True


class Fit(NamedTuple):
    """What was found for an architecture."""

    tuning: dict[str, float]
    floors: dict[str, float]


def fit(problem: Problem, start: Fit | None = None) -> Fit:
    """Fit a problem; a fit of nearly the same rows to start from saves most of the work."""
    names = [*PRIORS, *FLOORS]
    priors = [*PRIORS.values(), *FLOORS.values()]

    def unpack(x: FloatArray) -> Fit:
        values = [prior.value * math.exp(prior.width * float(step)) for prior, step in zip(priors, x, strict=True)]
        named = dict(zip(names, values, strict=True))
        return Fit({name: named[name] for name in PRIORS}, {name: named[name] for name in FLOORS})

    def residuals(x: FloatArray) -> FloatArray:
        found = unpack(x)
        error = np.log(problem.predict(tuned(found.tuning), found.floors) / problem.measured)
        robust = np.sign(error) * np.sqrt(np.log1p((error / SCALE) ** 2))
        return np.concatenate([problem.weight * robust, 0.5 * x])

    x = np.zeros(len(names))
    if start is not None:
        known = {**start.tuning, **start.floors}
        x = np.array(
            [math.log(known[name] / prior.value) / prior.width for name, prior in zip(names, priors, strict=True)]
        )
    return unpack(np.asarray(least_squares(residuals, x, diff_step=1e-3, max_nfev=25 if start is None else 6).x))


def tuned(values: Mapping[str, float]) -> Tuning:
    """A `Tuning` of SI floats."""
    return Tuning(**{name: f"{value!r} s" if name in SECONDS else value for name, value in values.items()})  # type: ignore[arg-type]


# --- errors ----------------------------------------------------------------------------------------------------------


def errors_of(rows: Sequence[Row], predicted: Iterable[float]) -> dict[tuple[str, str, str], list[float]]:
    """Errors in time by platform, operation and whether the message is large."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row, seconds in zip(rows, predicted, strict=True):
        found[row.platform, row.op, "large" if row.size >= 2**20 else "small"].append(seconds / row.seconds - 1)
    return found


def summary(errors: Sequence[float]) -> dict[str, float]:
    """Number, median and 90th percentile of the absolute error, and the mean error."""
    sizes = np.abs(errors)
    return {
        "rows": len(errors), "median": round(float(np.median(sizes)), 3),
        "p90": round(float(np.percentile(sizes, 90)), 3), "bias": round(float(np.mean(errors)), 3),
    }  # fmt: skip


def leave_one_out(problem: Problem, whole: Fit) -> FloatArray:
    """Every row predicted by a fit that has not seen its source."""
    predicted = np.empty(len(problem.rows))
    for source in sorted({row.source for row in problem.rows}):
        kept = Problem([row for row in problem.rows if row.source != source])
        held = [place for place, row in enumerate(problem.rows) if row.source == source]
        found = fit(kept, whole)
        own = Problem([problem.rows[place] for place in held])
        predicted[held] = own.predict(tuned(found.tuning), found.floors)
    return predicted


def spread(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How far sources of one point and harness lie apart: slower / faster - 1 of all pairs."""
    points: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        points[row.platform, row.op, row.gpus, row.nodes, row.harness, row.algo, row.size][row.source].append(
            row.seconds
        )
    apart: dict[str, list[float]] = defaultdict(list)
    for key, sources in points.items():
        times = [median(found) for found in sources.values()]
        for i, a in enumerate(times):
            apart["large" if key[-1] >= 2**20 else "small"] += [max(a, b) / min(a, b) - 1 for b in times[:i]]
    return {name: summary(found) for name, found in apart.items()}


# --- the catalogue ---------------------------------------------------------------------------------------------------

PLATFORMS = {
    "ampere": ("a100-80gb", "a100-40gb", "a100-pcie", "a800"),
    "hopper": ("h100", "h100-hbm2e", "h100-pcie", "h800", "h200", "h20"),
    "blackwell": ("b200", "gb200", "b300", "gb300"),
}
"""Accelerators by architecture, as the catalogue of accelerators names them."""

HEAD = """\
# How fast collectives run: read by simulator/physics/collectives/tuning.py, which says what each number means; made by
# benchmarks/fit_collectives.py from simulator/validation/collectives.csv. One set per architecture, on links with the
# efficiencies of the shipped topologies. `errors` are |predicted / measured - 1| in time by platform and operation,
# messages of 1 MiB and more (large) and below (small), in sample and with the row's source left out of the fit.
# `floors`: launch time of a benchmark's host; a simulated step pays none. `spread`: slower / faster - 1 of two sources
# of one point in one harness.
"""


def catalogue_of(fits: Mapping[str, Fit], problems: Mapping[str, Problem], held: Mapping[str, FloatArray]) -> str:
    """The catalogue's file."""
    architectures: dict[str, Any] = {}
    floors: dict[str, dict[str, str]] = {name: {} for name in FLOORS}
    for name, found in fits.items():
        problem = problems[name]
        inside = errors_of(problem.rows, problem.predict(tuned(found.tuning), found.floors))
        out = errors_of(problem.rows, held[name]) if name in held else {}
        errors: dict[str, Any] = {}
        for platform, op, size in sorted(inside):
            entry = {"in_sample": summary(inside[platform, op, size])}
            if out:
                entry["source_left_out"] = summary(out[platform, op, size])
            errors.setdefault(platform, {}).setdefault(op, {})[size] = entry
        architectures[name] = {
            "tuning": {key: _written(key, value) for key, value in found.tuning.items()},
            "errors": errors,
            "source": sorted({row.source for row in problem.rows}),
        }
        for harness, value in found.floors.items():
            floors[harness][name] = f"{value * 1e6:.3g} us"
    for harness, table in floors.items():
        table["default"] = f"{FLOORS[harness].value * 1e6:.3g} us"
    architectures["volta"] = {
        "tuning": {**architectures["ampere"]["tuning"]},
        "source": ["prior: Ampere's numbers, for want of rows"],
    }
    architectures["cdna"] = {
        "tuning": {"ring_tail": 0.4, "direct_efficiency": 0.9},
        "source": [
            "prior: NCCL's constants; efficiency of the links in the topology (RCCL 313-330 of 448 GB/s on MI300X)"
        ],
    }
    platforms = {accelerator: name for name, members in PLATFORMS.items() for accelerator in members}
    platforms |= {"v100-32gb": "volta", "v100-16gb": "volta", "mi300x": "cdna", "mi355x": "cdna"}
    rows = [row for problem in problems.values() for row in problem.rows]
    document = {
        "platforms": platforms, "floors": floors, "spread": spread(rows), "architectures": architectures,
    }  # fmt: skip
    return HEAD + yaml.safe_dump(document, sort_keys=False, width=118, default_flow_style=None)


def _written(name: str, value: float) -> Any:
    return f"{value * 1e6:.4g} us" if name in SECONDS else float(f"{value:.4g}")


def table_of(document: Mapping[str, Any]) -> str:
    """The errors as Markdown: median and 90th percentile in sample, and with the source left out."""
    lines = [
        "| platform | op | rows | ≥ 1 MiB | source left out | rows | < 1 MiB | source left out |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for entry in document["architectures"].values():
        for platform, ops in entry.get("errors", {}).items():
            for op, sides in ops.items():
                cells = [_cells(sides.get(side)) for side in ("large", "small")]
                lines.append(" | ".join(["| " + platform, op, *cells[0], *cells[1]]) + " |")
    return "\n".join(lines)


def _cells(errors: Mapping[str, Any] | None) -> list[str]:
    if errors is None:
        return ["", "", ""]
    pairs = [errors["in_sample"], errors.get("source_left_out")]
    shown = [f"{100 * pair['median']:.0f} / {100 * pair['p90']:.0f} %" if pair else "" for pair in pairs]
    return [str(errors["in_sample"]["rows"]), *shown]


def draw(path: Path) -> None:
    """Bus bandwidth over size, measured (dots) and predicted (lines), where there are most sizes."""
    from matplotlib.figure import Figure

    rows = [row for row in read_rows(SHIPPED)[0] if row.op in PANELS]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    for panel, (op, shapes) in zip(axes, PANELS.items(), strict=False):
        _panel(panel, [row for row in rows if row.op == op], op, shapes)
    _panel(axes[3], [row for row in rows if row.nodes > 1], "all_reduce", NODES)
    figure.savefig(path, dpi=90, metadata={"Software": None} if path.suffix == ".png" else None)


PANELS = {op: (("A100", 8, 1), ("H100", 8, 1), ("B200", 8, 1)) for op in ("all_reduce", "all_gather", "alltoall")}
NODES = (("H100", 32, 4), ("H100", 512, 64), ("H100", 8192, 1024), ("GB200", 1440, 360))


def _panel(axes: Any, rows: Sequence[Row], op: str, shapes: Sequence[tuple[str, int, int]]) -> None:
    for colour, shape in zip(("#D55E00", "#0072B2", "#009E73", "#CC79A7"), shapes, strict=False):
        found = [row for row in rows if (row.platform, row.gpus, row.nodes) == shape and row.op == op]
        if not found:
            continue
        factor = busbw_factor({"alltoall": "all_to_all"}.get(op, op), shape[1])
        axes.loglog(
            [row.size for row in found], [factor * row.size / row.seconds / 1e9 for row in found], "o",
            markersize=3, color=colour, alpha=0.6,
        )  # fmt: skip
        sizes = np.geomspace(min(row.size for row in found), max(row.size for row in found), 60)
        kernel = np.min([solo_time(plan, sizes) for plan in plans_of(found[0])], axis=0)
        name = f"{shape[0]}, {shape[1]} GPUs" + (f", {shape[2]} nodes" if shape[2] > 1 else "")
        axes.loglog(sizes, factor * sizes / kernel / 1e9, color=colour, label=name)
    axes.set(title=op + (" across nodes" if shapes is NODES else " in one node"), xlabel="bytes", ylabel="busbw, GB/s")
    axes.legend(frameon=False, fontsize="small")


def main() -> None:
    """Fit, cross-validate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the catalogue")
    parser.add_argument("--no-cross-validation", action="store_true", help="leave out the fits without one source")
    parser.add_argument("--table", action="store_true", help="print the stored errors as Markdown, and do nothing else")
    parser.add_argument("--plot", type=Path, help="draw the stored fit, and do nothing else")
    arguments = parser.parse_args()
    if arguments.table or arguments.plot:
        if arguments.table:
            print(table_of(yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))))
        if arguments.plot:
            draw(arguments.plot)
        return
    rows = [row for row in read_rows(SHIPPED)[0] if row.fitted]
    problems = {
        name: Problem([row for row in rows if row.platform in platforms]) for name, platforms in ARCHITECTURES.items()
    }
    fits = {}
    for name, problem in problems.items():
        fits[name] = fit(problem)
        print(name, len(problem.rows), "rows", flush=True)
    if arguments.write:
        CATALOGUE.write_text(catalogue_of(fits, problems, {}), encoding="utf-8")
    held = {}
    if not arguments.no_cross_validation:
        for name, problem in problems.items():
            held[name] = leave_one_out(problem, fits[name])
            print(name, "cross-validated", flush=True)
    text = catalogue_of(fits, problems, held)
    print(text)
    if arguments.write:
        CATALOGUE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
