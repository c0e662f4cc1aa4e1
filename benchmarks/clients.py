"""Clients in one thread that cost little: one request again and again, as fast as it is answered or at a given rate.

At a rate (open loop) requests are sent when they are due, whatever became of those before; their time runs from then.
Sockets and epoll without an event loop: a client shares the machine with the service, and asyncio's share of a request
is larger than that of a refusal.

Clients that are `awake` look for answers without a pause, for which they need a core of their own: to wake a process
on another core is the sender's time, which a service is not charged for where its clients are on other machines.
"""

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_TICK_SECONDS = 0.001
_LEAVE_SECONDS = 30.0  # to wait for what is under way in the end
_READ_BYTES = 256 * 1024


@dataclass
class Tally:
    """What came back. seconds: of every answer, by status. broken: connections that ended without an answer.

    unsent: requests that were due when no connection was free. closed: answers that asked to close the connection.
    cpu_seconds: the clients' own time on the processor, of `duration`.
    """

    seconds: dict[int, list[float]] = field(default_factory=dict)
    broken: int = 0
    unsent: int = 0
    closed: int = 0
    duration: float = 0.0
    cpu_seconds: float = 0.0

    def rate(self, status: int) -> float:
        return len(self.seconds.get(status, ())) / self.duration

    def milliseconds(self, percentile: float, status: int = 200) -> float:
        taken = self.seconds.get(status)
        return float(np.percentile(taken, percentile)) * 1e3 if taken else float("nan")

    def statuses(self) -> dict[int, int]:
        return {status: len(taken) for status, taken in sorted(self.seconds.items())}


class _Connection:
    """due: of the request under way, on the clock of `time.perf_counter`. unsent: what the socket has not taken yet."""

    __slots__ = ("buffer", "due", "socket", "unsent")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.buffer = b""
        self.due: float | None = None
        self.unsent = memoryview(b"")


class Clients:
    """request: the whole HTTP request. connections: how many at most. per_second: None asks as fast as is answered.
    heard: told of every answer, its head included.
    """

    def __init__(
        self,
        port: int,
        request: bytes,
        connections: int,
        per_second: float | None = None,
        awake: bool = False,
        heard: Callable[[bytes], None] | None = None,
    ) -> None:
        self._request = request
        self._heard = heard
        self._per_second = per_second
        self._pause = 0.0 if awake else _TICK_SECONDS
        self._poll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._tally = Tally()
        for _ in range(connections):
            connection = _Connection(port)
            self._open[connection.socket.fileno()] = connection
            self._poll.register(connection.socket, select.EPOLLIN)
            self._idle.append(connection)

    def run(self, seconds: float) -> Tally:
        """Ask for so long, then wait for what is under way (at most half a minute)."""
        tally = self._tally
        start, start_cpu = time.perf_counter(), time.thread_time()
        sent = 0
        while (now := time.perf_counter()) < start + seconds:
            if self._per_second is None:
                while self._idle:
                    self._ask(self._idle.pop(), now)
            else:
                due = int((now - start) * self._per_second)
                while sent < due:
                    if self._idle:
                        self._ask(self._idle.pop(), start + sent / self._per_second)
                    else:
                        tally.unsent += 1
                    sent += 1
            self._hear(self._pause)
        tally.duration = time.perf_counter() - start
        tally.cpu_seconds = time.thread_time() - start_cpu
        while len(self._idle) < len(self._open) and time.perf_counter() < start + seconds + _LEAVE_SECONDS:
            self._hear(0.01)
        for connection in list(self._open.values()):
            self._close(connection)
        self._poll.close()
        return tally

    def _ask(self, connection: _Connection, due: float) -> None:
        connection.due = due
        try:
            taken = connection.socket.send(self._request)
        except OSError:
            self._close(connection)
            return
        if taken < len(self._request):
            connection.unsent = memoryview(self._request)[taken:]
            self._poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def _hear(self, seconds: float) -> None:
        """What has come within so long."""
        for number, event in self._poll.poll(seconds):
            connection = self._open[number]
            try:
                if event & select.EPOLLOUT:
                    self._send_more(connection)
                if event & ~select.EPOLLOUT:
                    self._receive(connection)
            except OSError:
                self._close(connection)

    def _send_more(self, connection: _Connection) -> None:
        connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        if not connection.unsent:
            self._poll.modify(connection.socket, select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        data = connection.socket.recv(_READ_BYTES)
        if not data:
            self._close(connection)
            return
        data = connection.buffer + data
        end = data.find(b"\r\n\r\n") + 4
        length = data.find(b"content-length:", 0, end) + 15
        if end < 4 or len(data) < end + int(data[length : data.find(b"\r", length)]):
            connection.buffer = data
            return
        connection.buffer = b""
        assert connection.due is not None
        taken = time.perf_counter() - connection.due
        connection.due = None
        status = int(data[9:12])
        if (seconds := self._tally.seconds.get(status)) is None:
            seconds = self._tally.seconds[status] = []
        seconds.append(taken)
        if self._heard is not None:
            self._heard(data)
        if data.find(b"connection: close", 0, end) >= 0:  # a server that drains: the next one would go elsewhere
            self._tally.closed += 1
            self._close(connection)
        else:
            self._idle.append(connection)

    def _close(self, connection: _Connection) -> None:
        if connection.due is not None:
            self._tally.broken += 1
        elif connection in self._idle:
            self._idle.remove(connection)
        del self._open[connection.socket.fileno()]
        connection.socket.close()


def post(path: str, content_type: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
