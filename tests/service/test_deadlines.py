"""Deadlines: at admission, while waiting, before the answer is written; 504, and no work for nobody."""

import asyncio
import math
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from service.batching import Batcher
from service.deadlines import Deadline, read_deadline, smoothed
from service.engine import Engine
from service.errors import CorruptImage, DeadlineExceeded, InvalidHeader
from tests.service import tiny
from tests.service.test_batching import Doubler, here, rows, run, soon

PNG = {"content-type": "image/png"}
HEADER = "x-request-timeout-ms"
Serve = Callable[..., str]


def classify(url: str, body: bytes | None = None, **headers: str) -> httpx.Response:
    content = tiny.png() if body is None else body
    return httpx.post(f"{url}/classify", content=content, headers=PNG | headers, trust_env=False, timeout=30)


def test_the_header_shortens_the_default_and_never_lengthens_it() -> None:
    assert read_deadline({}, 100.0, 60.0).at == 160.0
    assert read_deadline({HEADER.encode(): b"1500"}, 100.0, 60.0).at == 101.5
    assert read_deadline({HEADER.encode(): b"999999999"}, 100.0, 60.0).at == 160.0


@pytest.mark.parametrize("given", [b"", b"0", b"-1", b"1.5", b"abc", b"1e3", b" 5", b"1" * 10, b"\xff", b"+5"])
def test_a_header_that_is_no_number_of_milliseconds(given: bytes) -> None:
    with pytest.raises(InvalidHeader, match="whole number of milliseconds from 1 to 999,999,999, in at most 9 digits"):
        read_deadline({HEADER.encode(): given}, 0.0, 60.0)


def test_a_wrong_header_is_a_problem(client: httpx.Client) -> None:
    response = client.post("/classify", content=tiny.png(), headers=PNG | {HEADER: "soon"})
    assert (response.status_code, response.json()["type"]) == (400, "urn:equipoise:problem:invalid-header")


def test_a_generous_deadline_changes_nothing(client: httpx.Client) -> None:
    assert client.post("/classify", content=tiny.png(), headers=PNG | {HEADER: "20000"}).status_code == 200


def test_durations_are_averaged_from_the_first_one_on() -> None:
    assert smoothed(0.0, 2.0) == 2.0
    assert 2.0 < smoothed(2.0, 3.0) < 3.0


def test_a_run_that_hangs_is_504_for_who_is_in_it_and_who_waits(
    tiny_store: Path, serve: Serve, gate: threading.Event
) -> None:
    url = serve(tiny_store, inline_milliseconds=0, max_batch=1)
    with ThreadPoolExecutor(4) as pool:
        start = time.monotonic()
        asked = [pool.submit(classify, url, **{HEADER: "300"}) for _ in range(4)]
        answers = [future.result() for future in asked]
        assert time.monotonic() - start < 10
    assert [answer.status_code for answer in answers] == [504] * 4
    assert {answer.json()["type"] for answer in answers} == {"urn:equipoise:problem:deadline-exceeded"}
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    assert "equipoise_accepted_images 0.0" in text
    (dropped,) = re.findall(r'dropped_images_total\{capability="classify".*reason="deadline".*\} (\S+)', text)
    assert float(dropped) == 3  # the fourth was in the run
    assert 'equipoise_queue_depth_images{capability="classify",model="tiny",version="1"} 0.0' in text
    gate.set()
    assert classify(url).status_code == 200


def test_the_default_deadline_is_a_setting(tiny_store: Path, serve: Serve, gate: threading.Event) -> None:
    url = serve(tiny_store, inline_milliseconds=0, request_timeout_seconds=0.3)
    assert classify(url).status_code == 504
    gate.set()


def test_an_answer_that_comes_too_late_is_not_written(
    tiny_store: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Engine.run
    url = serve(tiny_store)
    monkeypatch.setattr(Engine, "run", lambda self, inputs: (time.sleep(0.2), genuine(self, inputs))[1])
    assert classify(url, **{HEADER: "100"}).status_code == 504
    assert classify(url, **{HEADER: "20000"}).status_code == 200


def test_pictures_that_cannot_be_read_in_time(tiny_store: Path, serve: Serve) -> None:
    """A photograph is decoded in the pool; who waits for it hears in time that it is too late."""
    url = serve(tiny_store)
    body = tiny.encode(np.full((3000, 4000, 3), 240, np.uint8), "JPEG")
    answer = classify(url, body, **{HEADER: "15"})
    assert answer.status_code == 504
    assert classify(url, body).status_code == 200


def test_a_body_that_arrives_too_late(client: httpx.Client) -> None:
    address = urlsplit(str(client.base_url))
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n{HEADER}: 150\r\n\r\n"
    start = time.perf_counter()
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(head.encode() + b"a part")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 504") and b"deadline-exceeded" in answer and b"connection: close" in answer
    assert time.perf_counter() - start < 10  # the body itself has thirty seconds


def test_headers_are_not_read_on_when_it_has_passed(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def slowly(data: bytes, limits: object) -> None:
        read.append(len(data))
        time.sleep(0.05)
        raise CorruptImage("it is")

    monkeypatch.setattr("service.inference.images.accept", slowly)
    files = [("images", bytes(35_000))] * 8  # so many bytes are looked at by the pool
    assert client.post("/classify", files=files, headers={"x-request-timeout-ms": "120"}).status_code == 504
    time.sleep(0.4)
    assert 0 < len(read) < 8


def test_who_would_wait_too_long_is_refused_at_once(executor: ThreadPoolExecutor) -> None:
    engine = Doubler(max_batch=1, inline=False, seconds=0.05)
    engine.run_seconds = 0.05

    async def scenario(batcher: Batcher) -> None:
        waiting = [asyncio.create_task(batcher.run(rows(value), soon(), here)) for value in range(10)]
        await asyncio.sleep(0)
        assert batcher.wait_seconds == pytest.approx(0.5)
        start = time.perf_counter()
        with pytest.raises(DeadlineExceeded) as refusal:
            await batcher.run(rows(10), soon(0.2), here)
        assert time.perf_counter() - start < 0.05
        assert refusal.value.extensions["wait_seconds"] == pytest.approx(0.5, abs=0.01)
        await batcher.run(rows(11), soon(), here)
        await asyncio.gather(*waiting)
        assert batcher.wait_seconds == 0

    run(engine, executor, scenario)
    assert [10.0] not in engine.batches


def test_of_a_large_request_nobody_waits_for_more_than_its_share(executor: ThreadPoolExecutor) -> None:
    engine = Doubler(max_batch=8, inline=False, seconds=0.02)
    engine.run_seconds = 0.02

    async def scenario(batcher: Batcher) -> None:
        large = asyncio.create_task(batcher.run(rows(*range(80)), soon(), here))
        await asyncio.sleep(0.01)
        assert batcher.depth == 72 and batcher.wait_seconds == pytest.approx(0.02)
        await batcher.run(rows(100), soon(0.15), here)  # ten batches would be too late
        assert not large.done()
        await large
        assert batcher.depth == batcher.wait_seconds == 0

    run(engine, executor, scenario)


@pytest.mark.parametrize("inline", [True, False])
def test_who_is_late_in_the_queue_is_dropped_and_never_run(executor: ThreadPoolExecutor, inline: bool) -> None:
    engine = Doubler(max_batch=1, inline=inline, seconds=0.1)

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.run(rows(1), soon(), here))
        second = asyncio.create_task(batcher.run(rows(2, 3), soon(0.05), here))
        third = asyncio.create_task(batcher.run(rows(4), soon(), here))
        with pytest.raises(DeadlineExceeded):
            await second
        assert (await first).outputs[0].tolist() == [[2]]
        assert (await third).outputs[0].tolist() == [[8]]
        assert batcher.depth == 0

    _, counts = run(engine, executor, scenario)
    assert engine.batches == [[1], [4]]
    assert counts.gone == {"deadline": 2}


def test_a_deadline_without_end_is_none(executor: ThreadPoolExecutor) -> None:
    Deadline(math.inf).check(1e9)

    async def scenario(batcher: Batcher) -> None:
        assert (await batcher.run(rows(1), Deadline(math.inf), here)).outputs[0].tolist() == [[2]]

    run(Doubler(), executor, scenario)
