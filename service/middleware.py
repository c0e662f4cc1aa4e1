"""What every request passes, as pure ASGI: its id, its timings, its problems, the limits on its body.

Nothing here makes a task, a context or a record a request: two wrapped callables are all that it costs. A layer that
has nothing to do afterwards is a plain function that gives back the awaitable of the next one.
"""

import asyncio
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.budget import Budget
from service.catalogue import CAPABILITIES, LoadedModel
from service.deadlines import CallerGone, Deadline
from service.errors import (
    PROTOCOL_PATH,
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    InternalError,
    NotFound,
    Problem,
    render,
)
from service.life import Life
from service.observability import Metrics, say

CALL = "equipoise.call"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_LINGER_SECONDS = 1.0
_LISTS = frozenset({b"accept", b"content-encoding", b"tracestate"})  # of the headers that are read here
FREE_BODY_BYTES = 1024 * 1024
"""The part of a body that is not counted in the budget while it arrives: no more than a connection may cost, and enough
for a small picture.
"""
UNKNOWN_ENDPOINT = "other"
PROTOCOL_ENDPOINT = "v2_infer"
_ENDPOINTS = {f"/{capability}".encode(): capability for capability in CAPABILITIES}
_PROTOCOL_PATH = f"{PROTOCOL_PATH}/".encode()
_NEVER = Deadline(math.inf)
PROBE_PATHS = frozenset({"/startupz", "/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


class Call:
    """One request's facts, in the scope under `CALL`.

    Attributes:
        headers: by lower-case name, see `by_name`.
        deadline: set by the route.
        endpoint: set by the route, or by who refuses the request before it; a label of the metrics.
        key: name of the API key that was shown, else empty.
        model: the version that answers, entered by this request.
        stages: (name, seconds) for the Server-Timing header, in order.
        unread: the request was refused while its body was still arriving.
    """

    __slots__ = (
        "_receive",
        "deadline",
        "endpoint",
        "headers",
        "key",
        "model",
        "request_id",
        "stages",
        "start",
        "status",
        "unread",
    )

    def __init__(self, headers: dict[bytes, bytes], request_id: str, receive: Receive) -> None:
        self.headers = headers
        self.deadline = _NEVER
        self._receive = receive
        self.request_id = request_id
        self.start = time.perf_counter()
        self.endpoint = UNKNOWN_ENDPOINT
        self.key = ""
        self.model: LoadedModel | None = None
        self.stages: list[tuple[str, float]] = []
        self.status = 0
        self.unread = False

    def has_left(self) -> bool:
        """Whether the client of a request whose body was read has gone, without waiting.

        `receive` has nothing more to give but the client's leaving.
        """
        message = _at_hand(self._receive)
        return message is not None and message["type"] == "http.disconnect"

    def name_endpoint(self, path: str) -> None:
        """Set the metrics' label where no route does, of a request that is refused: the inference that it asks for."""
        self.endpoint = inference_of(path.encode()) or self.endpoint

    def server_timing(self) -> bytes:
        text = ""
        for name, seconds in self.stages:
            text += f"{name};dur={seconds * 1e3:.3f}, "
        return f"{text}total;dur={(time.perf_counter() - self.start) * 1e3:.3f}".encode()


def inference_of(path: bytes) -> str:
    """The inference that a path is for, as it is named in the metrics; empty: none."""
    if path.startswith(_PROTOCOL_PATH) and path.endswith(b"/infer"):
        return PROTOCOL_ENDPOINT
    return _ENDPOINTS.get(path, "")


def by_name(lines: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """A request's headers. Lines of one that is a list are one (RFC 9110, section 5.3); else the last line holds."""
    headers: dict[bytes, bytes] = {}
    for name, value in lines:
        headers[name] = b"%b, %b" % (headers[name], value) if name in _LISTS and name in headers else value
    return headers


Note = Callable[[Call, Scope, float], None]
"""Told of a request that has ended: its facts, its scope, its seconds."""


class RequestIds:
    """A request's id: what its client gives, where that is fit for a header and a log; else a new one."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count()

    def of(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{self._prefix}-{next(self._numbers):x}"


class RequestEdge:
    """The outermost layer: request id, Server-Timing, metrics, and every exception as a problem document. While the
    service drains every answer closes its connection, so that its client makes the next one elsewhere.
    """

    def __init__(
        self,
        app: ASGIApp,
        life: Life,
        metrics: Metrics,
        ids: RequestIds,
        linger_bytes: int,
        notes: Sequence[Note] = (),
    ) -> None:
        """notes: called at the end of every request, see `Note`."""
        self._app = app
        self._life = life
        self._metrics = metrics
        self._notes = tuple(notes)
        self._linger_bytes = linger_bytes
        self._ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = by_name(scope["headers"])
        request_id = self._ids.of(headers)
        call = scope[CALL] = Call(headers, request_id, receive)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"server-timing", call.server_timing()),
                    *(() if call.endpoint == "docs" else SECURITY_HEADERS),  # a page has its own
                ]
                if self._life.draining and not call.unread:  # then it closes anyway
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        self._metrics.in_flight += 1
        try:
            await self._app(scope, receive, send_marked)
        except Problem as problem:
            # without the frames that hold what has arrived of the body
            await self._answer(problem.without_traceback(), call, scope, receive, send_marked)
        except CallerGone:
            call.status = 499  # nobody hears it: the metrics alone
        except Exception as error:
            say(logging.ERROR, "request failed", error, request_id=request_id, path=scope["path"])
            if not call.status:  # where the answer has begun, the server can only cut the connection
                await self._answer(unexpected(), call, scope, receive, send_marked)
        finally:
            self._metrics.in_flight -= 1
            seconds = time.perf_counter() - call.start
            if call.model is not None:
                call.model.leave()  # before a note, which may fail: a version that was replaced would never be closed
            # The server's receive knows the scope: a circle, which would wait for the garbage collector. And a
            # connection keeps its last request's scope for as long as it idles.
            del scope[CALL]
            self._metrics.request(call.endpoint, call.status, seconds)
            for note in self._notes:
                note(call, scope, seconds)

    async def _answer(self, problem: Problem, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.problem(problem.slug)
        body, media_type = render(problem, scope["path"], call.request_id)
        headers = [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body))]
        for name, value in problem.headers.items():
            headers.append((name.lower().encode(), value.encode()))
        if call.unread:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": call.unread})
        if call.unread:
            if not isinstance(problem, BodyTimeout | DeadlineExceeded):
                await _linger(receive, self._linger_bytes)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def unexpected() -> InternalError:
    return InternalError("an unexpected error, logged under the request's id")


async def _linger(receive: Receive, left: int) -> None:
    """Read on for a moment, at most `left` bytes: closing on a client that still sends would reset the connection and
    lose the answer.
    """
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return


class TwoPorts:
    """A second port for probes and metrics; the first one then has no metrics."""

    def __init__(self, app: ASGIApp, probe_port: int) -> None:
        self._app = app
        self._probe_port = probe_port

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            path = scope["path"]
            if scope["server"][1] == self._probe_port:
                if path not in PROBE_PATHS:
                    raise NotFound(f"this port has {', '.join(sorted(PROBE_PATHS))}")
            elif path == "/metrics":
                raise NotFound("metrics are on a port of their own")
        return self._app(scope, receive, send)


class BodyLimits:
    """Refuses a body by its declared length, by what has really arrived, by the time it takes, and by the memory that
    all bodies take together: what has arrived past the free part is in the budget until the request ends.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_seconds: float, budget: Budget) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        call: Call = scope[CALL]
        declared = call.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            call.unread = True
            call.name_endpoint(scope["path"])
            raise self._too_large()
        arrived = held = 0
        complete = False

        async def receive_limited() -> Message:
            nonlocal arrived, held, complete
            if complete:  # what follows the body is the client's leaving, whenever that is
                return await receive()
            message = _at_hand(receive)  # a small body came with its head, and needs no timer
            if message is None:
                latest = call.start + self._timeout_seconds
                try:
                    async with asyncio.timeout(min(latest, call.deadline.at) - time.perf_counter()):
                        message = await receive()
                except TimeoutError:
                    call.unread = True
                    if call.deadline.at < latest:
                        raise DeadlineExceeded("the deadline passed before the body had arrived") from None
                    raise BodyTimeout(f"the body did not arrive within {self._timeout_seconds:g} s") from None
            arrived += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if arrived > FREE_BODY_BYTES or arrived > self._max_bytes:
                call.unread = not complete
                if arrived > self._max_bytes:
                    raise self._too_large()
                self._budget.acquire(0, arrived - FREE_BODY_BYTES - held)
                held = arrived - FREE_BODY_BYTES
                call.unread = False
            return message

        try:
            await self._app(scope, receive_limited, send)
        finally:
            if held:
                self._budget.release(0, held)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the limit is {self._max_bytes:,} bytes", max_bytes=self._max_bytes)


def _at_hand(receive: Receive) -> Message | None:
    """What `receive` gives without waiting, or None: one step of it either ends with a message or blocks."""
    step: Any = receive()
    try:
        step.send(None)
    except StopIteration as stop:
        message: Message = stop.value
        return message
    step.close()
    return None


def is_small(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a body is declared to be so small that the server may as well throw it away as it arrives."""
    declared = headers.get(b"content-length", b"0")
    return declared.isdigit() and int(declared) <= FREE_BODY_BYTES and b"transfer-encoding" not in headers


async def read_body(receive: Receive) -> bytes:
    """The whole body; one message is the common case and is not copied.

    Raises:
        CallerGone: the client left in the middle of it.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        return body
    arrived = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise CallerGone
        arrived += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(arrived)
        message = await receive()
