"""The service as a process of its own, started as a user does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.settings import ENV_PREFIX

ROOT = Path(__file__).parents[2]


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return clean | {"PYTHONPATH": str(ROOT)} | extra


def run(*arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**extra), timeout=60)


@contextmanager
def started(*arguments: str, code: str = "", **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A running service; `code` is run before it, in its process. Its standard error is a pipe by default."""
    if code:
        command = [sys.executable, "-c", f"{code}\nimport sys\nfrom service import __main__\nsys.exit(__main__.main())"]
    else:
        command = [sys.executable, "-m", "service"]
    given = {"stderr": subprocess.PIPE, "text": True, "env": environment()} | options
    process = subprocess.Popen([*command, *arguments], **given)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
