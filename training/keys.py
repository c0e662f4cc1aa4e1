"""Every key of a configuration on one line: its path, of which kinds it is, what it takes, its default, its meaning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

from training.config import Config

__all__ = ["keys", "nearest"]

LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
NAMES = {"string": "text", "boolean": "true or false", "object": "section"}
ENDLESS = 2**62  # a limit beyond it is that of the machine's numbers


class _Key(NamedTuple):
    path: str
    kinds: tuple[str, ...]
    said: str


def keys() -> Iterator[str]:
    """In the order of the sections; [equivae, dense] after a path: only where `kind` or `source` is that, level by
    level."""
    for key in _keys():
        kinds = f" [{', '.join(key.kinds)}]" if key.kinds else ""
        yield f"{key.path}{kinds} {key.said}"


def nearest(path: str, kinds: Iterable[str]) -> str | None:
    """The key of these kinds that is written most like one that there is not, if any is."""
    chosen = set(kinds)
    known = [key.path for key in _keys() if all(chosen & set(kind.split("/")) for kind in key.kinds)]
    return next(iter(get_close_matches(path, known, n=1, cutoff=0.75)), None)


def _keys() -> Iterator[_Key]:
    schema = Config.model_json_schema()
    return _section(schema, schema["$defs"], "")


def _section(schema: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[_Key]:
    for name, value in schema["properties"].items():
        if "const" in value:
            continue  # the kind itself, which the section's own line tells, or what cannot be chosen
        at = f"{path}{name}"
        sections = [definitions[reference.rpartition("/")[2]] for reference in _references(value)]
        kinds = [_kind(section) for section in sections]
        yield _Key(at, (), _said(value, kinds, name in schema.get("required", ())))
        # What several kinds have alike stands there once.
        kinds_of: dict[_Key, list[str]] = {}
        for kind, section in zip(kinds, sections, strict=True):
            for key in _section(section, definitions, f"{at}."):
                kinds_of.setdefault(key, []).append(kind)
        for key, those in kinds_of.items():
            yield key if len(those) == len(kinds) else key._replace(kinds=("/".join(those), *key.kinds))


def _references(value: dict[str, Any]) -> Iterator[str]:
    """To the sections that may stand there."""
    if "$ref" in value:
        yield value["$ref"]
    for option in (*value.get("oneOf", ()), *value.get("anyOf", ())):
        yield from _references(option)


def _kind(section: dict[str, Any]) -> str:
    """What tells a section from the others that may stand in its place; empty where there are none."""
    own = section["properties"]
    return str((own.get("kind") or own.get("source") or {}).get("const", ""))


def _said(value: dict[str, Any], kinds: list[str], required: bool) -> str:
    parts = [f"section of kind {' or '.join(kinds)}" if len(kinds) > 1 else _taken(value)]
    if required:
        parts.append("required")
    elif not kinds or value["default"] is None:
        parts.append(f"default {json.dumps(value['default'])}")
    return f"({', '.join(parts)})" + (f": {value['description']}" if "description" in value else "")


def _taken(value: dict[str, Any]) -> str:
    """What may stand there, in words."""
    if "anyOf" in value:
        return " or ".join(_taken(option) for option in value["anyOf"])
    if "enum" in value:
        return " or ".join(map(str, value["enum"]))
    if "$ref" in value:
        return "section"
    if value["type"] == "array":
        items = value.get("items") or value["prefixItems"][0]
        count = f"list of {value['maxItems']}" if value.get("maxItems") == value.get("minItems", -1) else "list"
        return f"{count}: {_taken(items)}"
    limits = [f"{sign} {value[word]}" for word, sign in LIMITS.items() if word in value and value[word] < ENDLESS]
    return " ".join((NAMES.get(value["type"], value["type"]), *limits))
