"""A configuration as a YAML file: every mistake is an error that names the file and the line.

`--set fit.epochs=3` overrides one value.
"""

import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from training.config import Config
from training.errors import ConfigError, first_line
from training.keys import nearest

__all__ = ["load_config"]


class _Loader(yaml.SafeLoader):
    """YAML's safe subset with two repairs: a key twice is an error, and 1e-3 is a number (YAML 1.1 asks for 1.0e-3)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # an error that YAML itself explains
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(text: str) -> Any:
    """The values as JSON has them: keys are strings, and no two places share one object as YAML's aliases do.

    Raises:
        yaml.YAMLError, ValueError, TypeError, RecursionError: not YAML, or no such day, number, key, depth.
    """
    return json.loads(json.dumps(yaml.load(text, _Loader), default=str))  # noqa: S506 - a safe loader


_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override and check a configuration.

    Args:
        path: the YAML file.
        overrides: `section.key=value`, the value written as in YAML.

    Raises:
        ConfigError: naming the file and line, or the override, of the first mistakes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    try:
        root = yaml.compose(text, _Loader)
        values = _read_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: {error.problem}") from error
    except _NOT_YAML as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {first_line(error)}") from error
    if root is None or not isinstance(values, dict):
        raise ConfigError(f"{path}:1: expected the sections name, recipe, data, model and fit")
    changed = {tuple(_override(values, text)): text for text in overrides}
    try:
        # As JSON, so that strict checking takes a list for a tuple and a string for a path but never "3" for 3.
        return Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problems = [_explain(path, root, changed, _location(problem), problem) for problem in error.errors()]
        raise ConfigError("; ".join(dict.fromkeys(problems[:3]))) from error


def _override(values: dict[str, Any], text: str) -> list[str]:
    """Put one `section.key=value` into the values; its path comes back."""
    key, equals, value = text.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {text}: expected section.key=value")
    try:
        parsed = _read_yaml(value)
    except _NOT_YAML as error:
        raise ConfigError(f"--set {text}: the value is not YAML") from error
    section = values
    for name in names[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {text}: {name} is not a section")
    section[names[-1]] = parsed
    return names


def _location(problem: Any) -> tuple[str | int, ...]:
    """Where a mistake is: what two sections disagree about says so itself."""
    at: tuple[str | int, ...] = problem.get("ctx", {}).get("at", problem["loc"])
    return at


def _explain(
    path: Path,
    root: yaml.Node,
    changed: dict[tuple[str, ...], str],
    location: tuple[str | int, ...],
    problem: Any,
) -> str:
    """One mistake in one line. Steps of the location that are tags of a union are no keys of the file: left out."""
    node, names, line = root, [], root.start_mark.line + 1
    for step in location:
        child = _child(node, step)
        if child is not None:
            node, line = child[1], child[0].start_mark.line + 1
            names.append(str(step))
        elif any(key[: len(names) + 1] == (*names, str(step)) for key in changed):  # in no file, but in an override
            node = yaml.MappingNode("", [])
            names.append(str(step))
    if problem["type"] == "union_tag_invalid":
        names.append(problem["ctx"]["discriminator"].strip("'"))
    missing = problem["type"] == "missing"
    if (missing or tuple(names) not in changed) and location and str(location[-1]) not in names:
        names.append(str(location[-1]))
    unknown = problem["type"] == "extra_forbidden"
    message = "is missing" if missing else problem["msg"].removeprefix("Value error, ")
    if unknown:
        meant = nearest(".".join(names), kinds=map(str, location))
        message = f"unknown key; is it {meant}?" if meant else "unknown key"
    if not unknown and not missing and isinstance(problem["input"], str | int | float | bool | None):
        message += f", not {json.dumps(problem['input'])}"
    for key, text in changed.items():
        if key[: len(names)] == tuple(names) or tuple(names)[: len(key)] == key:
            return f"--set {text}: {'.'.join(names)}: {message}"
    return f"{path}:{line}: {'.'.join(names) or 'file'}: {message}"


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """(node that carries the line, value node) of a key or an index."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None
