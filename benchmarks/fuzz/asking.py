"""Sends requests over a few connections and holds every answer to what is promised of all of them."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from benchmarks.connection import Connection, Request
from benchmarks.fuzz.requests import make
from benchmarks.load import ROOT

_PATIENCE_SECONDS = 60.0
SLOW_SECONDS = 2.0
_PROBLEM = "urn:equipoise:problem:"
_NOT_FOR_CLIENTS = (b"Traceback", b"/lib/python", os.fsencode(ROOT))  # a stack trace, the path of a package or of ours


class Late(NamedTuple):
    """A request whose answer took over two seconds. cpu_seconds: the service's, asked for once more and alone."""

    kind: str
    number: int
    seconds: float
    cpu_seconds: float


@dataclass
class Findings:
    """What came back. statuses: of every kind of damage. wrong: (kind, number, what is wrong with its answer)."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    types: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, int, str]] = field(default_factory=list)
    late: list[Late] = field(default_factory=list)
    longest_seconds: float = 0.0

    def count(self) -> int:
        return sum(sum(found.values()) for found in self.statuses.values())

    def slow(self) -> list[Late]:
        """Late for want of speed; of the others the machine had other things to do."""
        return [late for late in self.late if late.cpu_seconds > SLOW_SECONDS]


async def ask_all(
    port: int,
    numbers: dict[str, range],
    seed: int,
    connections: int,
    findings: Findings,
    cpu_seconds: Callable[[], float],
) -> None:
    """The requests of these numbers of each kind, over so many connections at once.

    cpu_seconds: what the service has spent so far.
    """
    left = _interleaved(numbers)
    late: list[tuple[str, int, float]] = []

    async def client() -> None:
        connection = Connection(port)
        for kind, number in left:
            seconds = await _ask_one(connection, kind, number, seed, findings)
            findings.longest_seconds = max(findings.longest_seconds, seconds)
            if seconds > SLOW_SECONDS:
                late.append((kind, number, seconds))
        connection.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    alone = Connection(port)
    for kind, number, seconds in late:
        before = cpu_seconds()
        await _ask_one(alone, kind, number, seed, again := Findings())
        findings.late.append(Late(kind, number, round(seconds, 2), round(cpu_seconds() - before, 2)))
        findings.wrong += again.wrong
    alone.close()


def _interleaved(numbers: dict[str, range]) -> Iterator[tuple[str, int]]:
    """Every kind spread over the whole run."""
    most = max(map(len, numbers.values()))
    for step in range(most):
        for kind, those in numbers.items():
            for number in those[step * len(those) // most : (step + 1) * len(those) // most]:
                yield kind, number


async def _ask_one(connection: Connection, kind: str, number: int, seed: int, findings: Findings) -> float:
    """Ask, judge the answer, and give the seconds that it took."""
    request = make(kind, seed, number)
    start = time.perf_counter()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            status, head, body = await connection.ask(request)
    except (OSError, EOFError) as error:  # EOFError: asyncio.IncompleteReadError, which is one; OSError: a timeout too
        findings.wrong.append((kind, number, f"no answer: {error!r}"))
        return time.perf_counter() - start
    seconds = time.perf_counter() - start
    findings.statuses.setdefault(kind, Counter())[status] += 1
    if complaint := _judge(request, status, head, body, findings.types):
        findings.wrong.append((kind, number, complaint))
    return seconds


def _judge(request: Request, status: int, head: bytes, body: bytes, types: Counter[str]) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if any(text in body for text in _NOT_FOR_CLIENTS):
        return f"{status} that tells of the service's inside: {body[:300]!r}"
    if status >= 500:
        return f"{status}: {body[:300]!r}"
    if status >= 400:
        document = orjson.loads(body)
        if request.path.startswith("/v2"):
            return "" if list(document) == ["error"] else f"no error of the protocol: {body[:300]!r}"
        types[document.get("type", "").removeprefix(_PROBLEM)] += 1
        whole = b"application/problem+json" in head and document["status"] == status and document["detail"]
        return "" if whole else f"no problem document: {body[:300]!r}"
    if status != 200:
        return f"status {status}"
    if b"content-type: application/json" in head:
        for result in orjson.loads(body).get("results", ()):
            if problem := result.get("problem"):
                types[problem["type"].removeprefix(_PROBLEM)] += 1
                if problem["status"] >= 500:
                    return f"in place: {problem}"
    return ""
