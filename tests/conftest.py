"""Fixtures for every test that needs a real server on a real socket."""

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest


def pytest_collection_finish() -> None:
    """Leave what was imported out of later garbage collections: a walk over all of torch, many times a second."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def authorities_read_once() -> Iterator[None]:
    """Every client of httpx reads the certificates of all authorities: 50 ms, ten times what a request here takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", functools.cache(httpx.create_ssl_context))
        yield


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`serve(store, **settings)` starts a server and gives its URL; it stops with the test."""
    from service.settings import Settings  # the other packages' tests do without the service
    from tests.server import running_server

    with ExitStack() as stack:

        def start(store: Path, *, ready: bool = True, **settings: object) -> str:
            return stack.enter_context(running_server(Settings(model_store=store, **settings), ready=ready))

        yield start
