"""Sends requests over a few connections and holds every answer to what is promised of all of them."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import orjson

from benchmarks.connection import Connection, Request
from benchmarks.fuzz.requests import make

_PATIENCE_SECONDS = 60.0
SLOW_SECONDS = 2.0
_PROBLEM = "urn:equipoise:problem:"


@dataclass
class Findings:
    """What came back. statuses: of every kind of damage. wrong: (kind, number, what is wrong with its answer).

    slow: (kind, number, seconds) of answers that took over two seconds, and, asked for once more and alone, over two
    seconds of the service's CPU time. busy: answers that took as long and did not: the machine had other things to do.
    """

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    types: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, int, str]] = field(default_factory=list)
    slow: list[tuple[str, int, float]] = field(default_factory=list)
    busy: int = 0
    longest_seconds: float = 0.0

    def count(self) -> int:
        return sum(sum(found.values()) for found in self.statuses.values())


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
    late: list[tuple[str, int]] = []

    async def client() -> None:
        connection = Connection(port)
        for kind, number in left:
            seconds = await _ask_one(connection, kind, number, seed, findings)
            findings.longest_seconds = max(findings.longest_seconds, seconds)
            if seconds > SLOW_SECONDS:
                late.append((kind, number))
        connection.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    alone = Connection(port)
    for kind, number in late:
        before = cpu_seconds()
        await _ask_one(alone, kind, number, seed, again := Findings())
        if again.wrong or cpu_seconds() - before > SLOW_SECONDS:
            findings.slow.append((kind, number, cpu_seconds() - before))
        else:
            findings.busy += 1
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
