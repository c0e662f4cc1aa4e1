"""A watch over the event loop: where it stands still, the process ends and says why."""

import asyncio
import faulthandler
import logging
import os
import threading

from service.logs import say

_LOOKS = 4  # of the watchdog within its patience
_LAST_WORDS_SECONDS = 2.0  # a pipe that is full, or a lock of the log that the loop holds, would keep them for ever


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
