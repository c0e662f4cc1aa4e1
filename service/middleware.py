"""What every request passes, as pure ASGI: its timings, its problems, the port that it has come by.

Nothing here makes a task, a context or a record a request: two wrapped callables are all that it costs. A layer that
has nothing to do afterwards is a plain function that gives back the awaitable of the next one.
"""

import logging
import time
from collections.abc import Awaitable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.body import is_small, linger
from service.call import CALL, Call, RequestObserver
from service.deadlines import CallerGone
from service.errors import (
    BodyTimeout,
    DeadlineExceeded,
    InternalError,
    InvalidHeader,
    NotFound,
    Problem,
    answer_to,
)
from service.headers import SECURITY_HEADERS, RequestIds, by_name, check_parsed
from service.life import Life
from service.logs import say
from service.observability import Metrics

PROBE_PATHS = frozenset({"/startupz", "/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})


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
        observers: Sequence[RequestObserver] = (),
    ) -> None:
        """observers: told of every request at its end. linger_bytes: at most read of a body that nobody will read."""
        self._app = app
        self._life = life
        self._metrics = metrics
        self._observers = tuple(observers)
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
            if scope["method"] == "POST":
                self._check_head(call, scope["path"])
            await self._app(scope, receive, send_marked)
        except Problem as problem:
            # without the frames that hold what has arrived of the body
            await self._answer(problem.without_traceback(), call, scope, receive, send_marked)
        except CallerGone:
            call.status = 499  # nobody hears it: the metrics alone
        except Exception as error:
            say(logging.ERROR, "request failed", error, request_id=request_id, path=scope["path"])
            if not call.status:  # where the answer has begun, the server can only cut the connection
                unexpected = InternalError("an unexpected error, logged under the request's id")
                await self._answer(unexpected, call, scope, receive, send_marked)
        finally:
            self._metrics.in_flight -= 1
            seconds = time.perf_counter() - call.start
            if call.model is not None:
                call.model.leave()  # before an observer, which may fail: else the version is never closed
            # The server's receive knows the scope: a circle, which would wait for the garbage collector. And a
            # connection keeps its last request's scope for as long as it idles.
            del scope[CALL]
            self._metrics.request(call.endpoint, call.status, seconds)
            for observe in self._observers:
                observe(call, scope, seconds)

    def _check_head(self, call: Call, path: str) -> None:
        try:
            check_parsed(call.headers)
        except InvalidHeader:
            call.unread = not is_small(call.headers)
            call.name_endpoint(path)
            raise

    async def _answer(self, problem: Problem, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.problem(problem.slug)
        status, headers, body = answer_to(problem, scope["path"], call.request_id)
        headers.append((b"content-length", b"%d" % len(body)))
        if call.unread:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": call.unread})
        if call.unread:
            if not isinstance(problem, BodyTimeout | DeadlineExceeded):
                await linger(receive, self._linger_bytes)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


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
