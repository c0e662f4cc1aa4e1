"""What every request passes: timings, failures, overload, clients who leave."""

import base64
import concurrent.futures
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from contract.picture import MOST_DECODED_BYTES_PER_PIXEL
from contract.picture_png import write_plain_png
from service.budget import Budget
from service.engine import Engine
from service.keys import new_key
from service.settings import MIB, Settings
from tests.service import tiny

PNG = {"content-type": "image/png"}
Serve = Callable[..., str]


def post(url: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/classify", content=tiny.png(), headers=PNG | headers, trust_env=False, timeout=20)


def test_every_answer_carries_its_timings(client: httpx.Client) -> None:
    timing = client.post("/classify", content=tiny.png(), headers=PNG).headers["server-timing"]
    names = re.findall(r"(\w+);dur=\d+\.\d{3}", timing)
    assert names == ["decode", "queue", "infer", "encode", "total"]
    for path in ("/healthz", "/nothing", "/models", "/metrics"):
        assert re.fullmatch(r"total;dur=\d+\.\d{3}", client.get(path).headers["server-timing"])


def test_a_failing_engine_is_a_500_with_one_log_line_and_the_next_request_is_served(
    tiny_store: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = serve(tiny_store)
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", lambda self, inputs: 1 / 0)
        response = post(url, **{"x-request-id": "fails"})
    assert response.status_code == 500
    assert response.json()["type"] == "urn:equipoise:problem:internal-error"
    assert "ZeroDivision" not in response.text and "File" not in response.text
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.facts["request_id"] == "fails"  # type: ignore[attr-defined]
    assert post(url).status_code == 200


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_photograph_waits_for_no_whole_batch(tiny_store: Path, serve: Serve) -> None:
    """The pool, of one thread, takes a batch in pieces."""
    url = serve(tiny_store)
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
    small, photograph = (write_plain_png(picture) for picture in (pixels[:160, :160], pixels))
    batch = {"images": [{"data": base64.b64encode(small).decode()}] * 256}

    def decode_milliseconds(**body: Any) -> float:
        answer = httpx.post(f"{url}/classify", trust_env=False, timeout=60, **body)
        assert answer.status_code == 200
        return float(re.findall(r"decode;dur=([\d.]+)", answer.headers["server-timing"])[0])

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        of_batch = pool.submit(decode_milliseconds, json=batch)
        until(lambda: "equipoise_accepted_images 256.0" in httpx.get(f"{url}/metrics", trust_env=False).text)
        assert decode_milliseconds(content=photograph) < 0.8 * of_batch.result()  # behind all of it: next to 1


def test_a_full_queue_is_429_at_once_with_retry_after(tiny_store: Path, serve: Serve, gate: threading.Event) -> None:
    url = serve(tiny_store, inline_milliseconds=0, queue_images=4, max_images=4)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        held = [pool.submit(post, url) for _ in range(4)]
        until(lambda: "equipoise_accepted_images 4.0" in httpx.get(f"{url}/metrics", trust_env=False).text)
        start = time.monotonic()
        refused = post(url)
        assert time.monotonic() - start < 2
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:equipoise:problem:queue-full"
        assert 1 <= int(refused.headers["retry-after"]) == refused.json()["retry_after"]
        counted = httpx.get(f"{url}/metrics", trust_env=False).text
        assert 'requests_total{endpoint="classify",status="429"} 1.0' in counted
        for size, closes in ((1000, False), (2 * MIB, True)):  # nobody waits for what would be refused anyway
            with send_body(url, size, 10) as slow:
                answer = slow.recv(65536)
                assert b" 429 " in answer.split(b"\r\n", 1)[0]
                assert (b"connection: close" in answer) == closes
                if not closes:  # the same connection serves for the next try
                    slow.sendall(bytes(size - 10) + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert b" 200 " in slow.recv(65536).split(b"\r\n", 1)[0]
        for path, status in (("/healthz", 200), ("/models", 200), ("/nowhere", 404)):
            assert httpx.get(f"{url}{path}", trust_env=False).status_code == status
        gate.set()
        assert [future.result().status_code for future in held] == [200] * 4
    assert post(url).status_code == 200


def test_a_full_queue_is_said_before_a_key_is_asked_for(
    tiny_store: Path, serve: Serve, gate: threading.Event, tmp_path: Path
) -> None:
    key, line = new_key()
    (tmp_path / "keys").write_text(line)
    url = serve(tiny_store, inline_milliseconds=0, queue_images=1, max_images=1, api_keys=tmp_path / "keys")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(post, url, **{"authorization": f"Bearer {key}"})
        until(lambda: "equipoise_accepted_images 1.0" in httpx.get(f"{url}/metrics", trust_env=False).text)
        assert post(url).status_code == 429
        gate.set()
        assert held.result().status_code == 200
    assert post(url).status_code == 401


def send_body(url: str, size: int, sent: int) -> socket.socket:
    """A connection that has declared a body of `size` bytes and sent `sent` of them."""
    connection = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=20)
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode() + bytes(sent))
    return connection


def test_bodies_that_are_still_arriving_take_room(tiny_store: Path, serve: Serve) -> None:
    url = serve(tiny_store, max_pixels=10_000, max_body_bytes=4 * MIB, queue_bytes=8 * MIB)

    def accepted_bytes() -> float:
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        return float(re.findall(r"^equipoise_accepted_bytes (\S+)$", text, re.MULTILINE)[0])

    with ExitStack() as stack:
        for count in (1, 2):
            stack.enter_context(send_body(url, 4 * MIB, 4 * MIB - 1))
            until(lambda count=count: accepted_bytes() == count * (3 * MIB - 1))  # type: ignore[misc]
        with send_body(url, 4 * MIB, 4 * MIB - 1) as refused:
            answer = refused.recv(65536)
        assert b" 429 " in answer.split(b"\r\n", 1)[0]
        assert b"retry-after: 1\r\n" in answer and b"connection: close\r\n" in answer
        assert post(url).status_code == 200  # small bodies are free
    until(lambda: accepted_bytes() == 0)
    whole = httpx.post(f"{url}/classify", content=tiny.png() + bytes(3 * MIB), headers=PNG, trust_env=False, timeout=20)
    assert whole.status_code == 200
    assert accepted_bytes() == 0


def test_a_client_that_sends_a_far_too_large_body_before_it_reads_gets_its_answer(
    tiny_store: Path, serve: Serve
) -> None:
    with send_body(serve(tiny_store, max_body_bytes=32 * MIB), 64 * MIB, 64 * MIB) as connection:
        time.sleep(0.3)
        assert b" 413 " in connection.recv(65536).split(b"\r\n", 1)[0]


def test_a_client_who_leaves_while_waiting_is_not_worked_for(
    tiny_store: Path, serve: Serve, gate: threading.Event
) -> None:
    url = serve(tiny_store, inline_milliseconds=0, max_batch=1)
    metrics = f"{url}/metrics"
    body = tiny.png()
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url)
        until(lambda: "equipoise_accepted_images 1.0" in httpx.get(metrics, trust_env=False).text)
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
            connection.sendall(head.encode() + body)
            until(lambda: "equipoise_accepted_images 2.0" in httpx.get(metrics, trust_env=False).text)
        time.sleep(0.1)
        gate.set()
        assert first.result().status_code == 200
    dropped = 'equipoise_dropped_images_total{capability="classify",model="tiny",reason="caller_left",version="1"} 1.0'
    until(lambda: dropped in httpx.get(metrics, trust_env=False).text)
    assert "equipoise_accepted_images 0.0" in httpx.get(metrics, trust_env=False).text


def test_many_clients_at_once_each_get_their_own_answer(url: str) -> None:
    pixels = tiny.images(64, 21)
    expected = tiny.embed(tiny.as_input(pixels))

    def ask(number: int) -> bool:
        with httpx.Client(base_url=url, trust_env=False) as client:
            for turn in range(5):
                index = (number + turn * 13) % 64
                got = client.post("/embed", content=tiny.encode(pixels[index]), headers=PNG).json()["embedding"]
                if max(abs(a - b) for a, b in zip(got, expected[index], strict=True)) > 1e-4:
                    return False
        return True

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(32)))


def test_metrics_count_what_happened(tiny_store: Path, serve: Serve) -> None:
    url = serve(tiny_store)
    for _ in range(3):
        post(url)
    httpx.post(f"{url}/classify", content=b"?", headers=PNG, trust_env=False)
    httpx.get(f"{url}/made-up-path", trust_env=False)
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    labels = 'capability="classify",model="tiny",version="1"'
    for line in (
        'equipoise_requests_total{endpoint="classify",status="200"} 3.0',
        'equipoise_requests_total{endpoint="classify",status="400"} 1.0',
        'equipoise_requests_total{endpoint="other",status="404"} 1.0',
        'equipoise_problems_total{type="not-an-image"} 1.0',
        f"equipoise_images_total{{{labels}}} 3.0",
        f"equipoise_batch_images_count{{{labels}}} 3.0",
        'equipoise_stage_duration_seconds_count{stage="infer"} 3.0',
        'equipoise_model_info{kind="equivae",model="tiny",version="1"} 1.0',
        "equipoise_requests_in_flight 1.0",
    ):
        assert line in text, line
    assert "made-up" not in text


def test_unexpected_failures_outside_inference_are_problems_too(
    tiny_store: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """FastAPI's own routes included; each is logged once."""
    url = serve(tiny_store)
    monkeypatch.setattr("service.routes.models.describe", lambda model: 1 / 0)
    monkeypatch.setattr("service.api._openapi", lambda app, keys: 1 / 0)
    for path in ("/models", "/openapi.json"):
        caplog.clear()
        response = httpx.get(f"{url}{path}", trust_env=False)
        assert response.status_code == 500
        assert json.loads(response.text)["type"] == "urn:equipoise:problem:internal-error"
        assert [record.message for record in caplog.records] == ["request failed"]


def test_a_photograph_is_decoded_beside_small_pictures(tiny_store: Path, serve: Serve) -> None:
    """12 megapixels take the pool; meanwhile small pictures are answered by the event loop."""
    url = serve(tiny_store)
    shade = np.linspace(200, 255, 4000, dtype=np.uint8)
    photograph = np.repeat(shade[None], 3000, axis=0)
    photograph[1000:2000, 1500:2200] = 30
    body = tiny.encode(np.stack([photograph] * 3, axis=2), "JPEG")
    with concurrent.futures.ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, trust_env=False) as client:
        large = pool.submit(client.post, "/classify", content=body, timeout=60)
        small = 0
        while not large.done():
            assert post(url).status_code == 200
            small += 1
    answer = large.result().json()
    assert (answer["input"]["width"], answer["input"]["height"]) == (4000, 3000)
    assert answer["input"]["polarity"] == "dark"
    assert small >= 1


def test_a_large_batch_is_answered_in_order(tiny_store: Path, serve: Serve) -> None:
    url = serve(tiny_store)
    pixels = tiny.images(1024, 3)
    images = [{"data": base64.b64encode(tiny.encode(image)).decode()} for image in pixels]
    images[500] = {"data": "?"}
    response = httpx.post(f"{url}/embed", json={"images": images}, trust_env=False, timeout=60)
    results = response.json()["results"]
    assert "problem" in results[500]
    rest = [place for place in range(1024) if place != 500]
    got = np.array([results[place]["embedding"] for place in rest])
    np.testing.assert_allclose(got, tiny.embed(tiny.as_input(pixels))[rest], rtol=1e-3, atol=1e-4)
    single = httpx.post(f"{url}/embed", content=tiny.encode(pixels[7]), trust_env=False).json()
    np.testing.assert_allclose(single["embedding"], results[7]["embedding"], atol=1e-5)


def test_the_largest_picture_of_any_kind_is_accepted_by_the_default_settings() -> None:
    """What the limits let in must fit the budget, or it would be refused for ever as if the service were busy."""
    settings = Settings()
    most = settings.max_body_bytes + MOST_DECODED_BYTES_PER_PIXEL * settings.max_pixels
    with Budget(settings.queue_images, settings.queue_bytes).acquire(1, most):
        pass
    with pytest.raises(ValueError, match="queue_bytes"):
        Settings(queue_bytes=most - 1)


def test_pictures_of_one_request_are_decoded_one_after_the_other(tiny_store: Path, serve: Serve) -> None:
    """So that it is the largest one, not their sum, that has to fit the budget."""
    url = serve(tiny_store, max_pixels=250_000, max_body_bytes=1_000_000, queue_bytes=5_500_000)
    photograph = np.full((500, 500, 3), 240, np.uint8)
    photograph[100:300, 200:300] = 20
    form = [("images", tiny.encode(photograph))] * 6
    response = httpx.post(f"{url}/classify", files=form, trust_env=False, timeout=60)
    assert response.status_code == 200, response.text
    assert all("label" in result for result in response.json()["results"])


def test_single_pictures_are_answered_while_a_thousand_wait(tiny_store: Path, serve: Serve) -> None:
    """A request of 1,000 pictures is run in parts, and single ones have their turn between them."""
    url = serve(tiny_store, max_batch=8)
    image = {"data": base64.b64encode(tiny.png()).decode()}
    before = 0
    with concurrent.futures.ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, trust_env=False) as client:
        large = pool.submit(client.post, "/classify", json={"images": [image] * 1000}, timeout=60)
        while not large.done():
            single = client.post("/classify", content=tiny.png(), headers={"Content-Type": "image/png"})
            assert single.status_code == 200
            before += 1
    assert len(large.result().json()["results"]) == 1000
    assert before >= 2  # the first may have come before the large one


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/startupz", "/models", "/metrics", "/docs", "/openapi.json"])
def test_head_is_answered_as_get_without_a_body(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"") and whole.content
    assert head.headers["content-type"] == whole.headers["content-type"]
    if path != "/metrics":  # which say more with every request
        assert head.headers["content-length"] == whole.headers["content-length"]


def test_head_of_the_protocol_and_of_what_cannot_be_got(client: httpx.Client) -> None:
    for path, status in (("/v2/models/tiny", 200), ("/v2/models/other", 404), ("/classify", 405), ("/nothing", 404)):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (status, b"")
    assert client.post("/healthz").headers["allow"] == "GET, HEAD"
