"""Requests that are refused while the queue is full, most of them by their heads, before there is a request."""

import asyncio
import concurrent.futures
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service import throttle
from service.admission import QueueGate
from service.budget import Budget
from service.headers import RequestIds
from service.life import Life
from service.observability import Metrics
from tests.service import tiny

PNG = {"content-type": "image/png"}


@pytest.fixture
def full(tiny_store: Path, serve: Callable[..., str], gate: threading.Event) -> Iterator[str]:
    """A service whose only place is taken until the end."""
    url = serve(tiny_store, inline_milliseconds=0, queue_images=1, max_images=1, access_log_every=1, log_level="info")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(post, url)
        deadline = time.monotonic() + 10
        while "equipoise_accepted_images 1.0" not in httpx.get(f"{url}/metrics", trust_env=False).text:
            assert time.monotonic() < deadline
            if held.done():  # it came in one turn of the event loop with a look at the metrics, which counts there too
                assert held.result().status_code == 429
                held = pool.submit(post, url)
            time.sleep(0.01)
        yield url
        gate.set()
        assert held.result().status_code == 200


def post(url: str, path: str = "/classify", **headers: str) -> httpx.Response:
    return httpx.post(url + path, content=tiny.png(), headers=PNG | headers, trust_env=False, timeout=20)


def connect(url: str) -> socket.socket:
    return socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10)


def read(connection: socket.socket, until: bytes) -> bytes:
    data = b""
    while until not in data:
        more = connection.recv(65536)
        assert more, data
        data += more
    return data


@pytest.mark.parametrize("path", ["/classify", "/embed?model=tiny", "/v2/models/tiny/infer"])
def test_its_answer_is_the_one_that_the_app_gives(full: str, path: str) -> None:
    by_gate = post(full, path, **{"x-request-id": "mine"})
    # A connection that the client closes after the answer is the app's affair.
    by_app = post(full, path, **{"x-request-id": "mine", "connection": "close"})
    assert by_gate.status_code == by_app.status_code == 429
    assert by_gate.json() == by_app.json()
    changing = ("date", "server-timing", "connection")
    assert {k: v for k, v in by_gate.headers.items() if k not in changing} == {
        k: v for k, v in by_app.headers.items() if k not in changing
    }
    assert "date" in by_gate.headers and re.fullmatch(r"total;dur=\d+\.\d{3}", by_gate.headers["server-timing"])


def test_every_refusal_has_an_id_of_its_own_and_is_counted_and_logged(
    full: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="equipoise"):
        answers = [post(full) for _ in range(3)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 3
    assert [answer.json()["instance"] for answer in answers] == [f"urn:request:{number}" for number in ids]
    facts = [record.facts for record in caplog.records if record.message == "request"]  # type: ignore[attr-defined]
    assert [(fact["request_id"], fact["endpoint"], fact["status"], fact["method"]) for fact in facts] == [
        (number, "classify", 429, "POST") for number in ids
    ]
    text = httpx.get(f"{full}/metrics", trust_env=False).text
    assert 'equipoise_requests_total{endpoint="classify",status="429"} 3.0' in text
    assert 'equipoise_problems_total{type="queue-full"} 3.0' in text


def test_a_connection_serves_on_after_a_refusal_whatever_of_its_body_had_arrived(full: str) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    with connect(full) as connection:
        for sent in (0, 10, 1000):
            connection.sendall(head + bytes(sent))
            assert read(connection, b"}").startswith(b"HTTP/1.1 429 ")
            connection.sendall(bytes(1000 - sent))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read(connection, b"}").startswith(b"HTTP/1.1 200 ")


def test_answers_keep_the_order_of_the_requests(full: str) -> None:
    refused = b"POST /classify HTTP/1.1\r\nHost: x\r\nX-Request-ID: %d\r\nContent-Length: 3\r\n\r\nabc"
    with connect(full) as connection:
        connection.sendall(refused % 1 + b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n" + refused % 2 + refused % 3)
        data = read(connection, b"urn:request:3")
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"429", b"200", b"429", b"429"]
    assert re.findall(rb"urn:request:(\d)", data) == [b"1", b"2", b"3"]


def test_a_client_that_asks_before_it_sends_its_body_is_spared_it(full: str) -> None:
    with connect(full) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 429 ")


def test_who_asks_again_without_a_pause_waits_for_his_turn(full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "REFUSALS_A_TICK", 2)
    monkeypatch.setattr(throttle, "TICK_SECONDS", 1.0)
    refused = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    start = time.monotonic()
    with ExitStack() as open_ones:
        connections = [open_ones.enter_context(connect(full)) for _ in range(6)]
        for _ in range(2):
            for connection in connections:
                connection.sendall(refused)
            connections.pop().close()  # it may be waiting, and is gone when its turn comes
            for connection in connections:
                assert read(connection, b"}").startswith(b"HTTP/1.1 429 ")
    assert time.monotonic() - start > 0.9
    assert post(full).status_code == 429


def test_what_is_no_inference_is_let_in(full: str) -> None:
    for path, status in (("/healthz", 405), ("/nowhere", 404), ("/v2x/infer", 404), ("/v2/repository/index", 200)):
        assert post(full, path).status_code in (status, 400)
    assert httpx.get(f"{full}/classify", trust_env=False).status_code == 405


def test_requests_of_one_turn_are_counted_before_they_ask_for_room() -> None:
    """A thousand may arrive in one turn of the event loop, when none of them has its permit yet."""
    assert shut_in_a_turn(Budget(images=3, size=1000), 4) == [False, False, False, True, False]


def shut_in_a_turn(budget: Budget, requests: int) -> list[bool]:
    """Whether the gate is shut when each of them arrives, and in the next turn."""
    gate = QueueGate(budget, Life(), Metrics(budget), RequestIds(), ())

    async def turn() -> list[bool]:
        shut = []
        for _ in range(requests):
            shut.append(gate.is_shut)
            gate.let_in(b"GET", b"/metrics")  # asks for none
            gate.let_in(b"POST", b"/classify")
        await asyncio.sleep(0)
        return [*shut, gate.is_shut]

    return asyncio.run(turn())


@pytest.mark.parametrize("large_before", [0, 100])
def test_single_pictures_are_let_in_beside_a_large_batch(large_before: int) -> None:
    budget = Budget(images=2048, size=1000, wait_seconds=1, batch=32)
    for _ in range(large_before):
        with budget.acquire(1024, 1):
            pass
    with budget.acquire(1024, 1):
        assert not any(shut_in_a_turn(budget, 16))


def test_overload_by_batches_lets_in_as_many_in_a_turn_as_there_is_room_for() -> None:
    budget = Budget(images=2048, size=1000, batch=32)
    with ExitStack() as held:
        for _ in range(62):
            held.enter_context(budget.acquire(32, 1))
        assert shut_in_a_turn(budget, 4) == [False, False, True, True, False]


def test_it_is_open_while_the_service_drains() -> None:
    """The app's answer closes the connection then."""
    budget, life = Budget(images=1, size=1000), Life()
    gate = QueueGate(budget, life, Metrics(budget), RequestIds(), ())
    with budget.acquire(1, 1):
        assert gate.is_shut
        life.draining = True
        assert not gate.is_shut


def test_a_refusal_is_json_of_the_documented_length() -> None:
    budget = Budget(images=1, size=1000)
    gate = QueueGate(budget, Life(), Metrics(budget), RequestIds(), ())
    for request_id in ("a", "b" * 128):
        answer = gate.refuse(b"POST", b"/classify", {b"x-request-id": request_id.encode()}, ((b"date", b"today"),))
        assert answer is not None
        head, _, body = answer.partition(b"\r\n\r\n")
        assert json.loads(body)["instance"] == f"urn:request:{request_id}"
        assert b"\r\ndate: today\r\n" in head and f"\r\ncontent-length: {len(body)}\r\n".encode() in head
    assert gate.refuse(b"POST", b"/classify", {b"content-length": b"9999999"}, ()) is None  # the app lingers for it
