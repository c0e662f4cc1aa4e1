"""What the README, docs/upright.md and docs/deploy.md say, for the tests that run it.

A fence of ```sh is commands; a fence of ```json or ```text right behind it is what the last of them prints. Numbers
are compared within a tolerance; in text, `...` stands for anything. Of the README every command, those within its
sentences too, is run or stands in NOT_RUN.
"""

import math
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [(ROOT / name).read_text() for name in ("README.md", "docs/upright.md", "docs/deploy.md")]
README = PAGES[0]
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
NUMBER = r"[-+]?\d+(?:\.\d+)?"


def examples(page: str) -> list[tuple[str, str, str]]:
    """(command, language of its answer or "", answer), a command a line; a trailing backslash joins lines."""
    fences = [(match["language"], match["body"]) for match in FENCE.finditer(page)]
    found = []
    for index, (language, body) in enumerate(fences):
        if language != "sh":
            continue
        commands = [line.strip() for line in body.replace("\\\n", "").splitlines() if line.strip()]
        answer = fences[index + 1] if index + 1 < len(fences) and fences[index + 1][0] in ("json", "text") else ("", "")
        found += [(command, "", "") for command in commands[:-1]]
        found.append((commands[-1], *answer))
    return found


EXAMPLES = [example for page in PAGES for example in examples(page)]


def within_sentences() -> list[str]:
    """The commands of the README that stand in no fence: code of several words that does not begin with an option."""
    spans = (" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", README)))
    return [span for span in spans if " " in span and not span.startswith("-")]


WITHIN_SENTENCES = within_sentences()
NOT_RUN = {
    "make test": "is what runs the tests",
    "make lint": "judges the text of the code and no behaviour; .ci/run runs it",
    "make bench": "measures for two minutes, which needs cores of its own",
    "pip install 'tritonclient[http]'": "needs a network; the tests' environment has what it installs",
    "python -m pip install --constraint constraints.txt --editable '.[figures]'": "needs a network",
    "python -m training seeds training/configs/equivae-svhn-paper.yaml --seeds 1 2 3 4 5 --output svhn.jsonl --test": (
        "needs SVHN, which is not here"
    ),
    "pytest -m cuda": "needs a GPU",
    "python -m benchmarks.gpu": "needs a GPU",
}
"""A command of the README, and why no test runs it."""


def environment(**extra: str) -> dict[str, str]:
    """This interpreter's own environment stands in for .venv, so that nothing is installed twice."""
    return os.environ | {"VENV": sys.prefix} | extra


def compare_text(stated: str, printed: str, *, relative: float = 0.0, absolute: float = 0.0) -> None:
    """`stated` stands in `printed`, where `...` is anything and numbers are as near as the tolerances say."""
    parts = re.split(rf"(\.\.\.|{NUMBER})", stated.strip())
    escaped = (
        ".*?" if part == "..." else f"({NUMBER})" if re.fullmatch(NUMBER, part) else re.escape(part) for part in parts
    )
    found = re.search("".join(escaped), printed, re.DOTALL)
    assert found, f"{stated}\nis not in\n{printed}"
    numbers = [float(part) for part in parts if re.fullmatch(NUMBER, part)]
    for number, measured in zip(numbers, found.groups(), strict=True):
        assert math.isclose(number, float(measured), rel_tol=relative, abs_tol=absolute), f"{number} became {measured}"
