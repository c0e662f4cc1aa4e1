"""One client's connection: uvicorn's HTTP within limits of our own."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Protocol, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from service.connections import Connections
from service.errors import HeadTimeout, HeadTooLarge, MalformedRequest, Problem, TooManyConnections
from service.ready_answer import ReadyAnswer
from service.transport import JoiningTransport

try:
    from service.upgrades import PlainParser
except ImportError:  # on Windows uvicorn has h11, which reads the body of such a request
    PlainParser = None  # type: ignore[assignment, misc]

HEAD_GATE = "equipoise.head_gate"
"""Where an app's lifespan state has a `HeadGate`, if it has one."""
MOST_HEAD_BYTES = 64 * 1024
"""The most of a URL and its headers, each with 32 bytes more (as RFC 9113, section 6.5.2, counts them)."""
_LINGER_SECONDS = 1.0  # closing on a client that still sends would lose it the answer
MOST_LINGERING = 256
"""Connections past the limit that are closed so late; each takes a file."""
_TOO_LARGE = HeadTooLarge(f"the limit is {MOST_HEAD_BYTES:,} bytes, with 32 more for each header")
_MALFORMED = MalformedRequest("it is not HTTP/1, or has a method or a header that a server does not take")


class HeadGate(Protocol):
    """Refuses some requests by their heads, in place of the app; see `admission.QueueGate`."""

    @property
    def is_shut(self) -> bool:
        """Whether `refuse` is to be asked at all."""

    def let_in(self, method: bytes, path: bytes) -> None:
        """Told of every request that goes to the app."""

    def refuse(
        self, method: bytes, path: bytes, headers: dict[bytes, bytes], more: Sequence[tuple[bytes, bytes]]
    ) -> bytes | None:
        """The whole answer, with `more` headers; None: the app answers this one."""


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's HTTP, with an answer for clients that connect past the limit of connections, and with limits on the
    bytes and the time of a head, and on the time for which a client reads nothing of its answer.

    Args:
        probe_port: the port whose connections are not counted.
        seconds: both limits of time.
    """

    counted = False
    refused = False  # the request whose body is arriving has been refused already
    is_throttled = False
    ended = False  # it has had its last answer, and what still comes is thrown away
    linger_timer: asyncio.TimerHandle | None = None  # of a connection past the limit
    in_head = False
    read = 0  # bytes of the last read
    # Bytes that have come since the parser last reported something: they are of a head, or a trailer, that is not
    # complete. It reports a complete head, a piece of a body, an end of a request. h11 reports nothing and has a limit
    # of its own; then the number stays below ours.
    head_bytes = -math.inf
    head_timer: asyncio.TimerHandle | None = None
    reader_timer: asyncio.TimerHandle | None = None  # while more waits to be sent than goes into the buffers

    def __init__(self, connections: Connections, probe_port: int | None, seconds: float, **named: Any) -> None:
        super().__init__(**named)
        self._connections, self._probe_port, self._seconds = connections, probe_port, seconds
        if PlainParser is not None:
            self.parser = PlainParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, JoiningTransport(cast(asyncio.Transport, transport))))
        here = self._connections
        if transport.get_extra_info("sockname")[1] != self._probe_port:
            if here.open >= here.limit:
                self._turn_away()
                return
            self.counted = True
            here.open += 1
        self._await_request()

    def _turn_away(self) -> None:
        here = self._connections
        here.refused += 1
        here.on_problem(TooManyConnections.slug)
        self.ended = True
        self._write(here.no_place)
        if here.lingering >= MOST_LINGERING:
            self.transport.close()
            return
        here.lingering += 1
        self.transport.write_eof()
        self.linger_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.counted:
            self._connections.open -= 1
        if self.linger_timer is not None:
            self.linger_timer.cancel()
            self._connections.lingering -= 1
        self._stop_head_timer()
        self._stop_reader_timer()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # which uvicorn leaves to itself where the client has cut the connection

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        self.read = len(data)
        self.head_bytes += self.read
        super().data_received(data)
        if self.head_bytes > MOST_HEAD_BYTES:
            self._end(_TOO_LARGE)
        elif self.in_head:  # few heads come in pieces
            if self.head_timer is None:
                self.head_timer = self.loop.call_later(self._seconds, self._head_is_late)
        elif self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self._await_request()  # it was nothing: empty lines, or the rest of a refused body

    def _await_request(self) -> None:
        """As uvicorn does after an answer; before the first request it would wait for ever."""
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def send_400_response(self, msg: str) -> None:
        self._end(_MALFORMED)

    def _end(self, problem: Problem) -> None:
        """The last answer, if it is this client's turn to have one; whatever it still sends is not looked at."""
        if self.ended:
            return
        self.ended = True
        self._connections.on_problem(problem.slug)
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._write_last(problem)
        elif cycle.more_body and not cycle.response_started and not getattr(self, "pipeline", None):
            self._write_last(problem)
            cycle.disconnected = True  # to the app it is a client that left in the middle of its body
            cycle.message_event.set()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _write_last(self, problem: Problem) -> None:
        self._write(ReadyAnswer(problem))
        self.transport.write_eof()

    def _write(self, last: ReadyAnswer) -> None:
        request_id = self._connections.ids.of(dict(self.headers) if self.in_head else {})
        self.transport.write(last.write(request_id, (*self.server_state.default_headers, (b"connection", b"close"))))

    def _head_is_late(self) -> None:
        self.head_timer = None
        if self.flow.read_paused:  # by us, until the requests before it are answered
            self.head_timer = self.loop.call_later(self._seconds, self._head_is_late)
        else:
            self._end(HeadTimeout(f"the head did not arrive within {self._seconds:g} s"))

    def _stop_head_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_reader_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # closing waits for a client that reads

    def _watch_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self.reader_timer = self.loop.call_later(self._seconds, self._look_at_reader, unread)

    def _look_at_reader(self, unread: int) -> None:
        """A client that took nothing since holds the whole answer in memory and its place for ever: it is cut."""
        if self.transport.get_write_buffer_size() < unread:
            self._watch_reader()
        else:
            self.transport.abort()

    def _stop_reader_timer(self) -> None:
        if self.reader_timer is not None:
            self.reader_timer.cancel()
            self.reader_timer = None

    # What httptools calls; h11, on Windows, has no such calls, and the app refuses by itself.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head = True
        if self.head_bytes < 0:
            self.head_bytes = self.read

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():  # the same head comes again without that
            if self.parser.get_method() == b"CONNECT":
                self._end(_MALFORMED)  # to a proxy, which this is not
            return
        self._stop_head_timer()
        # With 32 bytes for each header, as RFC 9113 (6.5.2) has it; what came in fewer bytes has too few to sum up.
        if max(self.read, self.head_bytes) > MOST_HEAD_BYTES // 8:
            if len(self.url) + sum(len(name) + len(value) + 32 for name, value in self.headers) > MOST_HEAD_BYTES:
                self._end(_TOO_LARGE)
        self.in_head = False
        self.head_bytes = 0
        if self.ended:
            self.refused = True
            return
        gate: HeadGate | None = self.app_state.get(HEAD_GATE)
        self.refused = gate is not None and gate.is_shut and self._refuse(gate)
        if self.refused:
            return
        super().on_headers_complete()
        if gate is not None:
            gate.let_in(self.parser.get_method(), self.url.partition(b"?")[0])

    def on_body(self, body: bytes) -> None:
        self.head_bytes = 0
        if not self.refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.head_bytes = 0
        if not self.refused:
            super().on_message_complete()

    def plain_head(self) -> bytes:
        """See `upgrades.Reader`."""
        head = b"%b %b HTTP/%b\r\n" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        for name, value in self.headers:
            if name != b"upgrade":
                head += b"%b: %b\r\n" % (name, value)
        return head + b"\r\n"

    def _refuse(self, gate: HeadGate) -> bool:
        """Whether the gate has answered; what asks for more than a plain answer on this connection is the app's."""
        waits_for_another = self.cycle is not None and not self.cycle.response_complete
        if waits_for_another or not self.counted or self.expect_100_continue:
            return False
        if not self.parser.should_keep_alive():
            return False
        path, always = self.url.partition(b"?")[0], self.server_state.default_headers
        answer = gate.refuse(self.parser.get_method(), path, dict(self.headers), always)
        if answer is None:
            return False
        self.transport.write(answer)
        self.on_response_complete()
        self._connections.throttle.refused(self)
        return True
