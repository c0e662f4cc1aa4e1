"""One request's facts, as everything that it passes finds them in its scope."""

import math
import time
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Receive, Scope

from service.catalogue import CAPABILITIES, LoadedModel
from service.deadlines import Deadline
from service.errors import PROTOCOL_PATH

CALL = "equipoise.call"
UNKNOWN_ENDPOINT = "other"
PROTOCOL_ENDPOINT = "v2_infer"
_ENDPOINTS = {f"/{capability}".encode(): capability for capability in CAPABILITIES}
_PROTOCOL_PATH = f"{PROTOCOL_PATH}/".encode()
_NEVER = Deadline(math.inf)


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
        message = at_hand(self._receive)
        return message is not None and message["type"] == "http.disconnect"

    def name_endpoint(self, path: str) -> None:
        """Set the metrics' label where no route does, of a request that is refused: the inference that it asks for."""
        self.endpoint = inference_of(path.encode()) or self.endpoint

    def server_timing(self) -> bytes:
        text = ""
        for name, seconds in self.stages:
            text += f"{name};dur={seconds * 1e3:.3f}, "
        return f"{text}total;dur={(time.perf_counter() - self.start) * 1e3:.3f}".encode()


RequestObserver = Callable[[Call, Scope, float], None]
"""Told of a request that has ended: its facts, its scope, its seconds."""


def inference_of(path: bytes) -> str:
    """The inference that a path is for, as it is named in the metrics; empty: none."""
    if path.startswith(_PROTOCOL_PATH) and path.endswith(b"/infer"):
        return PROTOCOL_ENDPOINT
    return _ENDPOINTS.get(path, "")


def at_hand(receive: Receive) -> Message | None:
    """What `receive` gives without waiting, or None: one step of it either ends with a message or blocks."""
    step: Any = receive()
    try:
        step.send(None)
    except StopIteration as stop:
        message: Message = stop.value
        return message
    step.close()
    return None
