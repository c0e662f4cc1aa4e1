"""A tiny model and a service that has it, for the programs that ask one."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.server import running_server
from tests.service import tiny


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    tiny.write(store)
    return store


@pytest.fixture(scope="session")
def client(tiny_store: Path) -> Iterator[httpx.Client]:
    with (
        running_server(Settings(model_store=tiny_store)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=10) as opened,
    ):
        yield opened
