"""The threads for large work, from decoding a photograph to reading a batch: whose turn it is, and whether it is still
wanted by then.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from service.deadlines import CallerGone, Deadline
from service.errors import DeadlineExceeded

_NICE = 10  # how far the threads stand back behind the event loop

Result = TypeVar("Result")


class Pool:
    """Threads at a lower priority than the event loop's, and callers who take turns at them.

    A caller waits for its turn on the event loop. When the turn comes, the caller's client is asked whether it is still
    there, and work that nobody waits for is never begun. A turn lasts until its work has ended, even where its caller
    has left: the next work would only wait behind the busy thread, and hold its pictures meanwhile.
    """

    def __init__(self, threads: int) -> None:
        self.executor = ThreadPoolExecutor(threads, "pictures", initializer=_lower_priority)
        self._turns = asyncio.Semaphore(threads)

    async def run(
        self, deadline: Deadline, gone: Callable[[], bool], work: Callable[..., Result], *arguments: Any
    ) -> Result:
        """`work(*arguments)` in a thread.

        Args:
            gone: whether the caller has left; asked on the event loop, just before the work would begin.

        Raises:
            CallerGone: it has.
            DeadlineExceeded: it has passed; what a thread still does then is for nobody.
        """
        deadline.check()
        try:
            async with asyncio.timeout(deadline.seconds_left()) as limit:
                await self._turns.acquire()
                return await asyncio.wrap_future(self._begin(gone, work, *arguments))
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded("the deadline passed before the pictures were done") from None
            raise

    def _begin(self, gone: Callable[[], bool], work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """The work in a thread; the turn ends with it, or at once where it cannot begin."""
        try:
            if gone():
                raise CallerGone
            running = self.executor.submit(work, *arguments)
        except BaseException:
            self._turns.release()
            raise
        running.add_done_callback(partial(self._end, asyncio.get_running_loop()))
        return running

    def _end(self, loop: asyncio.AbstractEventLoop, running: "Future[Any]") -> None:
        with suppress(RuntimeError):  # the loop has ended, and so does the process
            loop.call_soon_threadsafe(self._turns.release)


def _lower_priority() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux 0 is the calling thread
    except (AttributeError, OSError):
        return
