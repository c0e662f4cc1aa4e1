"""The life of the process: uvicorn with a drain before its end and a watchdog over its event loop."""

import asyncio
import faulthandler
import logging
import math
import signal
import socket
import threading
import time
from dataclasses import dataclass
from types import FrameType

import uvicorn

from service.observability import say
from service.server import handles
from service.settings import Settings

# After the last connection was accepted: what its client had sent by then arrives, and is answered, before idle
# connections are closed.
_SETTLE_SECONDS = 0.2
_BEATS = 4  # the watchdog is put off so many times within its patience


@dataclass
class Life:
    """What the app and the server tell each other of the process's end.

    draining: it has begun: not ready, and every answer closes its connection. hung: a run of a graph never ended.
    """

    draining: bool = False
    hung: bool = False


class Server(uvicorn.Server):
    """SIGTERM drains: readiness fails, answers close their connections, and for `drain_seconds` everything is served
    as before, so that balancers have time to look elsewhere. Then no connection is accepted, what was accepted is
    finished, and the process ends. SIGINT, and a second SIGTERM, leave the waiting out.

    An event loop that stands still for `hang_seconds` can answer nothing, no probe either: the stacks of all threads
    are written to standard error and the process exits with status 1. faulthandler's own thread does it, which needs no
    interpreter lock.
    """

    def __init__(self, config: uvicorn.Config, life: Life, settings: Settings) -> None:
        super().__init__(config)
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
        if not self._hang_seconds or threading.current_thread() is not threading.main_thread():
            return await super().serve(sockets)  # without one, or the process is somebody else's
        watched = asyncio.create_task(self._put_off_watchdog(), name="watchdog")
        try:
            await super().serve(sockets)
        finally:
            watched.cancel()
            faulthandler.cancel_dump_traceback_later()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([handle for one in sockets or () for handle in handles(one)])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.life.draining = True
        for server in self.servers:
            server.close()
        await asyncio.sleep(_SETTLE_SECONDS)
        await super().shutdown(sockets)

    async def _put_off_watchdog(self) -> None:
        while True:
            faulthandler.dump_traceback_later(self._hang_seconds, exit=True)
            await asyncio.sleep(self._hang_seconds / _BEATS)
