"""Every shipped scenario beside its published figures, as a Markdown table.

`python benchmarks/published.py` prints the table that docs/published-runs.md holds.
"""

from __future__ import annotations

from typing import Any

from simulator.report.formats import by_key
from simulator.report.tables import published_text, verdict
from simulator.scenario.scenario import load
from simulator.scenario.shipped import shipped_names
from simulator.studies.simulate import simulate

# Parameter counts are the catalogue's business, pinned in tests/scenario/test_models.py.
_NOT_SIMULATED = ("total_parameters", "active_parameters")


def rows(name: str) -> list[dict[str, Any]]:
    """Published figures of one scenario."""
    return [entry for entry in simulate(load(name)).expected_figures() if entry["name"] not in _NOT_SIMULATED]


def main() -> None:
    """Print the table."""
    print("| scenario | figure | simulated | published | |")
    print("|---|---|---|---|---|")
    for name in shipped_names("scenarios"):
        if name.startswith("reliability/"):  # one draw each: benchmarks/evidence.py takes means
            continue
        for entry in rows(name):
            figure = entry["name"]
            published = published_text(figure, entry["published"])
            print(f"| {name} | {figure} | {by_key(figure, entry['simulated'])} | {published} | {verdict(entry)} |")


if __name__ == "__main__":
    main()
