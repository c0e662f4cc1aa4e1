"""A real service on a real socket, in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from service.__main__ import listen
from service.app import create_app
from service.settings import Settings


@contextmanager
def running_server(settings: Settings, *, ready: bool = True) -> Iterator[str]:
    """The URL of a service with these settings, in a thread of its own; `ready`: wait until it answers."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), lifespan="on", ws="none", log_config=None, access_log=False)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
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
        listening.close()
