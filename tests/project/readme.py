"""What the README, docs/upright.md and docs/deploy.md say, for the tests that run it.

A fence of ```sh is commands; a fence of ```json or ```text right behind it is what the last of them prints. Numbers
are compared within a tolerance; in text, `...` stands for anything. `make test` alone is not run from here.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [(ROOT / name).read_text() for name in ("README.md", "docs/upright.md", "docs/deploy.md")]
README = PAGES[0]
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = r"[-+]?\d+(?:\.\d+)?"


def examples() -> list[tuple[str, str, str]]:
    """(command, language of its answer or "", answer), a command a line; a trailing backslash joins lines."""
    fences = [(match["language"], match["body"]) for page in PAGES for match in FENCE.finditer(page)]
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


def environment(**extra: str) -> dict[str, str]:
    """This interpreter's own environment stands in for .venv, so that nothing is installed twice."""
    return os.environ | {"VENV": sys.prefix} | extra


def pattern(text: str) -> re.Pattern[str]:
    """Text in which any number may differ (they are compared apart) and `...` is anything."""
    parts = re.split(rf"(\.\.\.|{NUMBER})", text.strip())
    escaped = (
        ".*?" if part == "..." else f"({NUMBER})" if re.fullmatch(NUMBER, part) else re.escape(part) for part in parts
    )
    return re.compile("".join(escaped), re.DOTALL)
