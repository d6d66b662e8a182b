"""Published clusters' failures by name, from catalogue/failures.yaml: each with its source.

Pinned by tests/scenario/reliability/test_presets.py.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

import yaml

from simulator.scenario.reliability.failures import FailureClass
from simulator.scenario.reliability.forms import Section
from simulator.scenario.reliability.machines import Lemons

CATALOGUE = Path(__file__).parent.parent / "catalogue" / "failures.yaml"

PresetName: TypeAlias = Literal["default", "hpn", "llama-3", "opt-175b", "rsc-1", "rsc-2"]


class Preset(Section):
    """What breaks on one cluster."""

    description: str
    source: str
    failures: tuple[FailureClass, ...]
    lemons: Lemons | None = None


@cache
def read_presets() -> MappingProxyType[str, Preset]:
    """Every preset of the catalogue by name."""
    entries = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return MappingProxyType({name: Preset.model_validate(entry) for name, entry in entries.items()})
