"""What is no request yet: heads that are too large, too slow or no HTTP, answered before anything is asked for them."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.connection import MOST_HEAD_BYTES
from service.headers import SECURITY_HEADERS
from service.schemas import Problem
from service.settings import Settings
from tests.server import running_server
from tests.service import tiny
from tests.service.test_admission import connect, read

SECONDS = 0.5
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def address(tiny_store: Path) -> Iterator[str]:
    with running_server(Settings(model_store=tiny_store, body_timeout_seconds=SECONDS, keep_alive_seconds=1)) as url:
        yield url


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while more := connection.recv(65536):
        data += more
    return data


def last_answer(connection: socket.socket) -> Problem:
    """The only answer on a connection that is then closed; it has what every answer has."""
    data = read_all(connection)
    assert data.count(b"HTTP/1.1 ") == 1, data
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    problem = Problem.model_validate_json(body)
    assert status.startswith(f"HTTP/1.1 {problem.status} ")
    assert headers | {name.decode(): text.decode() for name, text in SECURITY_HEADERS} == headers
    assert headers["content-type"] == "application/problem+json" and headers["connection"] == "close"
    assert headers["content-length"] == str(len(body)) and "date" in headers
    assert problem.instance == f"urn:request:{headers['x-request-id']}"
    return problem


def test_the_id_of_a_head_past_the_limit_is_taken_over_where_it_had_come(address: str) -> None:
    for sent, expected in ((b"X-Request-ID: mine\r\nX: ", "urn:request:mine"), (b"X-Request-ID: no good\r\nX: ", "")):
        with connect(address) as connection:
            connection.sendall(GET + sent + b"a" * MOST_HEAD_BYTES + b"\r\n\r\n")
            instance = str(last_answer(connection).instance)
        assert instance == expected or not expected and re.fullmatch(r"urn:request:[0-9a-f]{12}-[0-9a-f]+", instance)
    with connect(address) as connection:  # another request's id is none of this one's
        connection.sendall(GET + b"X-Request-ID: mine\r\n\r\n")
        assert b"x-request-id: mine" in read(connection, b"}")
        connection.sendall(b"BREW /coffee HTTP/1.1\r\nHost: x\r\n\r\n")
        assert last_answer(connection).instance != "urn:request:mine"


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X: " + b"a" * MOST_HEAD_BYTES + b"\r\n\r\n" + GET + b"\r\n",
        GET + b"X: a\r\n" * (MOST_HEAD_BYTES // 32) + b"\r\n",
        b"GET /healthz?" + b"a" * MOST_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["header", "headers", "url"],
)
def test_a_head_past_the_limit_is_refused(address: str, head: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(head)
        assert last_answer(connection).type == "urn:equipoise:problem:head-too-large"
    assert httpx.get(f"{address}/healthz", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    "head",
    [GET + b"X: ", GET + b"X", b"GET /", CHUNKED + b"1\r\na\r\n0\r\nX: "],
    ids=["value", "name", "url", "trailer"],
)
def test_a_head_without_end_is_refused_while_it_arrives(address: str, head: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(head)
        for _ in range(64):
            connection.sendall(b"a" * 16 * 1024)
        assert last_answer(connection).status == 431


def test_a_head_within_the_limit_and_a_long_body_after_it_are_read(address: str) -> None:
    with connect(address) as connection:
        connection.sendall(GET + b"X: " + b"a" * (MOST_HEAD_BYTES - 1000) + b"\r\n\r\n")
        assert read(connection, b"}").startswith(b"HTTP/1.1 200 ")
        picture = tiny.png()
        connection.sendall(
            CHUNKED + b"".join(b"%x\r\n%b\r\n" % (1, picture[at : at + 1]) for at in range(len(picture)))
        )
        connection.sendall(b"0\r\n\r\n")
        assert read(connection, b"}").startswith(b"HTTP/1.1 200 ")
    longest = bytes(4 * MOST_HEAD_BYTES)
    assert httpx.post(f"{address}/classify", content=longest, trust_env=False).json()["type"].endswith("not-an-image")


def test_a_slow_head_is_refused_and_a_slow_start_closed(address: str) -> None:
    start = time.monotonic()
    with connect(address) as silent, connect(address) as empty, connect(address) as slow:
        empty.sendall(b"\r\n")
        for byte in GET[:12]:
            slow.sendall(bytes([byte]))
            time.sleep(0.02)
        assert last_answer(slow).type == "urn:equipoise:problem:head-timeout"
        assert read_all(silent) == read_all(empty) == b""
    assert SECONDS < time.monotonic() - start < 10


def test_a_head_in_pieces_is_in_time_for_each_request(address: str) -> None:
    with connect(address) as connection:
        for _ in range(2):
            for piece in (GET[:9], GET[9:], b"\r\n"):
                connection.sendall(piece)
                time.sleep(0.6 * SECONDS / 2)
            assert read(connection, b"}").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"BREW /coffee HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\nabc",
        b"\x16\x03\x01\x02\0",
        GET + b"Bad Header: x\r\n\r\n",
        CHUNKED + b"z\r\n",
    ],
    ids=["method", "connect", "tls", "header", "chunk"],
)
def test_what_is_no_http_is_a_problem_too(address: str, sent: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(sent)
        assert last_answer(connection).type == "urn:equipoise:problem:malformed-request"


@pytest.mark.parametrize("wish", [b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk", b"upgrade: websocket"])
@pytest.mark.parametrize(
    "framing", [b"Content-Length: %d\r\n\r\n%b", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"]
)
def test_a_request_for_another_protocol_keeps_its_body(address: str, wish: bytes, framing: bytes) -> None:
    """Its body is no request of its own, whenever it comes, and what follows it is read."""
    body = GET + b"\r\n"
    request = b"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n" + wish + b"\r\n"
    request += framing % (len(body), body)
    plain = GET + b"Connection: Upgrade\r\n" + wish + b"\r\n\r\n"
    head = request.index(b"\r\n\r\n") + 4
    for at in (0, head, head + 20):
        with connect(address) as connection:
            connection.sendall(request[:at])
            time.sleep(0.05)
            connection.sendall(request[at:] + plain + plain + GET + b"Connection: close\r\n\r\n")
            answers = re.findall(rb"HTTP/1.1 (\d+)|problem:([a-z-]+)", read_all(connection))
        assert answers == [(b"400", b""), (b"", b"not-an-image"), (b"200", b""), (b"200", b""), (b"200", b"")]


def test_it_does_not_come_between_a_request_and_its_answer(address: str) -> None:
    with connect(address) as connection:
        connection.sendall(b"GET /models HTTP/1.1\r\nHost: x\r\n\r\nBREW")
        data = read_all(connection)
    assert data.startswith(b"HTTP/1.1 200 ") and data.count(b"HTTP/1.1 ") == 1


def test_they_are_counted(tiny_store: Path, serve: Callable[..., str]) -> None:
    url = serve(tiny_store)
    with connect(url) as connection:
        connection.sendall(b"BREW / HTTP/1.1\r\n\r\n")
        read_all(connection)
    assert 'equipoise_problems_total{type="malformed-request"} 1.0' in httpx.get(f"{url}/metrics", trust_env=False).text
