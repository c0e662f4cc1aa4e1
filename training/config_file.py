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
    """YAML's safe subset with two repairs: a key twice is an error, and 1e-3 and 1.5e3 are numbers, as in YAML 1.2 (1.1
    asks for 1.0e-3 and 1.5e+3)."""

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
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _read_yaml(text: str) -> Any:
    """The values as JSON has them: keys are strings, and no two places share one object as YAML's aliases do.

    Raises:
        yaml.YAMLError, ValueError, TypeError, RecursionError: not YAML, or no such day, number, key, depth, character.
    """
    values = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    return json.loads(json.dumps(values, default=str, ensure_ascii=False).encode())


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
        problems = [_explain(path, root, values, changed, problem) for problem in error.errors()]
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


def _explain(
    path: Path,
    root: yaml.Node,
    values: dict[str, Any],
    changed: dict[tuple[str, ...], str],
    problem: Any,
) -> str:
    """One mistake in one line."""
    kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
    names = _names(values, problem)
    if kind in ("missing", "union_tag_not_found"):
        message = "is missing"
    elif kind == "extra_forbidden":
        meant = nearest(".".join(names), kinds=map(str, problem["loc"]))
        message = f"unknown key; is it {meant}?" if meant else "unknown key"
    elif kind == "union_tag_invalid":
        message = f"expected one of {problem['ctx']['expected_tags']}, not {json.dumps(problem['ctx']['tag'])}"
    elif isinstance(problem["input"], str | int | float | bool | None):
        message += f", not {json.dumps(problem['input'])}"
    depth, line = _reach(root, names)
    # A section of which the file has nothing comes from the overrides inside it, and so does what it lacks.
    overrides = _touching(changed, names) or _touching(changed, names[: depth + 1])
    return f"{overrides or f'{path}:{line}'}: {'.'.join(names)}: {message}"


def _touching(changed: dict[tuple[str, ...], str], names: tuple[str, ...]) -> str:
    """The overrides that a value may come from: of itself, of a section around it or, if it is a section, inside it."""
    return " ".join(f"--set {text}" for key, text in changed.items() if key[: len(names)] == names[: len(key)])


def _names(values: dict[str, Any], problem: Any) -> tuple[str, ...]:
    """The key that a mistake is at. pydantic's location has tags of unions as well, which are no keys: left out."""
    context = problem.get("ctx", {})
    if "at" in context:  # what two sections disagree about says so itself
        return context["at"]
    names, value = [], values
    for step in problem["loc"]:
        if step < len(value) if isinstance(step, int) else isinstance(value, dict) and step in value:
            value = value[step]
            names.append(str(step))
    if problem["type"] == "missing":
        names.append(str(problem["loc"][-1]))
    if "discriminator" in context:
        names.append(context["discriminator"].strip("'()"))  # 'source', or a function: kind()
    return tuple(names)


def _reach(node: yaml.Node, names: Sequence[str]) -> tuple[int, int]:
    """How many steps to a key the file has, and the line of the last of them."""
    line = node.start_mark.line + 1
    for depth, name in enumerate(names):
        child = _child(node, name)
        if child is None:
            return depth, line
        line, node = child[0].start_mark.line + 1, child[1]
    return len(names), line


def _child(node: yaml.Node, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    """(node that carries the line, value node) of a key or an index."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == name), None)
    if isinstance(node, yaml.SequenceNode) and name.isdecimal() and int(name) < len(node.value):
        return node.value[int(name)], node.value[int(name)]
    return None
