"""The body of a request while it arrives: its limits, and what is done with one that nobody will read."""

import asyncio
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.budget import Budget
from service.call import CALL, Call, at_hand
from service.deadlines import CallerGone
from service.errors import BodyTimeout, BodyTooLarge, DeadlineExceeded

FREE_BODY_BYTES = 1024 * 1024
"""The part of a body that is not counted in the budget while it arrives: no more than a connection may cost, and enough
for a small picture.
"""
_LINGER_SECONDS = 1.0


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
            message = at_hand(receive)  # a small body came with its head, and needs no timer
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


def has_body(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def is_small(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a body is declared to be so small that the server may as well throw it away as it arrives."""
    declared = headers.get(b"content-length", b"0")
    return declared.isdigit() and int(declared) <= FREE_BODY_BYTES and b"transfer-encoding" not in headers


async def linger(receive: Receive, left: int) -> None:
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
