"""Metrics of what models answer, the access log, and traces as a collector gets them."""

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client import generate_latest
from prometheus_client.core import HistogramMetricFamily

from service.drift import Drift
from service.histograms import Histogram, Registry, Series
from service.settings import Settings
from tests.server import running_server
from tests.service import tiny

Serve = Callable[..., str]


def post(url: str, body: bytes | None = None, **headers: str) -> httpx.Response:
    body = tiny.png() if body is None else body
    return httpx.post(f"{url}/classify", content=body, headers=headers, trust_env=False, timeout=20)


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False).text


def test_novelty_is_a_distribution_a_model(tiny_store: Path, serve: Serve) -> None:
    url = serve(tiny_store)
    scores = [post(url, tiny.png(seed)).json()["novelty"]["score"] for seed in range(5)]
    text = metrics(url)
    labels = 'model="tiny",version="1"'
    assert f"equipoise_novelty_score_count{{{labels}}} 5.0" in text
    total = float(re.findall(rf"^equipoise_novelty_score_sum{{{labels}}} (\S+)$", text, re.MULTILINE)[0])
    assert total == pytest.approx(sum(scores), rel=1e-4)


def test_rotation_is_a_distribution_in_degrees() -> None:
    registry = Registry()
    drift = Drift(registry)
    drift.know("m", 1)
    turn = np.radians(np.array([30.0, -100.0, 179.0]))
    matrix = np.stack([np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1), np.zeros((3, 3))], 1)
    drift.observe("m", 1, {"matrix": matrix.astype(np.float32)})
    registry.fold()
    text = generate_latest(registry).decode()
    assert 'equipoise_rotation_degrees_bucket{le="-90.0",model="m",version="1"} 1.0' in text
    assert 'equipoise_rotation_degrees_bucket{le="0.0",model="m",version="1"} 1.0' in text
    assert 'equipoise_rotation_degrees_bucket{le="60.0",model="m",version="1"} 2.0' in text
    assert 'equipoise_rotation_degrees_bucket{le="180.0",model="m",version="1"} 3.0' in text
    drift.forget("m", 1)
    drift.observe("m", 1, {"matrix": matrix.astype(np.float32)})  # a run that ended after everybody had left
    registry.fold()
    assert 'model="m"' not in generate_latest(registry).decode()


def test_a_value_that_is_not_finite_spoils_no_sum() -> None:
    series = Series([1.0])
    series.extend([0.5, float("nan"), float("inf")])
    series.fold()
    counts, total = series.folded
    assert (counts.tolist(), total) == ([1, 0], 0.5)


def test_a_scrape_stands_in_nobodys_way(tiny_store: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are answered while what the metrics were before is written."""
    begun, go_on = threading.Event(), threading.Event()
    collect = Histogram.collect

    def held(histogram: Histogram) -> Iterator[HistogramMetricFamily]:
        begun.set()
        assert go_on.wait(5)
        return collect(histogram)

    url = serve(tiny_store)
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        patch.setattr(Histogram, "collect", held)
        scraped = pool.submit(metrics, url)
        assert begun.wait(5)
        assert post(url).status_code == 200
        go_on.set()
        assert "equipoise_event_loop_tasks " in scraped.result()
    count = 'equipoise_batch_images_count{capability="classify",model="tiny",version="1"}'
    assert f"{count} 0.0" in scraped.result() and f"{count} 1.0" in metrics(url)


def test_nodes_are_counted_by_provider(url: str) -> None:
    found = re.findall(
        r'^equipoise_graph_nodes\{capability="(\w+)",.*provider="(\w+)".*\} (\S+)$', metrics(url), re.MULTILINE
    )
    assert {capability for capability, _, _ in found} == {"embed", "classify", "recombine"}
    assert all(provider == "CPUExecutionProvider" and float(count) >= 1 for _, provider, count in found)


def records(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [record.facts for record in caplog.records if record.message == "request"]  # type: ignore[attr-defined]


def test_the_access_log_is_sampled_and_has_every_failure(
    tiny_store: Path, serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(tiny_store, access_log_every=10, log_level="info")
    with caplog.at_level(logging.INFO, "equipoise"):
        caplog.clear()
        for _ in range(40):
            post(url, authorization="Bearer secret")
        assert 3 <= len(records(caplog)) <= 5
        entry = next(entry for entry in records(caplog) if entry["endpoint"] == "classify")
        assert (entry["status"], entry["model"], entry["version"]) == (200, "tiny", 1)
        assert {"request_id", "milliseconds", "infer_milliseconds", "queue_milliseconds"} <= set(entry)
        assert "secret" not in str(entry)
        caplog.clear()
        monkeypatch.setattr("service.routes.models.describe", lambda model: 1 / 0)
        for number in range(5):
            httpx.get(f"{url}/models", headers={"x-request-id": f"bad-{number}"}, trust_env=False)
        failed = [entry["request_id"] for entry in records(caplog) if entry["status"] == 500]
        assert failed == [f"bad-{number}" for number in range(5)]
        caplog.clear()
        monkeypatch.setattr("service.model_store.ModelStore.check_ready", lambda store: 1 / 0)
        answers = [httpx.get(f"{url}/readyz", trust_env=False).status_code for _ in range(5)]
        assert answers == [500] * 5 and len(records(caplog)) <= 1  # a probe is one of ten like any other


def test_there_is_no_access_log_unless_asked_for(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "equipoise"):
        post(url)
    assert not records(caplog)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """A collector's URL, and the spans that it has got."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_is_a_span_with_its_stages_below(
    tiny_store: Path, collector: tuple[str, list[Span]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    address, spans = collector
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with running_server(Settings(model_store=tiny_store, otel_endpoint=address, otel_share=0)) as url:
        assert post(url, traceparent=f"00-{trace}-{parent}-01").status_code == 200
        assert post(url, traceparent="nonsense").status_code == 200  # no decision of the caller's, and none are sampled
    server, *stages = sorted(spans, key=lambda span: span.kind != Span.SPAN_KIND_SERVER)
    assert (server.name, server.trace_id.hex(), server.parent_span_id.hex()) == ("POST classify", trace, parent)
    attributes = {item.key: item.value.string_value or item.value.int_value for item in server.attributes}
    assert attributes["http.response.status_code"] == 200 and attributes["equipoise.model"] == "tiny"
    assert [stage.name for stage in stages] == ["decode", "queue", "infer", "encode"]
    for stage in stages:
        assert stage.parent_span_id == server.span_id
        assert server.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= server.end_time_unix_nano


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    program = (
        "import sys, service.__main__; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_extra_a_collector_is_refused(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    program = "import sys; sys.modules['opentelemetry.sdk'] = None; from service.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--model-store", str(tmp_path), "--otel-endpoint", "http://127.0.0.1:9"]
    root = Path(__file__).parents[2]
    done = subprocess.run([*command, "--port", "0"], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "pip install '.[otel]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
