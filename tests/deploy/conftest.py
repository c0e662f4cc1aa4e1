"""The running service as the rules ask it: which paths answer, which metrics exist, which variables training reads."""

import re
from collections.abc import Iterator

import httpx
import pytest
from typer.testing import CliRunner

from service.settings import Settings
from tests.deploy.rules import Service
from tests.server import loading_server, running_server
from tests.service import tiny
from training.__main__ import app


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    store = tmp_path_factory.mktemp("deployed-store")
    tiny.write(store)
    waits = Settings(model_store=tmp_path_factory.mktemp("empty-store"), wait_for_models=True)
    with (
        running_server(Settings(model_store=store)) as url,
        running_server(waits, ready=False) as waiting_url,
        loading_server(Settings(model_store=store)) as (loading_url, _),
        httpx.Client(base_url=url, trust_env=False, timeout=10) as client,
        httpx.Client(base_url=waiting_url, trust_env=False, timeout=10) as waiting,
        httpx.Client(base_url=loading_url, trust_env=False, timeout=10) as loading,
    ):
        yield Service(
            status=lambda path: client.get(path).status_code,
            status_without_model=lambda path: waiting.get(path).status_code,
            status_while_loading=lambda path: loading.get(path).status_code,
            metrics=metric_names(client.get("/metrics").text),
            training_variables=training_variables(),
        )


def metric_names(exposed: str) -> frozenset[str]:
    """Every name that Prometheus stores: families and the series of their samples."""
    return frozenset(
        re.findall(r"^(?:# TYPE )?([a-zA-Z_:][a-zA-Z0-9_:]*)", exposed.replace("# HELP", "#"), re.MULTILINE)
    )


def training_variables() -> frozenset[str]:
    """Variables that the training command line documents in its help."""
    wide = {"COLUMNS": "200", "TERM": "dumb"}
    pages = [
        CliRunner().invoke(app, [command, "--help"], env=wide).output for command in ("train", "evaluate", "export")
    ]
    return frozenset(re.findall(r"EQUIPOISE_TRAINING_[A-Z_]+", "".join(pages)))
