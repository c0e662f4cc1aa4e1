"""The sockets, and uvicorn on them: two ports at most, a bounded number of connections."""

import math
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import uvicorn

from service.connection import MOST_LINGERING, Connection
from service.connections import Connections
from service.settings import Settings

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

# At the end, a client that does not read its answer is waited for no longer than this past the last deadline.
_UNREAD_SECONDS = 5
_SPARE_FILES = 64  # besides connections: sockets, model files, logs
_HANDLES = 8


class AddressUnavailable(Exception):
    """An address that is to be listened on cannot be had; the message says which, and why."""


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address, on which nobody can connect yet.

    Raises:
        AddressUnavailable: there is no such address here, or another process listens there.
    """
    with _unavailable(f"{host}:{port}"):
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # there it would let two processes share the port
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it: no 40 ms for a body
            bound.bind(address)
            bound.set_inheritable(True)
        except OSError:
            bound.close()
            raise
    return bound


@contextmanager
def bind_all(settings: Settings) -> Iterator[list[socket.socket]]:
    """The service's socket, then the probes' where they have one of their own; closed at the end. A port in use is
    known before a model is loaded, and the number of a free one before the app is made.
    """
    ports = [settings.port] if settings.probe_port is None else [settings.port, settings.probe_port]
    with ExitStack() as stack:
        yield [stack.enter_context(bind(settings.host, port)) for port in ports]


def listen(sockets: Iterable[socket.socket]) -> None:
    """Let clients connect; who does before the server runs waits for it instead of being refused.

    Raises:
        AddressUnavailable: another process was bound to the same address, and was faster.
    """
    for bound in sockets:
        host, port = bound.getsockname()[:2]
        with _unavailable(f"{host}:{port}"):
            bound.listen()


@contextmanager
def _unavailable(address: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AddressUnavailable(f"cannot listen on {address}: {error.strerror or error}") from error


def handles(listening: socket.socket) -> list[socket.socket]:
    """A listening socket and copies of it, all to be served.

    On each of them libuv accepts one connection a turn of the event loop, and a turn may run a batch. With one alone,
    the last of 64 clients that came at once had waited for 64 batches before its first request was read.
    """
    return [listening, *(listening.dup() for _ in range(_HANDLES - 1))]


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def configure(settings: Settings, connections: Connections, probe_port: int | None) -> uvicorn.Config:
    """What uvicorn is told, but for the app. probe_port: of the second socket, whose connections are not limited."""
    return uvicorn.Config(
        None,  # type: ignore[arg-type] # process.Server has it made
        http=partial(Connection, connections, probe_port, settings.body_timeout_seconds),  # type: ignore[arg-type]
        loop="auto",  # uvloop, except on Windows, which has none
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here depends on the client's address
        log_config=None,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=math.ceil(settings.request_timeout_seconds) + _UNREAD_SECONDS,
    )


def allow_files(connections: int) -> None:
    """Let the process have as many open files as it may have connections, as far as the system lets it."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + MOST_LINGERING + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
