"""The server around the app: two ports, a bounded number of connections, headers for browsers."""

import asyncio
import gc
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service import connection
from service.__main__ import assemble
from service.schemas import Problem
from service.server import bind_all, url_of
from service.settings import Settings
from tests.service import tiny

Serve = Callable[..., str]


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False)


def test_probes_and_metrics_on_a_port_of_their_own(tiny_store: Path, serve: Serve, free_port: int) -> None:
    url = serve(tiny_store, probe_port=free_port)
    probes = f"http://127.0.0.1:{free_port}"
    for path in ("/startupz", "/healthz", "/readyz", "/v2/health/ready"):
        assert get(url + path).status_code == get(probes + path).status_code == 200
    assert get(f"{probes}/metrics").status_code == 200
    assert get(f"{url}/metrics").status_code == 404
    for path in ("/models", "/docs", "/v2", "/openapi.json"):
        assert get(url + path).status_code == 200
        assert get(probes + path).status_code == 404
    assert httpx.post(f"{probes}/classify", content=tiny.png(), trust_env=False).status_code == 404


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop")
def test_clients_that_come_at_once_are_accepted_in_few_turns(tiny_store: Path) -> None:
    """A turn of the event loop may run a batch, and each handle accepts one client a turn."""
    import uvloop

    async def accept(clients: int, sockets: list[socket.socket]) -> int:
        server = assemble(Settings(model_store=tiny_store), sockets)
        serving = asyncio.create_task(server.serve(sockets=sockets))
        while not server.started:
            await asyncio.sleep(0.01)
        turns = 0
        with ExitStack() as stack:
            for _ in range(clients):
                stack.enter_context(connect(url_of(sockets[0])))
            while len(server.server_state.connections) < clients:
                await asyncio.sleep(0)
                turns += 1
        server.should_exit = True
        await serving
        return turns

    with (
        bind_all(Settings(model_store=tiny_store, port=0)) as sockets,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        assert runner.run(accept(64, sockets)) < 20


@pytest.fixture
def idle(tiny_store: Path, serve: Serve, free_port: int) -> Iterator[tuple[str, str, ExitStack]]:
    """A server for three connections, two of them taken by idle clients."""
    url = serve(tiny_store, max_connections=3, probe_port=free_port)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(url))
        wait_for(f"http://127.0.0.1:{free_port}", "equipoise_connections_open 2.0")
        yield url, f"http://127.0.0.1:{free_port}", stack


def connect(url: str) -> socket.socket:
    return socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10)


def wait_for(probes: str, wanted: str) -> None:
    deadline = time.monotonic() + 10
    while wanted not in (text := get(f"{probes}/metrics").text):
        assert time.monotonic() < deadline, re.findall("equipoise_connections.*", text)
        time.sleep(0.02)


def test_connections_past_the_limit_are_told_so(idle: tuple[str, str, ExitStack]) -> None:
    url, probes, stack = idle
    assert get(f"{url}/healthz").status_code == 200  # the third
    third = stack.enter_context(connect(url))
    wait_for(probes, "equipoise_connections_open 3.0")
    with connect(url) as fourth:
        head, _, body = fourth.recv(65536).partition(b"\r\n\r\n")
        assert fourth.recv(1) == b""
    assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in head
    assert b"cache-control: no-store" in head
    problem = Problem.model_validate_json(body)
    assert problem.type == "urn:equipoise:problem:too-many-connections"
    assert f"x-request-id: {str(problem.instance).removeprefix('urn:request:')}".encode() in head
    wait_for(probes, "equipoise_connections_refused_total 1.0")
    third.close()
    wait_for(probes, "equipoise_connections_open 2.0")
    assert get(f"{url}/healthz").status_code == 200


@pytest.mark.parametrize(("head", "body"), [(20_000, 0), (3_000_000, 0), (0, 20_000), (0, 3_000_000)])
def test_connections_past_the_limit_that_still_send_are_told_so_too(
    idle: tuple[str, str, ExitStack], head: int, body: int
) -> None:
    url, probes, stack = idle
    stack.enter_context(connect(url))
    wait_for(probes, "equipoise_connections_open 3.0")
    request = b"POST /classify HTTP/1.1\r\nX: %b\r\nContent-Length: %d\r\n\r\n" % (b"x" * head, body) + bytes(body)
    for _ in range(10):
        with connect(url) as refused:
            time.sleep(0.01)  # until it has its answer
            refused.sendall(request)
            assert refused.recv(65536).startswith(b"HTTP/1.1 503 ")
            assert refused.recv(1) == b""
    wait_for(probes, "equipoise_connections_open 3.0")
    wait_for(probes, "equipoise_connections_refused_total 10.0")


def test_connections_past_the_limit_do_not_pile_up(
    idle: tuple[str, str, ExitStack], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, probes, stack = idle
    stack.enter_context(connect(url))
    wait_for(probes, "equipoise_connections_open 3.0")
    monkeypatch.setattr(connection, "MOST_LINGERING", 1)
    with connect(url) as first, connect(url) as second:
        assert received(first) and received(second)
        assert hears(first) and not hears(second)
        time.sleep(1)
        assert not hears(first)
    with connect(url) as third:
        assert received(third) and hears(third)


def hears(client: socket.socket) -> bool:
    """Whether the other side still has the connection open."""
    try:
        for _ in range(2):  # the first finds out
            client.sendall(b"x")
            time.sleep(0.05)
    except OSError:
        return False
    return True


def test_a_client_that_does_not_read_is_cut_and_one_that_comes_late_gets_all(
    tiny_store: Path, serve: Callable[..., str]
) -> None:
    url = serve(tiny_store, body_timeout_seconds=0.5)
    length = len(httpx.get(f"{url}/openapi.json", trust_env=False).content)
    count = 1 + 16_000_000 // length  # more than the buffers of both sockets take
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * (count - 1)
    requests += b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connect(url) as silent, connect(url) as late:
        silent.sendall(requests)
        wait_for(url, "equipoise_requests_in_flight 2.0")  # one of them is that for the metrics
        late.sendall(requests)
        time.sleep(0.2)
        assert received(late) > count * length
        wait_for(url, "equipoise_requests_in_flight 1.0")
        assert 0 < received(silent) < count * length


def received(connection: socket.socket) -> int:
    return sum(map(len, iter(lambda: connection.recv(2**20), b"")))


def test_a_connection_that_is_cut_is_kept_no_longer(tiny_store: Path, serve: Serve) -> None:
    """Its timer for the next request would keep it for more than a minute, past the limit on connections."""
    url = serve(tiny_store, body_timeout_seconds=12.25)

    def kept() -> int:
        """Of this server's, known by its timeout."""
        gc.collect()
        found = [each for each in gc.get_objects() if type(each) is connection.Connection]
        return sum(each._seconds == 12.25 for each in found)

    cut = [connect(url) for _ in range(20)]
    while kept() < 20:
        time.sleep(0.02)
    for one in cut:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset instead of a proper end
        one.close()
    end = time.monotonic() + 20
    while kept() and time.monotonic() < end:
        time.sleep(0.1)
    assert not kept()


def test_every_answer_has_the_security_headers(client: httpx.Client) -> None:
    answers = [
        client.get(path) for path in ("/healthz", "/models", "/nothing", "/v2/nothing", "/openapi.json", "/metrics")
    ]
    answers += [client.post("/classify", content=body) for body in (tiny.png(), b"?")]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers and "x-powered-by" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
    page = client.get("/docs")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers.get_list("content-security-policy") == [page.headers["content-security-policy"]]


def test_pages_of_other_origins_are_let_in_by_name_only(tiny_store: Path, serve: Serve) -> None:
    url = serve(tiny_store, cors_origins="https://a.example, https://b.example")
    for origin, allowed in (("https://a.example", True), ("https://b.example", True), ("https://c.example", False)):
        for answer in (get(f"{url}/models", origin=origin), get(f"{url}/nothing", origin=origin)):
            assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
            exposed = answer.headers["access-control-expose-headers"]
            assert all(name in exposed for name in ("X-Request-ID", "X-Transform", "X-Upright-Matrix"))
        asked = {"origin": origin, "access-control-request-method": "POST"}
        asked["access-control-request-headers"] = "authorization, content-type"
        preflight = httpx.options(f"{url}/classify", headers=asked, trust_env=False)
        assert (preflight.status_code == 200) == allowed


def test_without_the_setting_no_page_is(url: str) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    answer = httpx.options(f"{url}/classify", headers=asked, trust_env=False)
    assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers


def test_no_answer_tells_a_path_of_this_machine(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path)
    (tiny.write(tmp_path, "broken") / "golden.npz").unlink()
    (tiny.write(tmp_path, "cut") / "golden.npz").write_bytes(b"PK")
    (tmp_path / "odd" / "1").mkdir(parents=True)
    manifest = tiny.write(tmp_path, "unreadable") / "embed.onnx"
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path == manifest:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    url = serve(tmp_path)
    texts = [get(url + path).text for path in ("/models", "/readyz", "/metrics", "/v2/models/broken", "/nothing")]
    texts.append(httpx.post(f"{url}/v2/repository/index", trust_env=False).text)
    assert "Permission denied" in texts[0]
    assert len([line for line in texts[0].split('"reason"')]) == 5
    for text in texts:
        assert str(tmp_path) not in text and "Traceback" not in text and ".py" not in text


def ask(connection: socket.socket, head: str, body: bytes = b"") -> bytes:
    """What comes back at once."""
    connection.sendall(f"{head}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection.recv(65536)


def test_head_and_body_of_an_answer_come_together(tiny_store: Path, serve: Serve) -> None:
    with connect(serve(tiny_store)) as connection:
        for _ in range(5):
            head, _, body = ask(connection, "POST /classify HTTP/1.1", tiny.png()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert f"content-length: {len(body)}\r\n".encode() in head + b"\r\n" and body
        assert ask(connection, "HEAD /classify HTTP/1.1").startswith(b"HTTP/1.1 405 ")


def test_a_client_that_asks_before_it_sends_its_body_is_told_to(tiny_store: Path, serve: Serve) -> None:
    body = tiny.png()
    with connect(serve(tiny_store)) as connection:
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_an_answered_request_leaves_nothing_to_the_garbage_collector(tiny_store: Path, serve: Serve) -> None:
    """A circle of references a request would cost a tenth of its time."""
    with connect(serve(tiny_store)) as connection:
        ask(connection, "POST /classify HTTP/1.1", tiny.png())
        gc.collect()
        gc.disable()
        try:
            for body, status in ((tiny.png(), b"200"), (b"no picture", b"400")) * 50:
                assert ask(connection, "POST /classify HTTP/1.1", body)[9:12] == status
            left = gc.collect()
        finally:
            gc.enable()
    assert left < 50
