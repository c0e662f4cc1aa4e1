"""A real service on a real socket, in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.__main__ import assemble
from service.model_store import ModelStore
from service.server import bind_all, listen, url_of
from service.settings import Settings

READY_WITHIN = 60  # seconds: with all shipped models, on a busy machine
ENDS_WITHIN = 60  # seconds: longer than a service waits for its clients at the end


@contextmanager
def running_server(settings: Settings, *, ready: bool = True) -> Iterator[str]:
    """The URL of a service with these settings, in a thread of its own; `ready`: wait until it answers."""
    with bind_all(settings.model_copy(update={"port": 0})) as sockets:
        server = assemble(settings, sockets)
        listen(sockets)
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve(sockets=sockets)

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        url = url_of(sockets[0])
        try:
            deadline = time.monotonic() + READY_WITHIN
            with httpx.Client(base_url=url, trust_env=False) as client:
                while client.get("/readyz" if ready else "/healthz").status_code != 200:
                    assert time.monotonic() < deadline, client.get("/readyz").text
                    time.sleep(0.01)
            yield url
        finally:
            server.should_exit = True
            thread.join(ENDS_WITHIN)
            waiting = [repr(task) for loop in loops for task in asyncio.all_tasks(loop)] if thread.is_alive() else []
            assert not thread.is_alive(), f"{url} did not end: {waiting}"


def part_of_store(store: Path, models: Iterable[str], folder: Path) -> Path:
    """A store, made in `folder`, of these models of `store` alone: to load all that are shipped takes five seconds."""
    for model in models:
        (folder / model).symlink_to(store / model)
    return folder


@contextmanager
def loading_server(settings: Settings) -> Iterator[tuple[str, threading.Event]]:
    """The URL of a service that begins to load its models, and what to set for it to go on."""
    begun, go_on = threading.Event(), threading.Event()
    load_all = ModelStore.load_all

    def held(store: ModelStore, **options: Any) -> None:
        begun.set()
        go_on.wait(60)  # not for ever: nobody lets go where the server does not come up
        load_all(store, **options)

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # of this service alone: others may start meanwhile
            patch.setattr(ModelStore, "load_all", held)
            url = stack.enter_context(running_server(settings, ready=False))
            stack.callback(go_on.set)
            assert begun.wait(30)
        yield url, go_on
