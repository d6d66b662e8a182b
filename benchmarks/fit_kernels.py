"""Fit the kernel models of the catalogue to published timings.

    python benchmarks/fit_kernels.py gemm.csv attention.csv [NAME...]

prints, as YAML for `simulator/scenario/catalogue/accelerators.yaml`, the parameters and errors of every fit, or of
those whose name holds a NAME ("gemm b200"). How a fit is made: simulator/calibrate/fitting.py. Peaks and the speed of
streaming kernels come from the catalogue; what it holds for the fitted kernels is not looked at.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import yaml

from simulator.calibrate.fitting import fit_group
from simulator.errors import ScenarioError
from simulator.studies.kernel_rows import GemmRow, Row, accelerator_of, read_rows

_LEAST = {"gemm": 20, "attention": 3}  # rows that make a fit


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the name of their fit: those with a known accelerator and a nameable source."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if "not named" in row.source or "fp16 accumulate" in row.note:
            continue
        try:
            acc = accelerator_of(row)
        except ScenarioError:
            continue
        kind = "fp8" if row.dtype == "fp8" else row.dtype if row.dtype == "fp4" else "bf16"
        if isinstance(row, GemmRow):
            found[f"gemm {acc.name} {kind}"].append(row)
        elif row.implementation != "unfused":
            found[f"attention {acc.name} {row.implementation} {kind}"].append(row)
    return {name: members for name, members in found.items() if len(members) >= _LEAST[name.split()[0]]}


def main(arguments: Sequence[str]) -> None:
    """Print the fits of the tables named on the command line."""
    paths = [Path(argument) for argument in arguments if argument.endswith(".csv")]
    wanted = [argument for argument in arguments if not argument.endswith(".csv")]
    rows = [row for path in paths for row in read_rows(path)[0]]
    for name, members in sorted(groups(rows).items()):
        if not wanted or any(each in name for each in wanted):
            print(
                yaml.safe_dump({name: fit_group(accelerator_of(members[0]), members)}, sort_keys=False, width=4000),
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
