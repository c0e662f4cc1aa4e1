"""Servers with a tiny model and low limits, shared by the tests that do not change them."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.engine import Engine
from service.settings import Settings
from tests.server import running_server
from tests.service import tiny, tiny_pose

MAX_BODY_BYTES = 300_000
MAX_PIXELS = 250_000
MAX_IMAGES = 8
BODY_TIMEOUT_SECONDS = 2.0  # a machine that is busy with other tests may stand still for half a second


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    tiny.write(store)
    return store


def limited(store: Path) -> Settings:
    return Settings(
        model_store=store,
        max_body_bytes=MAX_BODY_BYTES,
        max_pixels=MAX_PIXELS,
        max_images=MAX_IMAGES,
        body_timeout_seconds=BODY_TIMEOUT_SECONDS,
    )


@pytest.fixture(scope="session")
def url(tiny_store: Path) -> Iterator[str]:
    with running_server(limited(tiny_store)) as address:
        yield address


@pytest.fixture(scope="session")
def able_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server whose models have every capability."""
    store = tmp_path_factory.mktemp("every")
    tiny.write(store)
    tiny_pose.write(store, augment=True)
    with running_server(limited(store)) as address:
        yield address


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=10) as opened:
        yield opened


@pytest.fixture(scope="session")
def pose_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a server with a tiny model that estimates a pose."""
    store = tmp_path_factory.mktemp("poses")
    tiny_pose.write(store)
    with (
        running_server(Settings(model_store=store, max_pixels=MAX_PIXELS, max_images=MAX_IMAGES)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=20) as opened,
    ):
        yield opened


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Runs in a device's thread wait until it is set; close to none is there while models are loaded."""
    event = threading.Event()
    run = Engine.run

    def gated(self: Engine, inputs: list) -> list:
        if threading.current_thread().name.startswith("device"):
            event.wait(20)
        return run(self, inputs)

    monkeypatch.setattr(Engine, "run", gated)
    return event
