"""The configuration of nginx on one Docker host: nginx takes it, and follows the replicas by their name."""

import json
import re
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUDPServer

import pytest

from benchmarks.replicas import NGINX

FOLDER = Path(__file__).parents[2] / "docker" / "nginx"
SERVER, REPLICAS = ((FOLDER / name).read_text() for name in ("equipoise.conf", "replicas.conf"))


def nginx_version() -> tuple[int, ...]:
    if not Path(NGINX).exists():
        return ()
    shown = subprocess.run([NGINX, "-v"], capture_output=True, text=True, check=True).stderr
    return tuple(map(int, re.findall(r"nginx/(\d+)\.(\d+)\.(\d+)", shown)[0]))


LOOKS_UP = (1, 27, 3)  # the first that knows `resolve` without a licence
FOUND = nginx_version()


def nginx(folder: Path, server: str, replicas: str) -> list[str]:
    """The command of an nginx with the committed files, as `server` and `replicas`, in a folder of its own."""
    (folder / "replicas.conf").write_text(replicas)
    server = server.replace("/etc/nginx/", f"{folder}/").replace("/dev/stdout", str(folder / "log"))
    paths = "".join(f"{kind}_temp_path {folder};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    whole = f"pid {folder}/pid;\nerror_log {folder}/errors;\nevents {{}}\nhttp {{\n{paths}{server}}}\n"
    (folder / "nginx.conf").write_text(whole)
    return [NGINX, "-e", str(folder / "errors"), "-p", str(folder), "-c", str(folder / "nginx.conf")]


@pytest.mark.skipif(not FOUND, reason="NOT RUN: nginx is not installed")
def test_nginx_takes_the_configuration(tmp_path: Path) -> None:
    """Both files as they are where nginx is of 1.27.3 or later; an older one is asked without the looking up."""
    replicas = REPLICAS
    if FOUND < LOOKS_UP:
        replicas = re.sub(r"^resolver .*\n", "", replicas, flags=re.MULTILINE).replace(" resolve ", " ")
        replicas = replicas.replace("server equipoise:", "server 127.0.0.1:")
    tested = subprocess.run([*nginx(tmp_path, SERVER, replicas), "-t"], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr


@pytest.mark.skipif(not FOUND, reason="NOT RUN: nginx is not installed")
def test_a_request_keeps_its_id(tmp_path: Path) -> None:
    with answering("127.0.0.1", 0) as port, balancing(tmp_path, f"server 127.0.0.1:{port};") as own:
        for given, kept in (("asked-1", "asked-1"), ("", r"[0-9a-f]{32}")):
            assert re.fullmatch(kept, eventually(own, given)), given


@pytest.mark.skipif(not FOUND, reason="NOT RUN: nginx is not installed")
def test_what_changes_one_replica_is_refused(tmp_path: Path) -> None:
    """Loading and unloading, however they are written; nothing else of the protocol."""
    with answering("127.0.0.1", 0) as port, balancing(tmp_path, f"server 127.0.0.1:{port};") as own:
        eventually(own, "")
        for path in (
            "/v2/repository/models/equivae-mnist/load",
            "/v2/repository/models/equivae-mnist/unload",
            "/v2//repository/./models/equivae-mnist/unload",
            "/v2%2Frepository/models%2Fequivae-mnist/unload",
            "/v2/models/../repository/models/equivae-mnist/unload?model=a",
        ):
            status, said = post(own, path)
            assert status == 403 and "replica" in json.loads(said)["error"], path
        for path in ("/v2/repository/index", "/v2/models/equivae-mnist/infer", "/classify"):
            assert post(own, path) == (200, b"127.0.0.1"), path


def post(port: int, path: str) -> tuple[int, bytes]:
    """Status and answer; the path is sent as it is."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, b"{}", {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def eventually(port: int, request_id: str) -> str:
    """The id that a replica was asked by, once nginx is there."""
    end = time.monotonic() + 20
    while True:
        try:
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"X-Request-ID": request_id})
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return str(answer.headers["X-Request-ID"])
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.mark.skipif(FOUND < LOOKS_UP, reason="NOT RUN: nginx is not installed, or older than 1.27.3")
def test_nginx_follows_the_name_of_the_replicas(tmp_path: Path) -> None:
    """Replicas that come and go are found and left, without a reload, by what a name server says of them."""
    addresses = {"127.0.0.2"}
    with named(addresses) as name_port, answering("127.0.0.2", 0) as port, answering("127.0.0.3", port):
        replicas = REPLICAS.replace("127.0.0.11 valid=5s", f"127.0.0.1:{name_port} valid=1s").replace(
            ":8000", f":{port}"
        )
        with balancing(tmp_path, replicas) as own:
            for change in ({"127.0.0.2"}, {"127.0.0.2", "127.0.0.3"}, {"127.0.0.3"}):
                addresses.clear()
                addresses.update(change)
                end = time.monotonic() + 20
                while asked(own) != change:
                    assert time.monotonic() < end, (change, (tmp_path / "errors").read_text())


@contextmanager
def balancing(folder: Path, replicas: str) -> Iterator[int]:
    """An nginx with the committed server in front of these replicas; its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        own = probe.getsockname()[1]
    server = SERVER.replace("listen 8080;", f"listen 127.0.0.1:{own};")
    running = subprocess.Popen([*nginx(folder, server, replicas), "-g", "daemon off;"])
    try:
        yield own
    finally:
        running.terminate()
        running.wait(10)


def asked(port: int) -> set[str]:
    """Who answers twenty requests."""
    found = set()
    for _ in range(20):
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            found.add(answer.read().decode())
        time.sleep(0.01)
    return found


@contextmanager
def answering(address: str, port: int) -> Iterator[int]:
    """A server that answers its address; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("X-Request-ID", self.headers["X-Request-ID"])
            self.end_headers()
            self.wfile.write(address.encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer((address, port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def named(addresses: set[str]) -> Iterator[int]:
    """A name server that knows these addresses, as they are at the time, by any name; its port."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            query, end = self.request
            question = query[12 : query.index(b"\0", 12) + 5]
            found = sorted(addresses) if question[-4:-2] == b"\0\1" else []  # A, not AAAA
            head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
            records = [struct.pack(">HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(each) for each in found]
            end.sendto(head + question + b"".join(records), self.client_address)

    with ThreadingUDPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
