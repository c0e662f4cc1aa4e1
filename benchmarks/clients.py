"""Clients in one thread that cost little: one request again and again, as fast as it is answered or at a given rate.

At a rate (open loop) requests are sent when they are due, whatever became of those before; their time runs from then.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import numpy as np

_TICK_SECONDS = 0.001


@dataclass
class Tally:
    """What came back. seconds: of every answer, by status. broken: connections that ended without an answer.

    unsent: requests that were due when no connection was free. closed: answers that asked to close the connection.
    """

    seconds: dict[int, list[float]] = field(default_factory=dict)
    broken: int = 0
    unsent: int = 0
    closed: int = 0
    duration: float = 0.0

    def rate(self, status: int) -> float:
        return len(self.seconds.get(status, ())) / self.duration

    def milliseconds(self, percentile: float, status: int = 200) -> float:
        taken = self.seconds.get(status)
        return float(np.percentile(taken, percentile)) * 1e3 if taken else float("nan")

    def statuses(self) -> dict[int, int]:
        return {status: len(taken) for status, taken in sorted(self.seconds.items())}


class _Connection(asyncio.Protocol):
    def __init__(self, clients: "Clients") -> None:
        self._clients = clients
        self._buffer = b""
        self._transport: asyncio.Transport
        self.due: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._clients.ready(self)

    def ask(self, due: float) -> None:
        self.due = due
        self._transport.write(self._clients.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        self._buffer = self._buffer[end + 4 + length :]
        due, self.due = self.due, None
        assert due is not None
        self._clients.answered(self, int(head[9:12]), time.perf_counter() - due, b"connection: close" in head)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.due is not None:
            self._clients.tally.broken += 1

    def close(self) -> None:
        self._transport.close()


class Clients:
    """request: the whole HTTP request. connections: how many at most. per_second: None asks as fast as is answered."""

    def __init__(self, port: int, request: bytes, connections: int, per_second: float | None = None) -> None:
        self.request = request
        self.tally = Tally()
        self._port = port
        self._connections = connections
        self._per_second = per_second
        self._open: list[_Connection] = []
        self._idle: list[_Connection] = []
        self._asking = True

    async def run(self, seconds: float) -> Tally:
        """Ask for so long, then wait for what is under way (at most half a minute)."""
        loop = asyncio.get_running_loop()
        for _ in range(self._connections):
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
            self._open.append(connection)
        start = time.perf_counter()
        sent = 0
        while (now := time.perf_counter()) < start + seconds:
            if self._per_second is not None:
                due = int((now - start) * self._per_second)
                while sent < due:
                    if self._idle:
                        self._idle.pop().ask(start + sent / self._per_second)
                    else:
                        self.tally.unsent += 1
                    sent += 1
            await asyncio.sleep(_TICK_SECONDS)
        self._asking = False
        self.tally.duration = time.perf_counter() - start
        while (
            any(connection.due is not None for connection in self._open) and time.perf_counter() < start + seconds + 30
        ):
            await asyncio.sleep(0.01)
        for connection in self._open:
            connection.close()
        return self.tally

    def ready(self, connection: _Connection) -> None:
        if self._per_second is not None:
            self._idle.append(connection)
        elif self._asking:
            connection.ask(time.perf_counter())

    def answered(self, connection: _Connection, status: int, seconds: float, closes: bool) -> None:
        self.tally.seconds.setdefault(status, []).append(seconds)
        if closes:  # a server that drains: the next request would go to another one
            self.tally.closed += 1
        else:
            self.ready(connection)


def post(path: str, content_type: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
