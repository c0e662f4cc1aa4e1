"""The server of the process: uvicorn with a drain before its end, and a watchdog over its event loop."""

import asyncio
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from service.life import Life
from service.logs import say
from service.server import handles
from service.settings import Settings
from service.watchdog import Watchdog

# The system has accepted connections that the event loop has not taken yet; closing the sockets would reset them.
_ACCEPT_SECONDS = 0.05
# After the last connection was accepted: what its client had sent by then arrives, and is answered, before idle
# connections are closed.
_SETTLE_SECONDS = 0.2


class Server(uvicorn.Server):
    """SIGTERM drains: readiness fails, answers close their connections, and for `drain_seconds` everything is served
    as before, so that balancers have time to look elsewhere. Then no connection is accepted, what was accepted is
    finished, and the process ends. SIGINT, and a second SIGTERM, leave the waiting out. A `Watchdog` looks after it.
    """

    def __init__(self, config: uvicorn.Config, make_app: Callable[[], ASGIApp], life: Life, settings: Settings) -> None:
        super().__init__(config)
        self._make_app = make_app
        self.life = life
        self._drain_seconds = settings.drain_seconds
        self._hang_seconds = settings.hang_seconds
        self._told_to_end = False
        self._drained_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and not self._told_to_end:
            self._told_to_end = True  # the rest on the event loop: a signal's handler may stand within a log record
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._told_to_end and not self.life.draining:
            self.life.draining = True
            self._drained_at = time.monotonic() + self._drain_seconds
            say(logging.INFO, "draining", seconds=self._drain_seconds)
        if time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            self.config.app = self._make_app()  # before the watchdog, to which its imports may look like a hang
        except BaseException:
            self.life.draining = True  # what is being loaded ends with the model that it is at
            raise
        if not self._hang_seconds or threading.current_thread() is not threading.main_thread():
            return await super().serve(sockets)  # without one, or the process is somebody else's
        watchdog = Watchdog(self._hang_seconds)
        beats = asyncio.create_task(watchdog.beat(), name="watchdog")
        watchdog.start()
        try:
            await super().serve(sockets)
        finally:
            beats.cancel()
            watchdog.end()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([handle for one in sockets or () for handle in handles(one)])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.life.draining = True
        await asyncio.sleep(_ACCEPT_SECONDS)
        for server in self.servers:
            server.close()
        await asyncio.sleep(_SETTLE_SECONDS)
        await super().shutdown(sockets)
