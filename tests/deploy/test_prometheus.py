"""Debian's Prometheus with docker/prometheus/prometheus.yaml scrapes a running service, evaluates the alert rules and
answers queries.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.settings import Settings
from tests.deploy.manifests import load, of_kind
from tests.server import running_server
from tests.service import tiny

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "docker" / "prometheus" / "prometheus.yaml"
WAIT_SECONDS = 60

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed: apt-get install prometheus"
)


def configuration(*targets: str) -> dict[str, Any]:
    """The committed one; only the targets' addresses, the rules' path and the intervals are this test's. And the first
    target once more, as the operator configures it.
    """
    content: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text())
    content["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    assert content["rule_files"] == ["/etc/prometheus/alerts.yaml"]
    content["rule_files"] = [str(ROOT / "observability" / "alerts.yaml")]
    (job,) = content["scrape_configs"]
    assert job["dns_sd_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": list(targets)}]
    content["scrape_configs"].append(of_the_operator(targets[0]))
    return content


def of_the_operator(target: str) -> dict[str, Any]:
    """For the ServiceMonitor: the name of the port is a label `endpoint` of every target."""
    (monitor,) = of_kind(load("observability"), "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    return {
        "job_name": "operator",
        "honor_labels": endpoint.get("honorLabels", False),
        "static_configs": [{"targets": [target], "labels": {"endpoint": endpoint["port"]}}],
    }


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("scraped-store")
    tiny.write(store)
    with running_server(Settings(model_store=store)) as url:
        yield url


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def gone() -> str:
    """Where a second replica would be."""
    return free_address()


@pytest.fixture(scope="module")
def prometheus(service_url: str, gone: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration(service_url.removeprefix("http://"), gone)))
    address = free_address()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=10) as client:
            eventually(lambda: _answers(client))
            yield client
    finally:
        process.terminate()
        process.wait(10)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def eventually(holds: Callable[[], Any]) -> Any:
    """What `holds` gives, as soon as it is something."""
    end = time.monotonic() + WAIT_SECONDS
    while not (found := holds()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


def query(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    answer = prometheus.get("/api/v1/query", params={"query": expression}).raise_for_status().json()
    assert answer["status"] == "success", answer
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def test_the_service_is_scraped(prometheus: httpx.Client, service_url: str) -> None:
    def scraped() -> list[dict[str, Any]]:
        targets = prometheus.get("/api/v1/targets").json()["data"]["activeTargets"]
        asked = [target for target in targets if target["labels"]["job"] == "equipoise"]
        here = [target for target in asked if target["scrapeUrl"] == f"{service_url}/metrics"]
        return [target for target in here if target["health"] != "unknown"]

    (target,) = eventually(scraped)
    assert (target["health"], target["lastError"]) == ("up", "")


def test_a_query_counts_the_requests_that_were_sent(prometheus: httpx.Client, service_url: str) -> None:
    for _ in range(5):
        headers = {"Content-Type": "image/png"}
        httpx.post(f"{service_url}/classify", content=tiny.png(), headers=headers, trust_env=False).raise_for_status()
    for job in ("equipoise", "operator"):
        counted = f'sum(equipoise_requests_total{{job="{job}",endpoint="classify",status="200"}}) == 5'
        eventually(lambda counted=counted: query(prometheus, counted))
    (latency,) = query(prometheus, "histogram_quantile(0.99, sum by (le) (equipoise_request_duration_seconds_bucket))")
    assert 0 < float(latency["value"][1]) < 60


def test_every_alert_rule_is_evaluated(prometheus: httpx.Client) -> None:
    def evaluated() -> list[dict[str, Any]]:
        groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        rules = [each for group in groups for each in group["rules"]]
        return rules if all(each["health"] != "unknown" for each in rules) else []

    rules = eventually(evaluated)
    written = yaml.safe_load((ROOT / "observability" / "alerts.yaml").read_text())
    assert {each["name"] for each in rules} == {each["alert"] for group in written["groups"] for each in group["rules"]}
    assert [(each["name"], each.get("lastError")) for each in rules if each["health"] != "ok"] == []


def test_the_alert_for_a_replica_that_is_gone_is_pending(prometheus: httpx.Client, gone: str) -> None:
    (alert,) = eventually(lambda: query(prometheus, 'ALERTS{alertname="EquipoiseDown"}'))
    assert (alert["metric"]["instance"], alert["metric"]["alertstate"]) == (gone, "pending")
