"""A request that asks to go on in another protocol (`Upgrade: h2c`, as Java's client does, or `websocket`) is read as
one that does not ask, as RFC 9110 (7.8) lets a server.

llhttp takes what follows its head for the other protocol. Left to that, its body would be lost, and what of it comes
later would be read as the next request: two requests, where a proxy in front has seen one.
"""

from typing import Any, Protocol

import httptools


class Reader(Protocol):
    """Who is told of what is parsed. ended: it wants to hear no more."""

    ended: bool

    def plain_head(self) -> bytes:
        """The head that has just been read, without its `Upgrade`."""


class PlainParser(httptools.HttpRequestParser):
    """httptools' parser of requests. A head that asks for another protocol is parsed twice: with that wish, of which
    the reader makes nothing, and without.
    """

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._reader = reader

    def feed_data(self, data: Any) -> None:
        rest = memoryview(data)
        while not self._reader.ended:
            try:
                super().feed_data(rest)
                return
            except httptools.HttpParserUpgrade as wish:
                rest = rest[wish.args[0] :]
                super().feed_data(self._reader.plain_head())
