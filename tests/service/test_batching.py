"""The queue: every caller gets its own rows, whatever else is in the batch."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.batching import Batcher
from service.deadlines import CallerGone, Deadline
from service.engine import Array, Engine


class Doubler:
    """Stands for an engine of one input [1] and two outputs; fails on a batch with a negative number."""

    def __init__(self, max_batch: int = 8, inline: bool = True, seconds: float = 0.0) -> None:
        self.max_batch = max_batch
        self.inline_batch = max_batch if inline else 0
        self.seconds = seconds
        self.run_seconds = 1e-4
        self.output_names = ["doubled", "next"]
        self.batches: list[list[float]] = []
        self.threads: set[int] = set()

    def run(self, inputs: list[Array]) -> list[Array]:
        (values,) = inputs
        self.batches.append(values[:, 0].tolist())
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if (values < 0).any():
            raise RuntimeError("negative")
        return [values * 2, values[:, 0] + 1]


class Counts:
    def __init__(self) -> None:
        self.images: list[int] = []
        self.seconds: list[float] = []
        self.gone: dict[str, int] = {}

    def batch(self, images: int, seconds: float, outputs: Mapping[str, Array]) -> None:
        assert [len(output) for output in outputs.values()] == [images] * 2
        self.images.append(images)
        self.seconds.append(seconds)

    def dropped(self, images: int, reason: str) -> None:
        self.gone[reason] = self.gone.get(reason, 0) + images


def run(engine: Doubler, executor: ThreadPoolExecutor, scenario: Callable[[Batcher], Any]) -> tuple[Any, Counts]:
    counts = Counts()

    async def main() -> Any:
        return await scenario(Batcher([(cast(Engine, engine), executor)], counts))

    return asyncio.run(main()), counts


def rows(*values: float) -> list[tuple[Array]]:
    return [(np.array([value], np.float32),) for value in values]


def here() -> bool:
    return False


def soon(seconds: float = 30.0) -> Deadline:
    return Deadline(time.perf_counter() + seconds)


def test_requests_of_one_turn_are_one_batch(executor: ThreadPoolExecutor) -> None:
    engine = Doubler(max_batch=8)
    _, counts = run(
        engine, executor, lambda batcher: asyncio.gather(*(batcher.run(rows(i), soon(), here) for i in range(5)))
    )
    assert engine.batches == [[0, 1, 2, 3, 4]]
    assert counts.images == [5]


class Request(NamedTuple):
    """size: rows. bad: the one that fails its run. wait: turns of the loop before it comes. leaves: it gives up."""

    size: int
    bad: int | None
    wait: int
    leaves: bool


REQUESTS = st.builds(
    lambda size, bad, wait, leaves: Request(size, bad if bad is None else bad % size, wait, leaves),
    size=st.sampled_from([1, 1, 1, 2, 5, 9, 30]),
    bad=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 29)),
    wait=st.integers(0, 6),
    leaves=st.sampled_from([False, False, False, True]),
)


@pytest.mark.parametrize("inline_batch", [32, 2, 0])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(REQUESTS, min_size=1, max_size=25), max_batch=st.sampled_from([1, 2, 8, 32]))
def test_each_caller_gets_its_own_rows(
    executor: ThreadPoolExecutor, inline_batch: int, requests: list[Request], max_batch: int
) -> None:
    """Whatever is beside it in a batch: requests of any size, some of which fail, some of whose callers give up. In the
    end all have their own rows or their own failure, and nothing waits any more.
    """
    engine = Doubler(max_batch=max_batch)
    engine.inline_batch = min(inline_batch, max_batch)
    failing = {number for number, request in enumerate(requests) if request.bad is not None}

    async def scenario(batcher: Batcher) -> None:
        async def ask(number: int, request: Request) -> None:
            for _ in range(request.wait):
                await asyncio.sleep(0)
            values = [number * 100.0 + row for row in range(request.size)]
            if request.bad is not None:
                values[request.bad] = -1.0
            asking = asyncio.create_task(batcher.run(rows(*values), soon(), here))
            if request.leaves:
                await asyncio.sleep(0)
                asking.cancel()
            try:
                entry = await asking
            except asyncio.CancelledError:
                assert request.leaves
                return
            except RuntimeError:
                # It failed in a run that had a bad row: its own, or a neighbour's.
                assert failing
                return
            assert number not in failing
            np.testing.assert_array_equal(entry.outputs[0], [[value * 2] for value in values])
            np.testing.assert_array_equal(entry.outputs[1], [value + 1 for value in values])

        async with asyncio.timeout(30):
            await asyncio.gather(*(ask(*item) for item in enumerate(requests)))
            while batcher.depth:  # rows of callers who have gone are skipped in their turn
                await asyncio.sleep(0)
            assert (await batcher.run(rows(3), soon(), here)).outputs[0].tolist() == [[6]]
        assert batcher.depth == 0

    run(engine, executor, scenario)
    assert max(len(batch) for batch in engine.batches) <= max_batch
    assert (threading.get_ident() in engine.threads) == (inline_batch > 0)


def test_small_batches_run_on_the_event_loop_and_larger_ones_in_the_thread(executor: ThreadPoolExecutor) -> None:
    engine = Doubler(max_batch=8)
    engine.inline_batch = 2

    async def scenario(batcher: Batcher) -> None:
        for size in (2, 3):
            engine.threads.clear()
            await batcher.run(rows(*range(size)), soon(), here)
            assert (
                engine.threads == {threading.get_ident()} if size == 2 else threading.get_ident() not in engine.threads
            )
        late = await asyncio.gather(batcher.run(rows(*range(8)), soon(), here), batcher.run(rows(7), soon(), here))
        assert late[1].outputs[0].tolist() == [[14]]

    run(engine, executor, scenario)


def test_a_failing_run_fails_its_callers_and_serves_the_next(executor: ThreadPoolExecutor) -> None:
    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(RuntimeError, match="negative"):
            await batcher.run(rows(-1), soon(), here)
        entry = await batcher.run(rows(3), soon(), here)
        assert entry.outputs[0].tolist() == [[6]]

    run(Doubler(), executor, scenario)


@pytest.mark.parametrize("inline", [True, False])
def test_rows_that_cannot_be_stacked_fail_and_the_next_are_served(executor: ThreadPoolExecutor, inline: bool) -> None:
    async def scenario(batcher: Batcher) -> None:
        ragged = [*rows(1), (np.zeros(7, np.float32),)]
        async with asyncio.timeout(5):
            with pytest.raises(ValueError, match="inhomogeneous"):
                await batcher.run(ragged, soon(), here)
            assert (await batcher.run(rows(3), soon(), here)).outputs[0].tolist() == [[6]]

    run(Doubler(inline=inline), executor, scenario)


@pytest.mark.parametrize("told", ["batch", "dropped"])
def test_an_observer_that_fails_stops_nobody_else(
    executor: ThreadPoolExecutor, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(batcher: Batcher) -> None:
        async with asyncio.timeout(5):
            with monkeypatch.context() as patch:
                patch.setattr(Counts, told, lambda self, *facts: 1 / 0)
                first = asyncio.create_task(batcher.run(rows(1), soon(), here))
                await asyncio.sleep(0.01)
                with pytest.raises(CallerGone):
                    await batcher.run(rows(2), soon(), lambda: True)
                await first
            assert (await batcher.run(rows(3), soon(), here)).outputs[0].tolist() == [[6]]

    run(Doubler(max_batch=1, inline=False, seconds=0.05), executor, scenario)


def test_a_caller_who_cannot_be_asked_is_still_there(executor: ThreadPoolExecutor) -> None:
    async def scenario(batcher: Batcher) -> None:
        async with asyncio.timeout(5):
            first = asyncio.create_task(batcher.run(rows(1), soon(), here))
            await asyncio.sleep(0.01)
            entry = await batcher.run(rows(2), soon(), lambda: bool(1 / 0))
            assert entry.outputs[0].tolist() == [[4]]
            await first

    run(Doubler(max_batch=1, inline=False, seconds=0.05), executor, scenario)


def test_a_run_counts_once_for_a_request_that_stands_in_it_twice(executor: ThreadPoolExecutor) -> None:
    engine = Doubler(max_batch=8, seconds=0.05)

    async def scenario(batcher: Batcher) -> Any:
        return await asyncio.gather(batcher.run(rows(1, 2, 3, 4), soon(), here), batcher.run(rows(5), soon(), here))

    entries, _ = run(engine, executor, scenario)
    assert engine.batches == [[1, 2, 5, 3, 4]]
    assert all(0.05 <= entry.infer_seconds < 0.1 for entry in entries)


def test_a_large_request_does_not_hold_up_small_ones(executor: ThreadPoolExecutor) -> None:
    engine = Doubler(max_batch=8)
    order: list[str] = []

    async def scenario(batcher: Batcher) -> None:
        async def request(name: str, size: int) -> None:
            await batcher.run(rows(*range(size)), soon(), here)
            order.append(name)

        await asyncio.gather(request("large", 200), request("small", 1), request("other", 1))

    run(engine, executor, scenario)
    assert order == ["small", "other", "large"]
    assert len(engine.batches) == 26  # 202 rows in full batches


def test_who_left_while_waiting_is_dropped(executor: ThreadPoolExecutor) -> None:
    engine = Doubler(max_batch=1, inline=False, seconds=0.05)

    async def scenario(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.run(rows(1), soon(), here))
        await asyncio.sleep(0.01)
        with pytest.raises(CallerGone):
            await batcher.run(rows(2), soon(), lambda: True)
        await first

    _, counts = run(engine, executor, scenario)
    assert engine.batches == [[1]]
    assert counts.gone == {"caller_left": 1}


def test_an_idle_queue_runs_a_single_picture_at_once(executor: ThreadPoolExecutor) -> None:
    async def scenario(batcher: Batcher) -> list[float]:
        return [(await batcher.run(rows(1), soon(), here)).queue_seconds for _ in range(20)]

    waited, _ = run(Doubler(), executor, scenario)
    assert sorted(waited)[10] < 0.005


class Gated(Doubler):
    """Its runs wait until the gate is open."""

    def __init__(self, gate: threading.Event, max_batch: int = 8) -> None:
        super().__init__(max_batch, inline=False)
        self.gate = gate

    def run(self, inputs: list[Array]) -> list[Array]:
        assert self.gate.wait(20)
        return super().run(inputs)


def test_waiting_for_a_thread_that_runs_other_graphs_is_no_running(executor: ThreadPoolExecutor) -> None:
    """Not in what a request is told, nor in the metrics, the estimate of waits, or the search for a run that hangs."""
    gate = threading.Event()
    counts = [Counts() for _ in range(4)]

    async def main() -> None:
        engines = [Gated(gate), *(Doubler(max_batch=1, inline=False) for _ in counts[1:])]
        first, *others = batchers = [
            Batcher([(cast(Engine, engine), executor)], told) for engine, told in zip(engines, counts, strict=True)
        ]
        running = [asyncio.ensure_future(batcher.run(rows(1, 2), soon(), here)) for batcher in batchers]
        while first.running_since is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        assert [batcher.running_since for batcher in others] == [None] * 3
        assert all(batcher.depth for batcher in others) and all(batcher.wait_seconds < 0.1 for batcher in others)
        gate.set()
        slow, *quick = await asyncio.gather(*running)
        assert slow.infer_seconds >= 0.19 and slow.queue_seconds < 0.1
        assert all(entry.infer_seconds < 0.1 and entry.queue_seconds >= 0.2 for entry in quick)
        assert [batcher.running_since for batcher in batchers] == [None] * 4

    asyncio.run(main())
    assert [max(told.seconds) < 0.1 for told in counts] == [False, True, True, True]


def test_every_device_takes_its_own_batches(executor: ThreadPoolExecutor) -> None:
    """While one is busy the other serves; both together answer what one could not."""
    gate = threading.Event()
    slow, fast = Gated(gate, max_batch=2), Doubler(max_batch=2, inline=False)

    async def scenario(batcher: Batcher) -> None:
        assert batcher.engines == [slow, fast] and batcher.running_since is None
        stuck = asyncio.ensure_future(batcher.run(rows(0, 1), soon(), here))
        while batcher.running_since is None:
            await asyncio.sleep(0)
        for value in range(2, 6):
            entry = await batcher.run(rows(value), soon(), here)
            assert entry.outputs[0].tolist() == [[2 * value]]
            assert batcher.running_since is not None and not stuck.done()
        gate.set()
        assert (await stuck).outputs[0].tolist() == [[0], [2]]
        assert batcher.running_since is None

    async def main() -> None:
        with ThreadPoolExecutor(1) as second:
            engines = [(cast(Engine, slow), executor), (cast(Engine, fast), second)]
            await scenario(Batcher(engines, Counts()))

    asyncio.run(main())
    assert (slow.batches, fast.batches) == ([[0, 1]], [[2], [3], [4], [5]])
    assert slow.threads.isdisjoint(fast.threads)


def test_rows_of_one_request_stay_in_order_on_several_devices(executor: ThreadPoolExecutor) -> None:
    """Its first rows run on a device that is slower than the one of the next rows."""
    slow, fast = Doubler(max_batch=4, inline=False, seconds=0.1), Doubler(max_batch=4, inline=False)

    async def main() -> None:
        with ThreadPoolExecutor(1) as second:
            batcher = Batcher([(cast(Engine, slow), executor), (cast(Engine, fast), second)], Counts())
            entry = await batcher.run(rows(*range(8)), soon(), here)
        assert entry.outputs[0][:, 0].tolist() == [2 * value for value in range(8)]
        assert entry.outputs[1].tolist() == [value + 1 for value in range(8)]

    asyncio.run(main())
    assert (slow.batches, fast.batches) == ([[0, 1, 2, 3]], [[4, 5, 6, 7]])
