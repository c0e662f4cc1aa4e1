"""The threads for large work, from decoding a photograph to reading a batch: whose turn it is, and whether it is still
wanted by then.
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from service.deadlines import CallerGone, Deadline, smoothed
from service.errors import DeadlineExceeded

_NICE = 10  # how far the threads stand back behind the event loop

Result = TypeVar("Result")


class Pool:
    """Threads at lowered priority. A caller waits for one on the event loop, where its client can be asked, when its
    turn comes, whether it is still there; what nobody waits for any more is never begun. A turn ends with its work,
    however soon its caller leaves: else others would begin behind a thread that is still busy, and what they hold piles
    up.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "pictures", initializer=_lower_priority)
        self._turns = asyncio.Semaphore(threads)
        self._threads = threads
        self._pending = 0  # pieces of work that wait or run
        self._seconds = 0.0  # that one takes, of late

    @property
    def wait_seconds(self) -> float:
        """How long new work would wait for its turn, by what the last pieces took."""
        return max(0, self._pending - self._threads + 1) * self._seconds / self._threads

    async def run(
        self, deadline: Deadline, gone: Callable[[], bool], work: Callable[..., Result], *arguments: Any
    ) -> Result:
        """`work(*arguments)` in a thread.

        Args:
            gone: whether the caller has left; asked on the event loop, just before the work would begin.

        Raises:
            CallerGone: it has.
            DeadlineExceeded: it would pass while waiting; or it passed, and what a thread still does is for nobody.
        """
        deadline.check(self.wait_seconds)
        self._pending += 1
        turn = False
        running: Future[Result] | None = None
        try:
            async with asyncio.timeout(deadline.seconds_left()) as limit:
                turn = await self._turns.acquire()
                if gone():
                    raise CallerGone
                start = time.perf_counter()
                running = self._executor.submit(work, *arguments)
                return await asyncio.wrap_future(running)
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded("the deadline passed before the pictures were done") from None
            raise
        finally:
            if running is None:
                self._pending -= 1
                if turn:
                    self._turns.release()
            elif running.done():
                self._end(start)
            else:  # for nobody any more
                running.add_done_callback(partial(self._end_from_thread, asyncio.get_running_loop(), start))

    def _end(self, start: float) -> None:
        """End a turn whose work began at `start`."""
        self._seconds = smoothed(self._seconds, time.perf_counter() - start)
        self._pending -= 1
        self._turns.release()

    def _end_from_thread(self, loop: asyncio.AbstractEventLoop, start: float, running: "Future[Any]") -> None:
        with suppress(RuntimeError):  # the loop has ended, and so does the process
            loop.call_soon_threadsafe(self._end, start)

    def shutdown(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _lower_priority() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux 0 is the calling thread
    except (AttributeError, OSError):
        return
