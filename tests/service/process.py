"""The service as a process of its own: started as a user does, or forked from a server that has it imported, which
saves the second and a half that the imports take.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

from service.settings import ENV_PREFIX
from tests.forked import ForkedProcess

ROOT = Path(__file__).parents[2]
FORKED = multiprocessing.get_context("forkserver")
# Besides the one of tests/training/process.py, of which a process has one as well, with PyTorch.
SERVER = forkserver.ForkServer()
SERVER.set_forkserver_preload(["service.__main__", "service.api", "onnxruntime", "uvloop", "httptools"])


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return clean | {"PYTHONPATH": str(ROOT)} | extra


def run(*arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**extra), timeout=60)


@contextmanager
def started(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A running service, as a user starts it. Its standard error is a pipe."""
    command = [sys.executable, "-m", "service", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Forked(ForkedProcess):
    """stderr: what the process writes there, unless that goes to a file."""

    def __init__(
        self, arguments: tuple[str, ...], code: str, env: Mapping[str, str], cwd: str | None, stderr: TextIO | None
    ) -> None:
        read, write = os.pipe()
        self.stderr = os.fdopen(read)
        target = _Descriptor(stderr.fileno() if stderr else write)
        process = FORKED.Process(target=_main, args=(arguments, code, dict(env), cwd, target))
        with patch.object(forkserver, "connect_to_new_process", SERVER.connect_to_new_process):
            process.start()
        os.close(write)
        super().__init__(process)

    def end(self) -> None:
        super().end()
        self.stderr.close()


class _Descriptor:
    """A file descriptor that goes to the new process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.number),)


def _received(sent: Any) -> _Descriptor:
    return _Descriptor(sent.detach())


@contextmanager
def forked(
    *arguments: str,
    code: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stderr: TextIO | None = None,
) -> Iterator[Forked]:
    """A running service; `code` is run before it, in its process. Its standard error is a pipe by default."""
    process = Forked(arguments, code, environment() if env is None else env, cwd, stderr)
    try:
        yield process
    finally:
        process.end()


def _main(arguments: tuple[str, ...], code: str, env: dict[str, str], cwd: str | None, stderr: _Descriptor) -> None:
    os.dup2(stderr.number, sys.stderr.fileno())
    os.close(stderr.number)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # which follows from the environment
    if cwd is not None:
        os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    exec(code, {})
    from service.__main__ import main

    sys.exit(main(arguments))
