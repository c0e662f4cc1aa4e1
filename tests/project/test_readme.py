"""The requests of the README and of pages in docs/ are sent, in order, and every answer compared."""

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.project.readme import (
    EXAMPLES,
    FENCE,
    NOT_RUN,
    README,
    ROOT,
    WITHIN_SENTENCES,
    compare_text,
    examples,
)

SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".json": b"{"}
DEFAULT_ADDRESS = "127.0.0.1:8000"
BALANCER = "127.0.0.1:8080"  # of docs/deploy.md: what it asks is asked of the service
CURLS = [example for example in EXAMPLES if example[0].startswith("curl")]
# Besides every curl line: the service that they ask, and what test_readme_training.py runs.
RUN = re.compile(r"curl .*|make serve|make train( CONFIG=.*)?")
OTHERS = [command for command in WITHIN_SENTENCES if command not in NOT_RUN and not RUN.fullmatch(command)]


@pytest.fixture
def address(served: tuple[str, float]) -> str:
    return served[0]


def test_ready_within_a_second_a_model(served: tuple[str, float]) -> None:
    """With the shipped models; CPU time, since the machine may be busy with other things."""
    assert 0.5 < served[1] < len(list((ROOT / "model_store").iterdir()))


def compare(expected: object, actual: object, where: str = "answer") -> None:
    if isinstance(expected, dict) and isinstance(actual, dict):
        assert list(expected) == list(actual), where
        for key, value in expected.items():
            compare(value, actual[key], f"{where}.{key}")
    elif isinstance(expected, list) and isinstance(actual, list):
        assert len(expected) == len(actual), where
        for index, pair in enumerate(zip(expected, actual, strict=True)):
            compare(*pair, f"{where}[{index}]")
    elif isinstance(expected, float) and isinstance(actual, float | int):
        assert math.isclose(expected, actual, rel_tol=0.02, abs_tol=0.002), f"{where}: {expected} became {actual}"
    else:
        assert expected == actual, where


def test_the_first_screen_shows_the_commands_and_three_answers() -> None:
    commands = [command for command, _, _ in EXAMPLES]
    screen = README[: README.index("![A digit on a page, turned")]
    first = [command for command in commands if command in screen]
    assert {"make serve", "make test", "make train"} <= set(first) and "(docs/swap-grid.png)" in screen
    assert len([1 for command, language, _ in CURLS if language and command in first]) == 3
    for picture in re.findall(r"!\[[^]]*]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture


def test_every_command_is_run_or_has_a_reason() -> None:
    fenced = [command for command, _, _ in examples(README)]
    assert [command for command in fenced if command not in NOT_RUN and not RUN.fullmatch(command)] == []
    assert set(NOT_RUN) <= {*fenced, *WITHIN_SENTENCES}


@pytest.mark.parametrize("command", OTHERS)
def test_a_command_within_a_sentence_runs(command: str, here: Callable[..., Any]) -> None:
    program, *words = shlex.split(command)
    assert program in ("python", ".venv/bin/python"), "no test runs it, and NOT_RUN has no reason"
    if words[:2] == ["-m", "service"]:
        done = here(*words[2:])  # `served` starts it as a process
    else:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and done.stdout
    assert not done.stderr or "key, shown once" in done.stderr  # nothing to complain of


@pytest.mark.parametrize(("command", "language", "answer"), CURLS, ids=range(len(CURLS)))
def test_a_curl_line_answers_what_the_readme_says(
    command: str, language: str, answer: str, address: str, tmp_path: Path
) -> None:
    assert DEFAULT_ADDRESS in command or BALANCER in command
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        ["bash", "-c", command.replace(DEFAULT_ADDRESS, address).replace(BALANCER, address)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    if language == "json":
        compare(json.loads(answer), json.loads(done.stdout))
    elif language == "text":
        compare_text(answer, done.stdout)
    for name in re.findall(r"(?:-o|--output) (\S+)", command):
        written = (tmp_path / name).read_bytes()
        assert written.startswith(SIGNATURES[Path(name).suffix]), f"{name} is something else"


def test_the_example_draws_its_figure(address: str, tmp_path: Path) -> None:
    (command,) = [command for command, _, _ in EXAMPLES if command.startswith("python examples/")]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    line = [sys.executable, *command.split()[1:], "--address", address]
    subprocess.run(line, cwd=tmp_path, check=True, timeout=30)
    assert (tmp_path / command.split()[-1]).read_bytes().startswith(SIGNATURES[".png"])


def test_an_existing_client_works_as_the_readme_says(address: str) -> None:
    (program,) = [match["body"] for match in FENCE.finditer(README) if match["language"] == "python"]
    assert DEFAULT_ADDRESS in program
    command = [sys.executable, "-c", program.replace(DEFAULT_ADDRESS, address)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=110)
    assert done.stdout == "7\n"
