"""The threads for large work, from decoding a photograph to reading a batch: whose turn it is, and whether it is still
wanted by then.
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from service.deadlines import CallerGone, Deadline, smoothed
from service.errors import DeadlineExceeded

_NICE = 10  # how far the threads stand back behind the event loop

Result = TypeVar("Result")


class Pool:
    """Threads at lowered priority. Who waits for one does so on the event loop, where he can be asked when his turn
    comes whether he is still there; what nobody waits for any more is never begun.
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
            CallerGone: he has.
            DeadlineExceeded: it would pass while waiting; or it passed, and what a thread still does is for nobody.
        """
        deadline.check(self.wait_seconds)
        self._pending += 1
        try:
            async with asyncio.timeout(deadline.seconds_left()) as limit, self._turns:
                if gone():
                    raise CallerGone
                start = time.perf_counter()
                result = await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
                self._seconds = smoothed(self._seconds, time.perf_counter() - start)
                return result
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded("the deadline passed before the pictures were done") from None
            raise
        finally:
            self._pending -= 1

    def shutdown(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _lower_priority() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux 0 is the calling thread
    except (AttributeError, OSError):
        return
