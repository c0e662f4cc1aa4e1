"""The queue in front of an engine: what has arrived is taken, run as one batch and given back to its callers.

There is no timer. While a batch runs, requests pile up, and they are the next batch; an idle engine takes a single
picture at once. Requests that arrive in one turn of the event loop are one batch by that turn's end.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import cached_property
from operator import itemgetter
from typing import Literal, Protocol

import numpy as np

from service.deadlines import CallerGone, Deadline, smoothed
from service.engine import Array, Engine
from service.errors import DeadlineExceeded

Row = tuple[Array, ...]
"""One picture's inputs of the graph, [C,H,W] each, in the order of the manifest."""

# A caller that has waited this long is asked whether it is still there before its work is begun.
_ASK_AFTER_SECONDS = 0.02


class BatchObserver(Protocol):
    """What is told of a queue; `observability` implements it."""

    def batch(self, images: int, seconds: float, outputs: Mapping[str, Array]) -> None: ...

    def dropped(self, images: int, reason: "DropReason") -> None: ...


DropReason = Literal["caller_left", "deadline"]
"""Why rows that waited were never run."""


class Entry:
    """One request's rows on their way through the queue; after `Batcher.run` it holds the answer.

    Attributes:
        outputs: arrays [n, ...] in the order of the graph's outputs, n the number of rows.
        queue_seconds: from arrival to the begin of the run that has its first row, the wait for a thread that runs
            other graphs included. infer_seconds: of all runs with rows of it.
    """

    __slots__ = (
        "_given",
        "_parts",
        "deadline",
        "done",
        "enqueued",
        "gone",
        "infer_seconds",
        "outputs",
        "queue_seconds",
        "rows",
        "taken",
    )

    def __init__(
        self, rows: Sequence[Row], deadline: Deadline, gone: Callable[[], bool], done: "asyncio.Future[None]"
    ) -> None:
        self.rows = rows
        self.deadline = deadline
        self.gone = gone
        self.done = done
        self.enqueued = time.perf_counter()
        self.taken = 0
        self.queue_seconds = 0.0
        self.infer_seconds = 0.0
        self.outputs: list[Array] = []
        self._parts: list[tuple[int, list[Array]]] = []
        self._given = 0

    def has_left(self) -> bool:
        """Whether the caller has; one who cannot be asked counts as still there."""
        try:
            return self.gone()
        except Exception:
            return False

    def give(self, part: list[Array], start: int, stop: int) -> None:
        """Take the outputs of these rows; done when none is missing. Devices side by side may give later ones first."""
        self._parts.append((start, part))
        self._given += stop - start
        if self._given < len(self.rows):
            return
        first, *more = parts = [part for _, part in sorted(self._parts, key=itemgetter(0))]
        self.outputs = [np.concatenate(columns) for columns in zip(*parts, strict=True)] if more else first
        if not self.done.done():
            self.done.set_result(None)

    def expire(self) -> None:
        """Its time is up, wherever its rows are."""
        self.fail(DeadlineExceeded("the deadline passed before the pictures were answered"))

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


Batch = list[tuple[Entry, int, int]]
"""(entry, its first row in the batch, the row after its last)"""


class _Lane:
    """An engine and the thread of its device, which the graphs share. is_free: it has no batch. since: when the thread
    began its run; None where it runs none, as while it is busy with other graphs.
    """

    __slots__ = ("engine", "executor", "is_free", "since")

    def __init__(self, engine: Engine, executor: Executor) -> None:
        self.engine = engine
        self.executor = executor
        self.is_free = True
        self.since: float | None = None

    def run(self, inputs: list[Array]) -> tuple[list[Array], float, float]:
        """In the thread: outputs, begin, seconds."""
        start = self.since = time.perf_counter()
        try:
            outputs = self.engine.run(inputs)
            return outputs, start, time.perf_counter() - start
        finally:
            self.since = None


class Batcher:
    """A queue and the turns that empty it. Used from one event loop; a run that is too long for it is done in the
    thread of the engine's device.

    A turn takes one batch and runs it. The next turn is due while anything waits and an engine is free, after other
    connections had theirs; none is while nothing waits, so an idle queue is no task and holds nothing alive.

    Attributes:
        engine: one of the graph's; they differ in nothing but the device.
        depth: rows that wait.
    """

    def __init__(self, runners: Sequence[tuple[Engine, Executor]], observer: BatchObserver) -> None:
        """runners: the graph on every device, with the device's thread."""
        self._lanes = [_Lane(engine, executor) for engine, executor in runners]
        self.engine = engine = self._lanes[0].engine
        self._observer = observer
        self._waiting: deque[Entry] = deque()
        self._run_seconds = engine.run_seconds  # that a run takes, of late
        self.depth = 0
        self._ahead = 0  # of these rows, those that a new one waits for: of a request no more than its share of a batch
        self._due = False  # the next turn is
        # So that one large request does not hold up those behind it, it has at most this part of a shared batch.
        self._share = max(1, engine.max_batch // 4)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Asked for once: to ask for it is a system call in Python 3.11."""
        return asyncio.get_running_loop()

    @property
    def wait_seconds(self) -> float:
        """How long new rows would wait for those before them, by what the last runs took."""
        return math.ceil(self._ahead / (self.engine.max_batch * len(self._lanes))) * self._run_seconds

    @property
    def running_since(self) -> float | None:
        """When the oldest run in a thread began, by `time.perf_counter`; None where there is none."""
        since = [lane.since for lane in self._lanes]  # read once: the threads change them
        return min((start for start in since if start is not None), default=None)

    @property
    def engines(self) -> list[Engine]:
        """One a device."""
        return [lane.engine for lane in self._lanes]

    async def run(self, rows: Sequence[Row], deadline: Deadline, gone: Callable[[], bool]) -> Entry:
        """Put one request's rows in the queue and wait for their outputs.

        Args:
            gone: whether the caller has left; asked on the event loop, just before its work would begin.

        Raises:
            CallerGone: it has.
            DeadlineExceeded: it would pass while waiting, or it has passed.
        """
        deadline.check(self.wait_seconds)
        loop = self._loop
        entry = Entry(rows, deadline, gone, loop.create_future())
        self._waiting.append(entry)
        self._count(len(rows))
        self._call_turn()
        if self.engine.inline_batch >= self.engine.max_batch:  # the next turn comes for sure, and drops what is late
            await entry.done
            return entry
        late = loop.call_later(deadline.seconds_left(), self._expire, entry)
        try:
            await entry.done
        finally:
            late.cancel()
        return entry

    def _expire(self, entry: Entry) -> None:
        """Answer a caller whose time is up, whatever the thread does, and keep nothing of what it has not yet taken."""
        entry.expire()
        if entry in self._waiting:
            self._waiting.remove(entry)
            left = len(entry.rows) - entry.taken
            self._count(-left)
            self._observer.dropped(left, "deadline")

    def _count(self, rows: int) -> None:
        """So many of one request wait more, or fewer where negative."""
        self.depth += rows
        self._ahead += max(-self._share, min(rows, self._share))

    def _call_turn(self) -> None:
        if self._waiting and not self._due and any(lane.is_free for lane in self._lanes):
            self._due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._due = False
        batch: Batch = []
        try:
            self._take(batch)
            if batch:
                inputs = self._stack(batch)
                if len(inputs[0]) <= self.engine.inline_batch:
                    start = time.perf_counter()
                    outputs = self.engine.run(inputs)
                    self._give_back(batch, outputs, start, time.perf_counter() - start)
                else:
                    self._run_in_thread(batch, inputs)
        except Exception as error:  # whatever is raised is these callers' answer, the next ones are served
            self._fail(batch, error)
        self._call_turn()

    def _run_in_thread(self, batch: Batch, inputs: list[Array]) -> None:
        lane = next(lane for lane in self._lanes if lane.is_free)
        running = self._loop.run_in_executor(lane.executor, lane.run, inputs)
        lane.is_free = False

        def finish(running: "asyncio.Future[tuple[list[Array], float, float]]") -> None:
            lane.is_free = True
            try:
                self._give_back(batch, *running.result())
            except (Exception, asyncio.CancelledError) as error:  # cancelled: the service stops
                self._fail(batch, error)
            self._call_turn()

        running.add_done_callback(finish)

    def _take(self, batch: Batch) -> None:
        """Fill the next batch, at most `max_batch` rows."""
        room = self.engine.max_batch
        now = time.perf_counter()
        while self._waiting and room:
            entry = self._waiting.popleft()
            left = len(entry.rows) - entry.taken
            self._count(-left)
            if not self._is_wanted(entry, now):
                continue
            count = min(room, left, self._share if self._waiting else room)
            batch.append((entry, entry.taken, entry.taken + count))
            entry.taken += count
            room -= count
            if count < left:
                self._waiting.append(entry)
                self._count(left - count)

    def _is_wanted(self, entry: Entry, now: float) -> bool:
        """Whether somebody waits for this entry, in time; who does not is told so and counted."""
        if entry.done.done():
            return False
        if now > entry.deadline.at:
            entry.expire()
            self._observer.dropped(len(entry.rows) - entry.taken, "deadline")
        elif not entry.taken:
            if now - entry.enqueued > _ASK_AFTER_SECONDS and entry.has_left():
                entry.fail(CallerGone())
                self._observer.dropped(len(entry.rows), "caller_left")
        return not entry.done.done()

    def _stack(self, batch: Batch) -> list[Array]:
        rows = [row for entry, start, stop in batch for row in entry.rows[start:stop]]
        return [np.array(column) for column in zip(*rows, strict=True)]

    def _give_back(self, batch: Batch, outputs: list[Array], began: float, seconds: float) -> None:
        for entry in {entry for entry, _, _ in batch}:  # a large request may stand in it twice
            entry.infer_seconds += seconds
        at = 0
        for entry, start, stop in batch:
            count = stop - start
            if not start:
                entry.queue_seconds = began - entry.enqueued
            entry.give([output[at : at + count] for output in outputs], start, stop)
            at += count
        self._run_seconds = smoothed(self._run_seconds, seconds)
        self._observer.batch(at, seconds, dict(zip(self.engine.output_names, outputs, strict=True)))

    def _fail(self, batch: Batch, error: BaseException) -> None:
        """The answer of these callers; what else waits of them is skipped in its turn."""
        for entry, _, _ in batch:
            entry.fail(error)
