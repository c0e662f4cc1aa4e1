"""The threads for large work: turns, callers who leave, deadlines."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

from service.deadlines import CallerGone, Deadline
from service.errors import DeadlineExceeded
from service.pool import Pool
from tests.service.test_batching import here, soon


def test_who_waits_is_asked_when_the_turn_comes() -> None:
    done: list[str] = []

    def work(name: str) -> str:
        time.sleep(0.1)
        done.append(name)
        return name

    async def main() -> None:
        pool = Pool(threads=1)
        first = asyncio.create_task(pool.run(soon(), here, work, "first"))
        left = asyncio.create_task(pool.run(soon(), lambda: bool(done), work, "left"))
        late = asyncio.create_task(pool.run(soon(0.05), here, work, "late"))
        last = asyncio.create_task(pool.run(soon(), here, work, "last"))
        assert await first == "first"
        with pytest.raises(CallerGone):
            await left
        with pytest.raises(DeadlineExceeded):
            await late
        assert await last == "last"
        pool.executor.shutdown()

    asyncio.run(main())
    assert done == ["first", "last"]


def test_nothing_begins_behind_a_thread_that_is_busy_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Short deadlines one after the other: what waits is not handed to the thread, which would keep it to its turn."""

    class Picture:
        pass

    async def main() -> None:
        pool, busy = Pool(threads=1), threading.Event()
        with pytest.raises(DeadlineExceeded):
            await pool.run(soon(0.05), here, busy.wait, 20)
        pictures = [Picture() for _ in range(3)]
        kept = [weakref.ref(picture) for picture in pictures]
        asked: list[bool] = []
        while pictures:
            with pytest.raises(DeadlineExceeded):
                await pool.run(soon(0.05), lambda: asked.append(True) or False, id, pictures.pop())
        await asyncio.sleep(0)
        gc.collect()
        assert [picture() for picture in kept] == [None] * 3 and not asked
        busy.set()
        assert await pool.run(soon(), here, int, "7") == 7
        with pytest.raises(DeadlineExceeded):
            await pool.run(soon(0.05), here, lambda: time.sleep(0.1) or [].pop())
        assert await pool.run(soon(), here, int, "7") == 7
        gc.collect()
        assert not caplog.records
        pool.executor.shutdown()

    asyncio.run(main())


def test_what_the_work_raises_is_passed_on() -> None:
    async def main() -> None:
        pool = Pool(threads=1)
        for error in (TimeoutError, ValueError):

            def fail(kind: type[Exception] = error) -> None:
                raise kind("its own")

            with pytest.raises(error, match="its own"):
                await pool.run(soon(), here, fail)
        assert await pool.run(soon(), here, int, "7") == 7
        pool.executor.shutdown()

    asyncio.run(main())


def test_work_of_unlike_lengths_is_judged_by_no_average() -> None:
    """Drawings take seconds and the checks of headers microseconds: after a long piece all short ones are in time, and
    after short ones who waits for a long piece hears at its deadline.
    """

    async def main() -> None:
        pool = Pool(threads=1)
        await pool.run(soon(), here, time.sleep, 1)
        await asyncio.gather(*(pool.run(soon(0.5), here, time.sleep, 0.001) for _ in range(20)))
        long = asyncio.create_task(pool.run(soon(), here, time.sleep, 1))
        await asyncio.sleep(0)
        start = time.perf_counter()
        with pytest.raises(DeadlineExceeded, match="before the pictures were done"):
            await pool.run(soon(0.2), here, int)
        assert 0.2 <= time.perf_counter() - start < 0.9
        await long
        pool.executor.shutdown()

    asyncio.run(main())


def test_nothing_begins_after_the_deadline() -> None:
    done: list[str] = []

    async def main() -> None:
        pool = Pool(threads=1)
        with pytest.raises(DeadlineExceeded, match="has passed"):
            await pool.run(Deadline(time.perf_counter()), here, done.append, "late")
        assert await pool.run(soon(), here, int, "7") == 7
        pool.executor.shutdown()

    asyncio.run(main())
    assert not done


def test_as_much_runs_at_once_as_there_are_threads() -> None:
    together = threading.Barrier(3)

    async def main() -> None:
        pool = Pool(threads=3)
        await asyncio.gather(*(pool.run(soon(), here, together.wait, 20) for _ in range(9)))
        pool.executor.shutdown()

    asyncio.run(main())


def test_a_caller_who_is_cancelled_gives_its_turn_back() -> None:
    """Whether it waits for a turn or for its work."""

    async def main() -> None:
        pool = Pool(threads=1)
        tasks = [asyncio.create_task(pool.run(soon(), here, time.sleep, 0.1)) for _ in range(3)]
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True)
        )
        assert await pool.run(soon(), here, int, "7") == 7
        pool.executor.shutdown()

    asyncio.run(main())


def test_an_end_of_the_loop_before_that_of_the_work_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()

    async def main() -> Pool:
        pool = Pool(threads=1)
        with pytest.raises(DeadlineExceeded):
            await pool.run(soon(0.05), here, go_on.wait, 20)
        return pool

    pool = asyncio.run(main())
    go_on.set()
    pool.executor.shutdown()
    assert not caplog.records
