"""The life of the process: uvicorn with a drain before its end, and a watchdog over its event loop."""

import asyncio
import faulthandler
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from service.observability import say
from service.server import handles
from service.settings import Settings

# The system has accepted connections that the event loop has not taken yet; closing the sockets would reset them.
_ACCEPT_SECONDS = 0.05
# After the last connection was accepted: what its client had sent by then arrives, and is answered, before idle
# connections are closed.
_SETTLE_SECONDS = 0.2
_LOOKS = 4  # of the watchdog within its patience
_LAST_WORDS_SECONDS = 2.0  # a pipe that is full, or a lock of the log that the loop holds, would keep them for ever


@dataclass
class Life:
    """What the app and the server tell each other of the process's end.

    draining: it has begun: not ready, and every answer closes its connection. hung: a run of a graph never ended.
    busy: at the end a thread still did what nobody waits for.
    """

    draining: bool = False
    hung: bool = False
    busy: bool = False


class Watchdog(threading.Thread):
    """An event loop that stands still for `seconds` can answer nothing, no probe either: the stacks of all threads are
    written to standard error and the process exits with status 1.

    It counts its own looks, not the time between them: a process that was stopped, by a signal, a debugger or a paused
    container, does not hang. Compiled code that never ends and keeps the interpreter's lock stops the watchdog too; to
    the liveness probe it is an answer that does not come.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._seconds = seconds
        self._beaten = True
        self._over = threading.Event()

    async def beat(self) -> None:
        while True:
            self._beaten = True
            await asyncio.sleep(self._seconds / _LOOKS / 2)

    def run(self) -> None:
        missed = 0
        while missed < _LOOKS:
            if self._over.wait(self._seconds / _LOOKS):
                return
            missed = 0 if self._beaten else missed + 1
            self._beaten = False
        try:
            threading.Timer(_LAST_WORDS_SECONDS, os._exit, (1,)).start()
            say(logging.CRITICAL, "the event loop hangs", seconds=self._seconds)
            faulthandler.dump_traceback()
        finally:  # even where no thread can be started any more
            os._exit(1)

    def end(self) -> None:
        self._over.set()


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
