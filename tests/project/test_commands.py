"""Every command line in the texts is one that its program takes: options, choices, configurations and their keys."""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from training.__main__ import app
from training.config_file import load_config
from training.errors import ConfigError

ROOT = Path(__file__).parents[2]
TEXTS = ("README.md", "RESULTS.md", "SECURITY.md", "CHANGELOG.md", "Makefile", *sorted(ROOT.glob("docs/*.md")))
CODE = re.compile(r"^ *```\w*\n(?P<fence>.*?)^ *```|`(?P<span>[^`]+)`|^(?: {4,}|\t)(?P<line>[^\n]*)", re.M | re.S)
OURS = re.compile(
    r"\S*python(?: -m (?P<module>(?:benchmarks|training|examples|service)[\w.]*)| (?P<path>benchmarks/\w+)\.py) ?"
)
PLACES = {
    "$(CONFIG)": "training/configs/equivae-digits.yaml",
    "$(AGAIN)": "--restart",
    "CONFIG": "training/configs/equivae-digits.yaml",
    "SPLIT": "test",
    "$M": "3",
}
"""What may stand in the place of something, and one of what may be put there."""


class Parsed(Exception):
    """A program has read its command line, and would begin."""


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """(text, module, words) of each, without what an ellipsis stands for."""
    for text in TEXTS:
        for code in CODE.finditer((ROOT / text).read_text()):
            whole = (code["fence"] or "") + (code["line"] or "")
            lines = whole.replace("\\\n", " ").splitlines() or [" ".join(code["span"].split())]
            for line in lines:
                for place, value in PLACES.items():
                    line = line.replace(place, value)
                if found := OURS.search(line):
                    module = found["module"] or found["path"].replace("/", ".")
                    words = shlex.split(line[found.end() :].partition(" | ")[0], comments=True)
                    yield Path(text).name, module, [word for word in words if word != "..."]


COMMANDS = list(commands())


def test_they_are_found_in_every_form() -> None:
    """In a fence, in a sentence over two lines, indented, in the Makefile, by a file's path."""
    modules = {(text, module) for text, module, _ in COMMANDS}
    assert {
        ("sizing.md", "benchmarks.sizing"),
        ("RESULTS.md", "benchmarks.calibration"),
        ("RESULTS.md", "benchmarks.overload"),
        ("Makefile", "benchmarks.serving"),
        ("RESULTS.md", "benchmarks.grids"),
    } <= modules
    assert ["model_store/equivae-digits/1"] in [
        words for _, module, words in COMMANDS if module.endswith("calibration")
    ]


@pytest.mark.parametrize(
    ("text", "module", "words"), COMMANDS, ids=[f"{text}:{module}" for text, module, _ in COMMANDS]
)
def test_a_command_is_taken(
    text: str, module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if words == ["--help"]:
        return
    if module == "training":
        take_training(words)
        return
    read = argparse.ArgumentParser.parse_args

    def read_only(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        read(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_only)
    monkeypatch.setattr(sys, "argv", [module, *words])
    program = importlib.import_module(module)
    if hasattr(program, "__path__"):
        program = importlib.import_module(f"{module}.__main__")
    try:
        with pytest.raises(Parsed):
            program.main()
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


def take_training(words: list[str]) -> None:
    """What Click takes; of a training, its configuration with the overrides too."""
    verb, *rest = words
    group: Any = typer.main.get_command(app)
    with group.commands[verb].make_context(verb, rest) as context:
        given = context.params
    if "config" in given:
        load_config(ROOT / given["config"], given["set_"] or ())


RESULTS = (ROOT / "RESULTS.md").read_text()


@pytest.mark.parametrize("span", re.findall(r"`(--set [^`]+=[^`]+)`", RESULTS))
def test_an_override_alone_fits_a_configuration(span: str) -> None:
    words = shlex.split(span)
    assert set(words[::2]) == {"--set"}
    assert any(fits(path, words[1::2]) for path in (ROOT / "training" / "configs").glob("*.yaml"))


def fits(path: Path, overrides: list[str]) -> bool:
    try:
        load_config(path, overrides)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^    make ([\w-]+)", RESULTS, re.MULTILINE))))
def test_a_target_of_make_is_there(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()
