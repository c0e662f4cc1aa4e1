"""Clients that are refused and ask again at once: when they are read again."""

import asyncio
from collections import deque
from typing import Protocol

REFUSALS_A_TICK = 50
TICK_SECONDS = 0.01


class Flow(Protocol):
    """Of uvicorn: what is read of a client, and what is written to it."""

    @property
    def write_paused(self) -> bool: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Client(Protocol):
    """A connection. is_throttled: the `Throttle` holds it."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: Flow
    is_throttled: bool


class Throttle:
    """Bounds the time that refusals take from what was accepted.

    In every tick REFUSALS_A_TICK clients may be refused and ask again at once. The others are not read until their
    turn comes. Of 2,048 clients the last waits less than half a second.

    A refusal is cheap, but so is a small picture: a thousand clients that ask without a pause, whatever `Retry-After`
    says, would take all of the event loop's time.
    """

    def __init__(self) -> None:
        self._refused = 0  # in this tick
        self._waiting: deque[Client] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def refused(self, client: Client) -> None:
        """Told of every refusal."""
        self._refused += 1
        # Again where it waits already: what it had sent before is refused too, and uvicorn reads on after every answer.
        # One that takes no answers waits as well, or they would pile up.
        if self._refused > REFUSALS_A_TICK or client.is_throttled or client.flow.write_paused:
            client.flow.pause_reading()
            if not client.is_throttled:
                client.is_throttled = True
                self._waiting.append(client)
        if self._timer is None:
            self._timer = client.loop.call_later(TICK_SECONDS, self._tick, client.loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._refused = 0
        for _ in range(min(REFUSALS_A_TICK, len(self._waiting))):
            client = self._waiting.popleft()
            gone = client.transport.is_closing()
            client.is_throttled = client.flow.write_paused and not gone
            if client.is_throttled:
                self._waiting.append(client)
            elif not gone:
                client.flow.resume_reading()
        self._timer = loop.call_later(TICK_SECONDS, self._tick, loop) if self._waiting else None
