"""Fixtures for every test that needs a real server on a real socket, or the service's command line."""

import functools
import gc
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from xdist.scheduler import LoadFileScheduling

# Files that are one worker's, since they share what takes seconds of its own in every process.
TOGETHER = (
    # One server with all shipped models.
    [f"tests/project/test_{name}.py" for name in ("readme", "protocol", "shipped_models", "shipped_upright")],
    # Finished runs of small models.
    [f"tests/training/test_{name}.py" for name in ("evaluate", "export", "figures", "run")],
    [f"tests/training/test_{name}.py" for name in ("pose", "pose_figures")],
    # The server of tests/service/process.py.
    [f"tests/service/test_{name}.py" for name in ("lifecycle", "main")],
    # The server of tests/training/process.py, with PyTorch.
    ["tests/training/test_fit.py", "tests/deploy/test_training_job.py"],
)


class FilesTogether(LoadFileScheduling):
    """A worker gets whole files, and those that belong together."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((files[0] for files in TOGETHER if file in files), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether | None:
    return FilesTogether(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """No garbage is collected while the tests are imported, and later none of what was: a walk over all of torch, many
    times a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def authorities_read_once() -> Iterator[None]:
    """Every client of httpx reads the certificates of all authorities: 50 ms, ten times what a request here takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", functools.cache(httpx.create_ssl_context))
        yield


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """Where MNIST lies: where training looks for it and downloads it to, or beside the repository."""
    from training.datasets.mnist import FILES, _idx_file
    from training.datasets.storage import data_root

    folders = (data_root(), data_root() / "mnist", Path(__file__).resolve().parents[2] / "shared" / "data")
    for folder in folders:
        if folder.is_file() or (folder / "mnist.npz").is_file() or all(_idx_file(folder, name) for name, _ in FILES):
            return folder
    command = "python -m training train training/configs/equivae-mnist-first.yaml --check"
    pytest.skip(f"needs MNIST in {', '.join(map(str, folders))}; {command} downloads it")


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`serve(store, **settings)` starts a server and gives its URL; it stops with the test."""
    from service.settings import Settings  # the other packages' tests do without the service
    from tests.server import running_server

    with ExitStack() as stack:

        def start(store: Path, *, ready: bool = True, **settings: object) -> str:
            return stack.enter_context(running_server(Settings(model_store=store, **settings), ready=ready))

        yield start


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., "subprocess.CompletedProcess[str]"]]:
    """As `run` of tests/service/process.py, in this process, which has everything imported: for what ends before it
    serves.
    """
    from service import __main__ as command_line
    from service.settings import ENV_PREFIX

    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)
    loggers = [logging.getLogger(name) for name in (None, "equipoise", "uvicorn", "python_multipart", "PIL")]
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def run_here(*arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
        with monkeypatch.context() as patch:
            for name, value in extra.items():
                patch.setenv(name, value)
            try:
                status = command_line.main(arguments)
            except SystemExit as end:  # argparse's way
                status = int(end.code or 0)
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    yield run_here
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
