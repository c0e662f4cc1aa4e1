"""A connection's transport with fewer system calls."""

import asyncio
from typing import Any


class JoiningTransport:
    """A transport whose writes of one turn of the event loop are one: the head of an answer and its body in one packet.

    uvicorn writes them one after the other, and each is a system call, which is dear beside a small answer.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():  # else the client has gone
            self._transport.writelines(parts)
