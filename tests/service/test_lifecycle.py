"""The end of the process, and what may go wrong around it: drains under load, hangs, full and read-only disks."""

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.service import tiny
from tests.service.process import Forked, environment, forked

PNG = {"content-type": "image/png"}
# Runs of a graph do what the file says that FAULT names: hang, take a second, or raise.
FAULTS = """
import os, time
from pathlib import Path
from service.engine import Engine

genuine = Engine.run

def run_of_a_graph(self, inputs):
    fault = Path(os.environ["FAULT"]).read_text()
    if fault == "hang":
        time.sleep(600)
    if fault == "slow":
        time.sleep(1)
    if fault == "raise":
        raise RuntimeError("a runner that raises")
    return genuine(self, inputs)

Engine.run = run_of_a_graph
"""


@contextmanager
def service(store: Path, *options: str, status: int = 200, **given: object) -> Iterator[tuple[Forked, str]]:
    """A process whose /readyz answers with `status`, and its URL, found by its port; its log stays unread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ("--model-store", str(store), "--port", str(port), "--log-format", "json", *options)
    url = f"http://127.0.0.1:{port}"
    with forked(*arguments, **given) as process:  # type: ignore[arg-type]

        def ready() -> bool:
            assert process.poll() is None
            try:
                return httpx.get(f"{url}/readyz", trust_env=False).status_code == status
            except httpx.TransportError:
                return False

        until(ready)
        yield process, url


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def classify(url: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/classify", content=tiny.png(), headers=PNG | headers, trust_env=False, timeout=30)


def test_an_empty_store_is_waited_for_where_that_is_said(tmp_path: Path) -> None:
    """Alive and not ready, with the reason; the first version is taken up by the poll."""
    waiting = ("--wait-for-models", "true", "--model-poll-seconds", "0.05")
    with (
        service(tmp_path, *waiting, status=503) as (process, url),
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        reason = "no model is loaded: the model store <store> has no model"
        until(lambda: client.get("/readyz").json()["detail"].startswith(reason))
        assert client.get("/healthz").status_code == 200
        assert classify(url).status_code == 503
        tiny.write(tmp_path)
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json()["models"] == ["tiny/1"]
        assert classify(url).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_drain_under_load_loses_nobody(tiny_store: Path) -> None:
    """Keep-alive clients ask without a pause; whoever is told to close goes elsewhere, and nobody is cut off."""
    with service(tiny_store, "--drain-seconds", "1.5") as (process, url):
        answered: list[int] = []
        after_unready = 0
        unready = threading.Event()

        def ask() -> int:
            """Answers until one closes the connection; any error of the connection is the test's."""
            count = 0
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
            while True:
                connection.request("POST", "/classify", tiny.png(), PNG)
                response = connection.getresponse()
                assert "label" in json.loads(response.read())
                count += 1
                answered.append(response.status)
                if response.getheader("connection") == "close":
                    connection.close()
                    return count

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(ask) for _ in range(8)]
            until(lambda: len(answered) > 100)
            process.send_signal(signal.SIGTERM)
            probe = httpx.Client(base_url=url, trust_env=False)
            until(lambda: probe.get("/readyz").status_code == 503)
            assert "about to end" in probe.get("/readyz").json()["detail"]
            assert probe.get("/healthz").status_code == 200
            unready.set()
            # A balancer that has not noticed yet goes on sending.
            while after_unready < 5:
                assert classify(url).status_code == 200
                after_unready += 1
            probe.close()
            counts = [client.result() for client in clients]
        assert all(count > 1 for count in counts)
        assert set(answered) == {200}
        assert process.wait(timeout=20) == 0
        assert [json.loads(line)["message"] for line in process.stderr][-2:] == ["draining", "stopped"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_finished(tiny_store: Path, stop: signal.Signals) -> None:
    """A request whose body is still on its way when the service stops to listen is answered."""
    body = tiny.png()
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    with service(tiny_store, "--drain-seconds", "1") as (process, url):
        host, port = urlsplit(url).hostname, urlsplit(url).port
        with socket.create_connection((host, port), timeout=30) as connection:
            connection.sendall(head.encode() + body[:10])
            process.send_signal(stop)

            def refused() -> bool:
                with socket.socket() as another:
                    return another.connect_ex((host, port)) != 0

            until(refused)
            connection.sendall(body[10:])
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.lower().count(b"\r\nconnection: close\r\n") == 1
        assert process.wait(timeout=20) == 0


@contextmanager
def faulty(store: Path, folder: Path, *options: str, **given: object) -> Iterator[tuple[Forked, str]]:
    fault = folder / "fault"
    fault.write_text("")
    with service(store, *options, code=FAULTS, env=environment(FAULT=str(fault)), **given) as running:
        yield running


def test_an_event_loop_that_hangs_ends_the_process_with_its_stacks(tiny_store: Path, tmp_path: Path) -> None:
    with faulty(tiny_store, tmp_path, "--hang-seconds", "4") as (process, url):
        time.sleep(4.5)  # nothing hangs: it lives on
        assert classify(url).status_code == 200
        (tmp_path / "fault").write_text("hang")
        with pytest.raises(httpx.TransportError):
            classify(url)
        assert process.wait(timeout=20) == 1
        log = process.stderr.read()
        assert '"message": "the event loop hangs"' in log
        assert "in run_of_a_graph" in log


def test_a_process_that_was_stopped_does_not_hang(tiny_store: Path) -> None:
    """By Ctrl-Z, a debugger or a paused container, for longer than a loop may stand still."""
    with service(tiny_store, "--hang-seconds", "4") as (process, url):
        process.send_signal(signal.SIGSTOP)
        time.sleep(4.5)
        process.send_signal(signal.SIGCONT)
        assert classify(url).status_code == 200
        assert process.poll() is None


def test_a_collector_that_never_answers_holds_up_the_end_for_seconds(tiny_store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        collector = f"http://127.0.0.1:{silent.getsockname()[1]}"
        options = ("--otel-endpoint", collector, "--otel-share", "1", "--drain-seconds", "0")
        with service(tiny_store, *options, env=environment(NO_PROXY="127.0.0.1")) as (process, url):
            assert classify(url).status_code == 200
            process.send_signal(signal.SIGTERM)
            end = time.monotonic()
            assert process.wait(20) == 0
            assert time.monotonic() - end < 8


def test_a_thread_that_hangs_fails_liveness_and_keeps_no_caller(tiny_store: Path, tmp_path: Path) -> None:
    options = ("--hang-seconds", "4", "--inline-milliseconds", "0", "--drain-seconds", "0")
    with faulty(tiny_store, tmp_path, *options) as (process, url):
        (tmp_path / "fault").write_text("hang")
        assert classify(url, **{"x-request-timeout-ms": "200"}).status_code == 504
        until(lambda: httpx.get(f"{url}/healthz", trust_env=False).status_code == 503)
        problem = httpx.get(f"{url}/healthz", trust_env=False).json()
        assert problem["type"] == "urn:equipoise:problem:not-alive"
        assert httpx.get(f"{url}/v2/health/live", trust_env=False).status_code == 503
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 1


@pytest.mark.parametrize("fault", ["slow", "hang"])
def test_a_run_that_nobody_waits_for_is_no_hang_before_its_time(tiny_store: Path, tmp_path: Path, fault: str) -> None:
    """At the end it is waited for briefly, and then left alone: the process ends as it should."""
    options = ("--inline-milliseconds", "0", "--drain-seconds", "0")
    with faulty(tiny_store, tmp_path, *options) as (process, url):
        (tmp_path / "fault").write_text(fault)
        assert classify(url, **{"x-request-timeout-ms": "100"}).status_code == 504
        assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert [json.loads(line)["message"] for line in process.stderr][-2:] == ["draining", "stopped"]


# To prepare a picture takes very long.
SLOW_PICTURES = """
import time
from service import inference

inference._prepare_all = lambda *arguments: time.sleep(600)
"""


def test_a_drawing_that_nobody_waits_for_does_not_hold_up_the_end(tiny_store: Path) -> None:
    with service(tiny_store, "--drain-seconds", "0", code=SLOW_PICTURES) as (process, url):
        large = tiny.encode(np.zeros((400, 400), np.uint8))
        headers = PNG | {"x-request-timeout-ms": "200"}
        assert httpx.post(f"{url}/classify", content=large, headers=headers, trust_env=False).status_code == 504
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


# A model's warm-up, of which the file that LOADING names tells, does not end.
SLOW_LOAD = """
import os, time
from pathlib import Path
from service.engine import Engine

def warm(self):
    Path(os.environ["LOADING"]).touch()
    time.sleep(600)

Engine.warm = warm
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_load_does_not_hold_up_the_end(tiny_store: Path, tmp_path: Path, stop: signal.Signals) -> None:
    loading = tmp_path / "loading"
    slow = {"code": SLOW_LOAD, "env": environment(LOADING=str(loading))}
    with service(tiny_store, "--drain-seconds", "0", status=503, **slow) as (process, _):
        until(loading.exists)
        process.send_signal(stop)
        assert process.wait(timeout=10) == 0
        told = [json.loads(line)["message"] for line in process.stderr]
        assert told == ["starting", *(["draining"] if stop == signal.SIGTERM else []), "stopped"]


# A signal comes just before the server runs.
STOPPED_EARLY = """
import os, signal
from service.process import Server

genuine = Server.run

def run(self, sockets=None):
    os.kill(os.getpid(), int(os.environ["STOP"]))
    genuine(self, sockets=sockets)

Server.run = run
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_server_runs_ends_it(tiny_store: Path, stop: signal.Signals) -> None:
    options = ("--model-store", str(tiny_store), "--port", "0", "--drain-seconds", "0", "--log-format", "json")
    with forked(*options, code=STOPPED_EARLY, env=environment(STOP=str(int(stop)))) as process:
        assert process.wait(timeout=20) == 0
        told = [json.loads(line)["message"] for line in process.stderr]
    assert (told[0], told[-1]) == ("starting", "stopped")


SLOW_IMPORT = """
import time
from service import api

genuine = api.create_api

def create_api(*arguments):
    time.sleep(1.6)
    return genuine(*arguments)

api.create_api = create_api
"""


def test_imports_that_take_long_are_no_hang(tiny_store: Path) -> None:
    with service(tiny_store, "--hang-seconds", "1", code=SLOW_IMPORT) as (process, url):
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        assert process.poll() is None


NO_APP = """
from service import api

def create_api(*arguments):
    raise TypeError("of another version")

api.create_api = create_api
"""


def test_an_app_that_cannot_be_made_ends_the_process_with_its_traceback(tiny_store: Path) -> None:
    with forked("--model-store", str(tiny_store), "--port", "0", code=NO_APP) as process:
        assert process.wait(timeout=20) == 1
        log = process.stderr.read()
    assert "TypeError: of another version" in log and "Traceback" in log
    assert "INFO ready" not in log and "could not be loaded" not in log


def test_a_full_disk_under_the_log(tmp_path: Path) -> None:
    """Log lines are lost, not answers: of the start, of a refused model, of failing requests, of the end."""
    store = tmp_path / "store"
    tiny.write(store)
    (tiny.write(store, name="broken") / "embed.onnx").write_bytes(b"")
    with Path("/dev/full").open("w") as full, faulty(store, tmp_path, stderr=full) as (process, url):
        (tmp_path / "fault").write_text("raise")
        assert [classify(url).status_code for _ in range(3)] == [500] * 3
        (tmp_path / "fault").write_text("")
        assert classify(url).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


def test_nothing_is_written_to_disk_and_a_second_signal_ends_the_wait(tiny_store: Path) -> None:
    """In a folder where nothing can be written, nor in the one for temporary files; a form of a megabyte included."""
    nowhere = environment(TMPDIR="/proc", HOME="/proc")
    with service(tiny_store, "--drain-seconds", "600", cwd="/proc", env=nowhere) as (process, url):
        form = [("images", tiny.png()), ("images", bytes(1_000_000))]
        response = httpx.post(f"{url}/classify", files=form, trust_env=False, timeout=30)
        assert response.status_code == 200
        assert "label" in response.json()["results"][0] and "problem" in response.json()["results"][1]
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
