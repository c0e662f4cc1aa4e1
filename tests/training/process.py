"""`python -m training` as a process of its own which need not import PyTorch for five seconds: it is forked from a
server that has it imported. Some tests start the command itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lightning_fabric.plugins.environments.lightning import find_free_network_port

from tests.forked import ForkedProcess

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.training.preloaded"])


@contextmanager
def started(arguments: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[ForkedProcess]:
    """`python -m training` with these arguments and this environment; what it prints is added to `log`."""
    forked = FORKED.Process(target=_main, args=([*arguments], dict(env), log))
    forked.start()
    process = ForkedProcess(forked)
    try:
        yield process
    finally:
        process.end()


def run_ranks(
    count: int, arguments: Sequence[str], env: Mapping[str, str], log: Path, timeout: float
) -> list[int | None]:
    """The exit statuses of so many such processes that train together, each told its part as a launcher does."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        "WORLD_SIZE": str(count),
        "NODE_RANK": "0",
    }
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(started(arguments, {**env, **shared, "LOCAL_RANK": str(rank)}, log))
            for rank in range(count)
        ]
        return [rank.wait(timeout) for rank in ranks]


def _main(arguments: list[str], env: dict[str, str], log: Path) -> None:
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(log.parent)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["training", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    from training.__main__ import main

    main()
