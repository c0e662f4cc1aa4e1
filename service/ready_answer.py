"""The answer to a problem as the bytes of HTTP/1.1, for clients that are answered without the app."""

from collections.abc import Iterable
from http import HTTPStatus

from service.errors import Problem, answer_to
from service.headers import SECURITY_HEADERS

_ID = "{request-id}"


class ReadyAnswer:
    """What the app would send to who asks for `path`, made once: there may be thousands a second of it. Only the
    request's id and headers of this one answer are put in.
    """

    def __init__(self, problem: Problem, path: str = "") -> None:
        status, headers, body = answer_to(problem, path, _ID)
        self._status = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
        head = _lines([*headers, (b"x-request-id", _ID.encode()), *SECURITY_HEADERS])
        self._parts = (head + b"\r\n" + body).split(_ID.encode())
        self._ids = body.count(_ID.encode())
        self._length = len(body) - self._ids * len(_ID)

    def write(self, request_id: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """headers: besides those of the problem and of every answer."""
        length = b"content-length: %d\r\n" % (self._length + self._ids * len(request_id))
        return self._status + _lines(headers) + length + request_id.encode().join(self._parts)


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])
