"""The headers of requests as they are read here, and those that every answer carries."""

import itertools
import re
import secrets
from collections.abc import Iterable, Mapping

from service.errors import InvalidHeader

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_LISTS = frozenset({b"accept", b"content-encoding", b"tracestate"})  # of the headers that are read here
_PARSED = ((b"accept", "Accept"), (b"content-type", "Content-Type"))
MOST_PARSED_BYTES = 1024
"""The most of a header that is taken apart, on the event loop and in time that may grow with its square: under 1 ms."""
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


def by_name(lines: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """A request's headers. Lines of one that is a list are one (RFC 9110, section 5.3); else the last line holds."""
    headers: dict[bytes, bytes] = {}
    for name, value in lines:
        headers[name] = b"%b, %b" % (headers[name], value) if name in _LISTS and name in headers else value
    return headers


def check_parsed(headers: Mapping[bytes, bytes]) -> None:
    """
    Raises:
        InvalidHeader: one that would be taken apart is longer than MOST_PARSED_BYTES.
    """
    for name, spelled in _PARSED:
        length = len(headers.get(name, b""))
        if length > MOST_PARSED_BYTES:
            detail = f"{spelled} has {length:,} bytes, at most {MOST_PARSED_BYTES:,} are read"
            raise InvalidHeader(detail, header=spelled)


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
