"""The sockets, and uvicorn on them: two ports at most, a bounded number of connections."""

import math
import socket
import sys
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from service.connection import MOST_LINGERING, Connection, Connections
from service.settings import Settings

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

# At the end, a client that does not read its answer is waited for no longer than this past the last deadline.
_UNREAD_SECONDS = 5
_SPARE_FILES = 64  # besides connections: sockets, model files, logs
_HANDLES = 8


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is known before a model is loaded."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two processes share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it: no 40 ms for a body
        listening.bind(address)
        listening.listen()  # who connects before the app is made waits for it instead of being refused
        listening.set_inheritable(True)
    except OSError:
        listening.close()
        raise
    return listening


def listen_all(settings: Settings) -> list[socket.socket]:
    """The service's socket, then the probes' where they have one of their own.

    Raises:
        OSError: one of them cannot be had; with the address as its `filename`.
    """
    ports = [settings.port] if settings.probe_port is None else [settings.port, settings.probe_port]
    listening: list[socket.socket] = []
    for port in ports:
        try:
            listening.append(listen(settings.host, port))
        except OSError as error:
            for other in listening:
                other.close()
            error.filename = f"{settings.host}:{port}"
            raise
    return listening


def handles(listening: socket.socket) -> list[socket.socket]:
    """A listening socket and copies of it, all to be served.

    On each of them libuv accepts one connection a turn of the event loop, and a turn may run a batch. With one alone,
    the last of 64 clients that came at once had waited for 64 batches before its first request was read.
    """
    return [listening, *(listening.dup() for _ in range(_HANDLES - 1))]


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def configure(app: ASGIApp, settings: Settings, connections: Connections, probe_port: int | None) -> uvicorn.Config:
    """What uvicorn is told. probe_port: of the second socket, whose connections are not limited."""
    return uvicorn.Config(
        app,
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
