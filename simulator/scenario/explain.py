"""Errors of a scenario: pydantic's complaints with file, line, field and the nearest valid name.

pydantic says what it expected in its own words, once per branch of a union; a user wants one line that names the
file, the field, the value, what is allowed and the likely fix.

Pinned by tests/scenario/test_source.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from simulator.errors import ScenarioError, UnitError
from simulator.scenario.source import KeyPath, Source, dotted, place_of, show_value

MAX_ERRORS = 5


def nearest(name: object, allowed: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"``, or nothing if no allowed name is near."""
    return _did_you_mean(_closest(name, allowed))


def _did_you_mean(name: str | None) -> str:
    return "" if name is None else f"; did you mean {name!r}?"


def _closest(name: object, allowed: Iterable[object]) -> str | None:
    names = {str(candidate).lower(): str(candidate) for candidate in allowed}
    found = difflib.get_close_matches(str(name).lower(), names, n=1)
    return names[found[0]] if found else None


class _Finding(NamedTuple):
    """One complaint: where, pydantic's type of error, what the value must be and other texts, the nearest name."""

    where: KeyPath
    kind: str
    value: str = ""
    must_be: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    near: str | None = None

    def message(self) -> str:
        parts = [f"{self.value} must be {', or '.join(self.must_be)}"] if self.must_be else []
        texts = [text.removeprefix("unit:").lstrip() for text in self.texts]
        return "; or ".join(dict.fromkeys([*parts, *texts])) + _did_you_mean(self.near)


def explain(error: ValidationError, source: Source, model: type[BaseModel]) -> ScenarioError:
    """Turn pydantic's error into one that a person can act on.

    Parameters
    ----------
    error
        From ``model.model_validate(source.content)``.
    source, model
        What was validated against what.

    Returns
    -------
    ScenarioError
        At most five complaints, one a line, each with file, line, dotted field, value, what is allowed and the
        nearest valid name. It is a UnitError if a message of `simulator.scenario.units` is among them.
    """
    # A default that could not be computed follows from another error.
    items = [item for item in error.errors(include_url=False) if item["type"] != "default_factory_not_called"]
    findings = _digest([_finding(item, source, model) for item in items])
    shown = findings[:MAX_ERRORS]
    is_unit = any(text.startswith("unit:") for item in shown for text in item.texts)
    more = [str(source.error(item.where, item.message())) for item in shown[1:]]
    if len(findings) > len(shown):
        more.append(f"... and {len(findings) - len(shown)} more")
    first = shown[0]
    file, line = place_of(source, first.where)
    message = "\n".join([first.message(), *more])
    return (UnitError if is_unit else ScenarioError)(message, file=file, line=line, field=dotted(first.where))


def _digest(findings: list[_Finding]) -> list[_Finding]:
    """Merge the alternatives of a union, drop what follows from something else, put the telling ones first."""
    merged: dict[KeyPath, _Finding] = {}
    for item in findings:
        old = merged.get(item.where, item._replace(must_be=(), texts=()))
        must_be = tuple(dict.fromkeys(old.must_be + item.must_be))
        merged[item.where] = item._replace(must_be=must_be, texts=old.texts + item.texts, near=old.near or item.near)
    # A complaint inside a value means that one alternative of a union took its shape: the others are noise.
    outer = {where[:length] for where in merged for length in range(len(where))}
    # A misspelt key is also a missing one: say it once.
    typos = {(*item.where[:-1], item.near) for item in merged.values() if item.kind == "extra_forbidden"}
    kept = [item for item in merged.values() if item.where not in outer]
    kept = [item for item in kept if item.kind != "missing" or item.where not in typos]
    return sorted(kept, key=lambda item: item.kind == "missing")


def _finding(item: Any, source: Source, model: type[BaseModel]) -> _Finding:
    kind, context = str(item["type"]), item.get("ctx", {})
    where, parents, leaves = _locate(item["loc"], kind == "missing", source.content, model)
    where = where if kind == "missing" else _written(where, source.content)
    found, value = _look_up(source.content, where)
    value = value if found else item["input"]
    if kind == "missing":
        return _Finding(where, kind, texts=("required, but missing",))
    if kind == "extra_forbidden":
        return _unknown_key(where, [name for leaf in parents for name in _fields(leaf)])
    if kind.startswith("union_tag_"):
        return _wrong_tag(where, kind, value, context["discriminator"].strip("'"), leaves)
    if "error" in context:
        return _Finding(where, kind, texts=(str(context["error"]),))
    message = str(item["msg"])
    if kind not in _MUST_BE and not message.startswith(_PYDANTIC_MUST_BE):
        return _Finding(where, kind, texts=(f"{show_value(value)}: {message}",))
    words = _MUST_BE[kind].format_map(context) if kind in _MUST_BE else message.removeprefix(_PYDANTIC_MUST_BE)
    names = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    near = _closest(value, names) if isinstance(value, str) else None
    return _Finding(where, kind, show_value(value), must_be=(words,), near=near)


def _unknown_key(where: KeyPath, allowed: list[str]) -> _Finding:
    near = _closest(where[-1], allowed)
    text = f"unknown key {str(where[-1])!r}"
    if near is None:
        text += f"; allowed: {', '.join(dict.fromkeys(allowed))}"
    return _Finding(where, "extra_forbidden", texts=(text,), near=near)


def _wrong_tag(where: KeyPath, kind: str, value: Any, key: str, leaves: list[Any]) -> _Finding:
    allowed = [str(tag) for leaf in leaves for tag in _tags(leaf, key)]
    listed = ", ".join(map(repr, allowed))
    if kind == "union_tag_not_found":
        return _Finding(where, kind, texts=(f"required key {key!r} is missing; allowed: {listed}",))
    if isinstance(value, dict):
        where, value = (*where, key), value.get(key)
    text = f"{show_value(value)} is not allowed; allowed: {listed}"
    return _Finding(where, kind, texts=(text,), near=_closest(value, allowed))


_PYDANTIC_MUST_BE = "Input should be "
# pydantic's error types (docs.pydantic.dev, "Validation Errors") in our words; {} is filled from its context.
_MUST_BE = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "path_type"), "text"),
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), "a mapping of keys"),
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "none_required": "null",
}


def _written(where: KeyPath, content: Any) -> KeyPath:
    """As far as the file goes: what a short form such as `restart: 10 min` is short for has no line."""
    for length in range(len(where)):
        found, inner = _look_up(content, where[:length])
        if found and inner is not None and not isinstance(inner, dict | list):
            return where[:length]
    return where


def _look_up(content: Any, where: KeyPath) -> tuple[bool, Any]:
    for part in where:
        if not _holds(content, part):
            return False, None
        content = content[part]
    return True, content


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


# --- walking a model along pydantic's `loc` -----------------------------------------------------------------------


def _locate(
    loc: tuple[str | int, ...], missing: bool, content: Any, model: type[BaseModel]
) -> tuple[KeyPath, list[Any], list[Any]]:
    """Strip from `loc` what is no key (union tags, validator names); find the types at its parent and at it."""
    where: list[str | int] = []
    parents: list[Any] = []
    leaves: list[Any] = [model]
    tagged = False
    for index, part in enumerate(loc):
        last_of_missing = missing and index == len(loc) - 1
        named = any(part in _fields(leaf) for leaf in leaves)
        is_tag = len(leaves) > 1 and not tagged
        if not last_of_missing and (is_tag or not (_holds(content, part) or named)):
            leaves, tagged = _narrow(leaves, part), True
            continue
        where.append(part)
        content = content[part] if _holds(content, part) else None
        parents, leaves, tagged = leaves, [new for leaf in leaves for new in _step(leaf, part)], False
    return tuple(where), parents, leaves


def _flatten(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without None and without Annotated's extras."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _flatten(get_args(annotation)[0])
    if origin is Union or origin is UnionType:
        return [leaf for option in get_args(annotation) for leaf in _flatten(option)]
    return [] if annotation is type(None) else [annotation]


def _fields(leaf: Any) -> dict[str, Any]:
    if not (isinstance(leaf, type) and issubclass(leaf, BaseModel)):
        return {}
    return {item.alias or name: item.annotation for name, item in leaf.model_fields.items()}


def _step(leaf: Any, part: str | int) -> list[Any]:
    fields = _fields(leaf)
    if fields:
        return _flatten(fields[str(part)]) if part in fields else []
    arguments = [new for argument in get_args(leaf) if argument is not ... for new in _flatten(argument)]
    return arguments[1:] if get_origin(leaf) is dict else arguments


def _narrow(leaves: list[Any], tag: str | int) -> list[Any]:
    def fits(leaf: Any) -> bool:
        return getattr(leaf, "__name__", None) == tag or any(tag in _tags(leaf, key) for key in _fields(leaf))

    return [leaf for leaf in leaves if fits(leaf)] or leaves


def _tags(leaf: Any, key: str) -> list[Any]:
    options = _flatten(_fields(leaf).get(key))
    return [value for option in options if get_origin(option) is Literal for value in get_args(option)]
