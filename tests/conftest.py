"""Fixtures for every test that needs a real server on a real socket."""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest


def pytest_collection_finish() -> None:
    """Leave what was imported out of later garbage collections: a walk over all of torch, many times a second."""
    gc.freeze()


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`serve(store, **settings)` starts a server and gives its URL; it stops with the test."""
    from service.settings import Settings  # the other packages' tests do without the service
    from tests.server import running_server

    with ExitStack() as stack:

        def start(store: Path, *, ready: bool = True, **settings: object) -> str:
            return stack.enter_context(running_server(Settings(model_store=store, **settings), ready=ready))

        yield start
