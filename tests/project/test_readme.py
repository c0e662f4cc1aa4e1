"""The README is run: every command in order, in a copy of the checkout's files, and every answer compared.

A fence of ```sh is commands; a fence of ```json or ```text right behind it is what the last of them prints. Numbers
are compared within a tolerance; in text, `...` stands for anything. `make test` alone is not run from here.
"""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from service.settings import Settings
from tests.server import running_server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = r"[-+]?\d+(?:\.\d+)?"
SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".json": b"{"}
DEFAULT_ADDRESS = "127.0.0.1:8000"


def examples() -> list[tuple[str, str, str]]:
    """(command, language of its answer or "", answer), a command a line; a trailing backslash joins lines."""
    fences = [(match["language"], match["body"]) for match in FENCE.finditer(README)]
    found = []
    for index, (language, body) in enumerate(fences):
        if language != "sh":
            continue
        commands = [line.strip() for line in body.replace("\\\n", "").splitlines() if line.strip()]
        answer = fences[index + 1] if index + 1 < len(fences) and fences[index + 1][0] in ("json", "text") else ("", "")
        found += [(command, "", "") for command in commands[:-1]]
        found.append((commands[-1], *answer))
    return found


EXAMPLES = examples()
CURLS = [example for example in EXAMPLES if example[0].startswith("curl")]


def environment(**extra: str) -> dict[str, str]:
    """This interpreter's own environment stands in for .venv, so that nothing is installed twice."""
    return os.environ | {"VENV": sys.prefix} | extra


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """`make serve` on a free port, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["make", "serve"]
    serve = subprocess.Popen(command, cwd=ROOT, env=environment(PORT=str(port)), start_new_session=True)
    try:
        deadline = time.monotonic() + 100
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
                break
            except OSError:
                assert serve.poll() is None, "make serve ended"
                assert time.monotonic() < deadline, "make serve is not ready after 100 s"
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(serve.pid, signal.SIGTERM)
        serve.wait(30)


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


def pattern(text: str) -> re.Pattern[str]:
    """Text in which any number may differ (they are compared apart) and `...` is anything."""
    parts = re.split(rf"(\.\.\.|{NUMBER})", text.strip())
    escaped = (
        ".*?" if part == "..." else f"({NUMBER})" if re.fullmatch(NUMBER, part) else re.escape(part) for part in parts
    )
    return re.compile("".join(escaped), re.DOTALL)


def test_the_first_screen_shows_the_commands_and_three_answers() -> None:
    commands = [command for command, _, _ in EXAMPLES]
    assert {"make serve", "make test", "make train"} <= set(commands)
    assert len([1 for _, language, _ in CURLS if language]) >= 3
    for picture in re.findall(r"!\[[^]]*]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture


@pytest.mark.parametrize(("command", "language", "answer"), CURLS, ids=range(len(CURLS)))
def test_a_curl_line_answers_what_the_readme_says(
    command: str, language: str, answer: str, address: str, tmp_path: Path
) -> None:
    assert DEFAULT_ADDRESS in command
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        ["bash", "-c", command.replace(DEFAULT_ADDRESS, address)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    if language == "json":
        compare(json.loads(answer), json.loads(done.stdout))
    elif language == "text":
        assert pattern(answer).search(done.stdout), done.stdout
    for name in re.findall(r"(?:-o|--output) (\S+)", command):
        written = (tmp_path / name).read_bytes()
        assert written.startswith(SIGNATURES[Path(name).suffix]), f"{name} is something else"


def test_an_existing_client_works_as_the_readme_says(address: str) -> None:
    (program,) = [match["body"] for match in FENCE.finditer(README) if match["language"] == "python"]
    assert DEFAULT_ADDRESS in program
    command = [sys.executable, "-c", program.replace(DEFAULT_ADDRESS, address)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "7\n"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("run", "verbs", "model"),
    [
        ("runs/my-upright", ["train", "export"], "my-upright-model"),
        ("runs/mine", ["train", "evaluate", "export"], "my-model"),
    ],
)
def test_training_on_a_folder_of_ones_own(run: str, verbs: list[str], model: str, tmp_path: Path) -> None:
    training = [command for command, _, _ in EXAMPLES if command.startswith(".venv/bin/python -m training")]
    commands = [command for command in training if run in command.split()]
    assert [command.split()[3] for command in commands] == verbs
    (tmp_path / "training").symlink_to(ROOT / "training")
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:360], digits.target, strict=False)):
        folder = tmp_path / "my-pictures" / f"class-{label % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((40, 30)).save(folder / f"{index}.png")
    for command in commands:
        # The commands stand as they are but for their length: few steps on small pictures show the path whole.
        short = {
            "train": " --set fit.steps=12 --set data.size=8 --set data.channels=1",
            "evaluate": " --benchmark-epochs 0 --samples 20",
            "export": "",
        }
        line = command.replace(".venv/bin/python", sys.executable) + short[command.split()[3]]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    picture = next((tmp_path / "my-pictures").rglob("*.png")).read_bytes()
    path = "/classify" if model == "my-model" else "/canonicalize"
    headers = {"content-type": "image/png"}
    with running_server(Settings(model_store=tmp_path / "model_store")) as url:
        answer = httpx.post(f"{url}{path}", params={"model": model}, content=picture, headers=headers)
    assert (answer.status_code, answer.json()["model"]) == (200, model), answer.text


@pytest.mark.timeout(400)
def test_make_train_makes_a_served_model(tmp_path: Path) -> None:
    ((_, language, answer),) = [example for example in EXAMPLES if example[0] == "make train"]
    assert language == "text"
    env = environment(RUNS=str(tmp_path / "runs"), STORE=str(tmp_path / "store"))
    done = subprocess.run(["make", "train"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = pattern(answer)
    found = shown.search(done.stdout)
    assert found, f"{answer}\nis not in\n{done.stdout}"
    expected = [float(number) for number in re.findall(NUMBER, answer.replace("...", " "))]
    for stated, measured in zip(expected, found.groups(), strict=True):
        # Rounding differs between processors and so does the course of a training: three of 216 images are 1.4 points.
        assert math.isclose(stated, float(measured), rel_tol=0.2, abs_tol=1.5), f"{stated} became {measured}"
    env = environment(EQUIPOISE_MODEL_STORE=str(tmp_path / "store"))
    check = [sys.executable, "-m", "service", "check"]
    subprocess.run(check, cwd=ROOT, env=env, check=True)
