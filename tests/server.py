"""A real service on a real socket, in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from service.__main__ import assemble
from service.server import listen_all, url_of
from service.settings import Settings


@contextmanager
def running_server(settings: Settings, *, ready: bool = True) -> Iterator[str]:
    """The URL of a service with these settings, in a thread of its own; `ready`: wait until it answers."""
    listening = listen_all(settings.model_copy(update={"port": 0}))
    server = assemble(settings, listening)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=listening)))
    thread.start()
    url = url_of(listening[0])
    try:
        deadline = time.monotonic() + 30
        with httpx.Client(base_url=url, trust_env=False) as client:
            while client.get("/readyz" if ready else "/healthz").status_code != 200:
                assert time.monotonic() < deadline, client.get("/readyz").text
                time.sleep(0.01)
        yield url
    finally:
        server.should_exit = True
        thread.join()
        for socket in listening:
            socket.close()
