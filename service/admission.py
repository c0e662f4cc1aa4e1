"""While not one more picture is accepted, who asks for an inference is told so at once."""

import asyncio
import time
from collections.abc import Awaitable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.body import is_small
from service.budget import Budget
from service.call import CALL, PROTOCOL_ENDPOINT, Call, RequestObserver, inference_of
from service.errors import PROTOCOL_PATH, QueueFull
from service.headers import RequestIds
from service.life import Life
from service.observability import Metrics
from service.ready_answer import ReadyAnswer


class Admission:
    """Refuses inferences while not one more picture is accepted.

    Nothing of a refused request is read, not even its key. Refusing has to cost next to nothing, or refusals would take
    the time of what was accepted.
    """

    def __init__(self, app: ASGIApp, budget: Budget) -> None:
        self._app = app
        self._budget = budget

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if self._budget.is_full() and scope["type"] == "http":
            if endpoint := _endpoint(scope["method"].encode(), scope["path"].encode()):
                call: Call = scope[CALL]
                call.endpoint = endpoint
                call.unread = not is_small(call.headers)
                self._budget.check(1)
        return self._app(scope, receive, send)


class QueueGate:
    """Refuses the same by their heads, before there is a request: `connection.HeadGate`.

    The answer is ready-made. A task, its messages and their headers would cost several times as much. A body that the
    server may not throw away as it arrives is left to `Admission`.
    """

    def __init__(
        self, budget: Budget, life: Life, metrics: Metrics, ids: RequestIds, observers: Sequence[RequestObserver]
    ) -> None:
        self._budget = budget
        self._life = life
        self._metrics = metrics
        self._ids = ids
        self._observers = tuple(observers)
        self._answers: dict[tuple[int, bool], ReadyAnswer] = {}
        self._coming = 0  # let in during this turn of the event loop: they ask for their permits in the next one

    @property
    def is_shut(self) -> bool:
        return self._budget.is_full(self._coming) and not self._life.draining

    def let_in(self, method: bytes, path: bytes) -> None:
        """Count a request that the app answers, if its path as it is spelled asks for a permit: a thousand may arrive
        in one turn.
        """
        if not _endpoint(method, path):
            return
        if not self._coming:
            asyncio.get_running_loop().call_soon(self._forget)
        self._coming += 1

    def _forget(self) -> None:
        self._coming = 0

    def refuse(
        self, method: bytes, path: bytes, headers: dict[bytes, bytes], more: Sequence[tuple[bytes, bytes]]
    ) -> bytes | None:
        """The refusal, counted and told of; None: the app answers this one. more: headers of the server's."""
        start = time.perf_counter()
        endpoint = _endpoint(method, path)
        if not endpoint or not is_small(headers):
            return None
        kind = self._budget.retry_after_seconds(), endpoint == PROTOCOL_ENDPOINT
        if (answer := self._answers.get(kind)) is None:
            answer = self._answers[kind] = ReadyAnswer(self._budget.refusal(), PROTOCOL_PATH if kind[1] else "")
        request_id = self._ids.of(headers)
        seconds = time.perf_counter() - start
        self._metrics.problem(QueueFull.slug)
        self._metrics.request(endpoint, QueueFull.status, seconds)
        if self._observers:
            call = Call(headers, request_id, _nothing)
            call.endpoint, call.status = endpoint, QueueFull.status
            for observe in self._observers:
                observe(call, {"method": method.decode()}, seconds)
        return answer.write(request_id, (*more, (b"server-timing", b"total;dur=%.3f" % (seconds * 1e3))))


def _endpoint(method: bytes, path: bytes) -> str:
    """The inference that a request asks for; empty: none."""
    return inference_of(path) if method == b"POST" else ""


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
