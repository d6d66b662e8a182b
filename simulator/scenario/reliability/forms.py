"""How sections of `reliability:` are written: closed mappings, of which some have a short form.

`restart: 10 min` is short for `restart: {scheduling: 10 min}`. A section with a short form reads it in a validator of
its own and tells the JSON Schema by `also`.

Pinned by tests/scenario/reliability/test_section.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

Share: TypeAlias = Annotated[float, Field(strict=True, ge=0, le=1)]
"""A probability, or a part of a whole."""
Count: TypeAlias = Annotated[int, Field(strict=True, ge=0)]
PositiveCount: TypeAlias = Annotated[int, Field(strict=True, gt=0)]


class Section(BaseModel):
    """Frozen, without unknown fields and without infinite numbers."""

    model_config = STRICT


def also(short: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """What a model's JSON Schema says where a value may also be written as `short`: for `json_schema_extra`."""

    def extend(schema: dict[str, Any]) -> None:
        full = dict(schema)
        schema.clear()
        schema["anyOf"] = [short, full]

    return extend
