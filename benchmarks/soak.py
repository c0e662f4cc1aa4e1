"""Ten minutes of everything at once, and nothing that grows: memory, file descriptors, threads, tasks, series.

    python -m benchmarks.soak [--minutes 10] [--json results/soak.json]

A service with three models and an admin key gets, all the time and together:
- good requests to every endpoint, in every form of body, over connections that are kept;
- bad input, drawn as `benchmarks.fuzz` draws it;
- clients that leave: in the middle of a body, before their answer, with and without a reset;
- deadlines of a millisecond;
- a new version of one model every few seconds, the old one's folder removed, every fourth one damaged;
- another model unloaded and loaded again, as often;
- for a third of the time four times as many batches as it can answer, past a small queue.

Samples are taken while there is no overload. Judged: the process lives; good requests get 200, or 429 and 504, which
overload brings, and nothing else; in the end no request, picture or byte is held; file descriptors, threads and tasks
are those of the beginning, or few more; memory and series in the last quarter are at most a tenth above the second's.

Threads and series grow at first and then no more: a pool makes its thread for the first work that comes to it, and a
series begins with the first answer of its endpoint and status.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import re
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.connection import Connection, Request
from benchmarks.contenders import ours
from benchmarks.fuzz.requests import MAKERS, make
from benchmarks.load import ROOT, Cores, Target, running, tree_pss_mb
from benchmarks.serving import machine
from benchmarks.serving import picture as golden_picture
from benchmarks.swaps import write_version
from service.keys import new_key

STORE = ROOT / "model_store"
SWAPPED, RELOADED, VARIANTS = "equivae-digits", "mcevae-mnist-upright", "symmetry-letters"
CYCLE_SECONDS = 30.0  # of which the first third is overload
SWAP_SECONDS = 4.0
SAMPLE_SECONDS = 3.0
SETTLE_SECONDS = 60.0  # at most, after the traffic
_ENDPOINTS = ("classify", "embed", "transform", "canonicalize", "augment")  # that take pictures in the same forms
_OVERLOADING = 48  # connections that send batches without a pause
_IN_BATCH = 64
_SETTINGS = {
    "EQUIPOISE_QUEUE_IMAGES": "512",
    "EQUIPOISE_MAX_IMAGES": "256",
    "EQUIPOISE_MAX_PIXELS": "1000000",
    "EQUIPOISE_BODY_TIMEOUT_SECONDS": "2",
    "EQUIPOISE_REQUEST_TIMEOUT_SECONDS": "20",
    "EQUIPOISE_MODEL_POLL_SECONDS": "0.5",
    "EQUIPOISE_DEFAULT_EMBED": SWAPPED,
    "EQUIPOISE_DEFAULT_TRANSFORM": RELOADED,
    "EQUIPOISE_DEFAULT_CANONICALIZE": RELOADED,
}


@dataclass
class Sample:
    """memory_mb: proportional set size. series: lines of the metrics."""

    seconds: float
    memory_mb: float
    files: int
    threads: int
    tasks: int
    series: int


@dataclass
class Soak:
    """What happened. statuses: by kind of traffic. good_by_quarter: good requests answered in each quarter of the time,
    whose clients ask again 2 ms later. wrong: answers and failures that should not have been.
    """

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    good_by_quarter: list[int] = field(default_factory=lambda: [0] * 4)
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    swaps: int = 0

    def note(self, kind: str, what: int | str) -> None:
        self.statuses.setdefault(kind, Counter())[str(what)] += 1


def good_requests(png: bytes) -> list[Request]:
    """Of every endpoint, in every form of body; with a version where the model keeps it."""
    data = base64.b64encode(png).decode()
    kind = {"Content-Type": "image/png"}
    of_pictures = [
        (kind, png),
        ({"Content-Type": "application/octet-stream"}, png),
        _form(png, "image"),
        _form(png, "images", "images"),
        _json({"images": [{"data": data}] * 16}),
    ]
    tensor = np.zeros((2, 1, 8, 8), np.float32)
    tensors = {"name": "image", "shape": [2, 1, 8, 8], "datatype": "FP32"}
    pictures = {"name": "image", "shape": [1], "datatype": "BYTES"}
    infer = [
        _json({"inputs": [tensors | {"data": tensor.ravel().tolist()}]}),
        _json({"inputs": [pictures | {"data": [data]}]}),
        _binary(tensors, tensor.tobytes()),
        _binary(pictures, len(png).to_bytes(4, "little") + png),
    ]
    kept = f"/v2/models/{VARIANTS}/versions/1"
    paths = ("/startupz", "/healthz", "/readyz", "/metrics", "/models", "/openapi.json", "/docs")
    paths += ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{SWAPPED}", f"/v2/models/{SWAPPED}/ready")
    paths += (kept, f"{kept}/ready")
    return [
        *(Request(f"/{name}", *body) for name in _ENDPOINTS for body in of_pictures),
        Request("/canonicalize?undo=all", kind | {"Accept": "image/png"}, png),
        Request(f"/transform?model={VARIANTS}&version=1", kind, png),
        Request("/recombine", *_form(png, "content", "style")),
        Request("/recombine", *_json({"content": {"data": data}, "style": {"data": data}})),
        *(Request(f"/v2/models/{SWAPPED}{graph}/infer", *body) for graph in ("", ".embed") for body in infer),
        *(Request(f"{kept}/infer", *body) for body in (infer[1], infer[3])),
        Request("/v2/repository/index", *_json({})),
        *(Request(path, method="GET") for path in paths),
    ]


def _json(document: Any) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/json"}, json.dumps(document).encode()


def _form(png: bytes, *names: str) -> tuple[dict[str, str], bytes]:
    heads = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() for name in names]
    parts = b"".join(head + png + b"\r\n" for head in heads)
    return {"Content-Type": "multipart/form-data; boundary=x"}, parts + b"--x--\r\n"


def _binary(described: dict[str, Any], data: bytes) -> tuple[dict[str, str], bytes]:
    """A message of the inference protocol with one tensor behind it."""
    _, head = _json({"inputs": [described | {"parameters": {"binary_data_size": len(data)}}]})
    length = {"Inference-Header-Content-Length": str(len(head))}
    return {"Content-Type": "application/octet-stream"} | length, head + data


class Traffic:
    """All clients of one soak, in one event loop."""

    def __init__(self, target: Target, png: bytes, soak: Soak, seconds: float) -> None:
        self._port = target.port
        self._key = {"Authorization": f"Bearer {target.server.key}"}
        self._png = png
        self._soak = soak
        self._start = time.monotonic()
        self._seconds = seconds
        self._end = self._start + seconds

    def overloaded(self) -> bool:
        return (time.monotonic() - self._start) % CYCLE_SECONDS < CYCLE_SECONDS / 3

    async def run(self, sample: Callable[[], None]) -> None:
        clients = [self._good(seed) for seed in range(4)] + [self._bad(seed) for seed in range(2)]
        clients += [self._leaving(seed) for seed in range(2)] + [self._hurried(), self._reloading()]
        clients += [self._overloading() for _ in range(_OVERLOADING)]
        await asyncio.gather(*clients, self._sampling(sample))

    def _on(self) -> bool:
        return time.monotonic() < self._end

    def _with_key(self, request: Request) -> Request:
        return replace(request, headers=request.headers | self._key)

    async def _ask(self, connection: Connection, kind: str, request: Request, allowed: Sequence[int]) -> None:
        try:
            status, _, body = await connection.ask(self._with_key(request))
        except (OSError, EOFError) as error:
            self._soak.note(kind, "no answer")
            self._soak.wrong.append(f"{kind}: {request.path}: {error!r}")
            return
        self._soak.note(kind, status)
        if status not in allowed:
            self._soak.wrong.append(f"{kind}: {request.path}: {status} {body[:200]!r}")

    async def _good(self, seed: int) -> None:
        connection, draw = Connection(self._port), random.Random(seed)
        requests = good_requests(self._png)
        while self._on():
            # What began before the overload may end in it, and its queue outlives it.
            await self._ask(connection, "good", draw.choice(requests), (200, 429, 504))
            quarter = int(4 * (time.monotonic() - self._start) / self._seconds)
            self._soak.good_by_quarter[min(quarter, 3)] += 1  # the last one may end after the time
            await asyncio.sleep(0.002)
        connection.close()

    async def _bad(self, seed: int) -> None:
        connection, kinds, number = Connection(self._port), tuple(MAKERS), 0
        while self._on():
            request = make(kinds[number % len(kinds)], seed, number)
            await self._ask(connection, "bad", request, (200, *range(400, 500), 504))
            number += 1
            await asyncio.sleep(0.005)
        connection.close()

    async def _leaving(self, seed: int) -> None:
        """Half of a request, or all of it, and gone."""
        draw = random.Random(seed)
        whole = [self._with_key(request).encode() for request in good_requests(self._png)]
        while self._on():
            data = draw.choice(whole)
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(data if draw.random() < 0.5 else data[: draw.randrange(1, len(data))])
                await asyncio.sleep(draw.choice((0, 0, 0.001, 0.01)))
                if draw.random() < 0.5:
                    reset = struct.pack("ii", 1, 0)  # a reset instead of a proper end
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                writer.transport.abort() if draw.random() < 0.5 else writer.close()
                self._soak.note("leaving", "left")
            await asyncio.sleep(0.02)

    async def _hurried(self) -> None:
        connection = Connection(self._port)
        headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": "1"}
        while self._on():
            await self._ask(connection, "hurried", Request("/canonicalize", headers, self._png), (200, 429, 504))
            await asyncio.sleep(0.05)
        connection.close()

    async def _reloading(self) -> None:
        """While it is away the model for variants, which is then alone, answers requests for poses that name none."""
        connection = Connection(self._port)
        while self._on():
            for change in ("unload", "load"):
                request = Request(f"/v2/repository/models/{RELOADED}/{change}")
                await self._ask(connection, "repository", request, (200,))
            await asyncio.sleep(SWAP_SECONDS)
        connection.close()

    async def _overloading(self) -> None:
        data = base64.b64encode(self._png).decode()
        body = json.dumps({"images": [{"data": data}] * _IN_BATCH}).encode()
        request = Request("/classify", {"Content-Type": "application/json"}, body)
        connection = Connection(self._port)
        while self._on():
            if self.overloaded():
                await self._ask(connection, "overload", request, (200, 429, 504))
            else:
                connection.close()
                await asyncio.sleep(0.2)
        connection.close()

    async def _sampling(self, sample: Callable[[], None]) -> None:
        while self._on():
            await asyncio.sleep(SAMPLE_SECONDS)
            into = (time.monotonic() - self._start) % CYCLE_SECONDS
            if into > CYCLE_SECONDS / 2:  # the overload's queue has been answered by then
                await asyncio.to_thread(sample)


def swap(scratch: Path, folder: Path, soak: Soak, stop: threading.Event) -> None:
    """New versions under load; every fourth is damaged and must change nothing."""
    version = 1
    while not stop.wait(SWAP_SECONDS):
        version += 1
        made = write_version(folder, scratch / SWAPPED, version)
        if version % 4 == 0:
            (made / "embed.onnx").write_bytes(b"damaged")
        else:
            soak.swaps += 1
        for old in (version - 1, version - 2):
            if old % 4 or old < version - 1:
                shutil.rmtree(scratch / SWAPPED / str(old), ignore_errors=True)


def take_sample(target: Target, start: float) -> Sample:
    metrics = target.metrics()
    process = Path(f"/proc/{target.process.pid}")
    return Sample(
        seconds=round(time.monotonic() - start, 1),
        memory_mb=round(tree_pss_mb(target.process.pid), 1),
        files=len(list((process / "fd").iterdir())),
        threads=int(re.findall(r"^Threads:\s+(\d+)", (process / "status").read_text(), re.MULTILINE)[0]),
        tasks=int(metrics["equipoise_event_loop_tasks"]),
        series=len(metrics),
    )


def settled(target: Target) -> dict[str, float]:
    """What is still counted as under way when the traffic has ended and there was time to finish it."""
    end = time.monotonic() + SETTLE_SECONDS
    time.sleep(3)  # threads and files follow
    while True:
        metrics = target.metrics()
        left = {name: metrics[f"equipoise_{name}"] for name in ("accepted_images", "accepted_bytes")}
        left["other_requests_in_flight"] = metrics["equipoise_requests_in_flight"] - 1
        if not any(left.values()) or time.monotonic() > end:
            return left
        time.sleep(1)


def judge(soak: Soak, left: dict[str, float], before: Sample, after: Sample) -> list[str]:
    """What did not stay as it was; empty where all did."""
    found = [f"{len(soak.wrong)} wrong answers: {soak.wrong[0]}"] if soak.wrong else []
    found += [f"{name} is {value:g} in the end" for name, value in left.items() if value]
    for name, room in (("files", 8), ("threads", 2), ("tasks", 4)):  # threads: of the pools, see above
        if getattr(after, name) > getattr(before, name) + room:
            found.append(f"{name}: {getattr(before, name)} before, {getattr(after, name)} after")
    # The fewest series: a version that is being loaded beside the old one has its own.
    for name, of in (("memory_mb", statistics.median), ("series", min)):
        second, last = (_quarter(soak.samples, number, name, of) for number in (1, 3))
        if last > 1.1 * second:
            found.append(f"{name}: {second:.0f} in the second quarter, {last:.0f} in the last")
    return found


def _quarter(
    samples: list[Sample], number: int, name: str, of: Callable[[list[float]], float] = statistics.median
) -> float:
    """A figure's median, or another statistic of it, in a quarter of the time."""
    count = len(samples)
    quarter = samples[number * count // 4 : (number + 1) * count // 4] or samples
    return of([getattr(sample, name) for sample in quarter])


def run(minutes: float) -> dict[str, Any]:
    folder, soak = STORE / SWAPPED / "1", Soak()
    png = golden_picture(folder)
    key, line = new_key()
    with tempfile.TemporaryDirectory() as name, tempfile.NamedTemporaryFile("w") as keys:
        scratch = Path(name)
        for model in (RELOADED, VARIANTS):
            shutil.copytree(STORE / model, scratch / model)
        write_version(folder, scratch / SWAPPED, 1)
        keys.write(line.replace(" use ", " admin "))
        keys.flush()
        server = ours(scratch / SWAPPED / "1")
        settings = server.environment | _SETTINGS | {"EQUIPOISE_API_KEYS": keys.name}
        server = replace(server, environment=settings, key=key)
        stop = threading.Event()
        with running(server, Cores(), png) as target:
            start = time.monotonic()
            before = take_sample(target, start)
            swapping = threading.Thread(target=swap, args=(scratch, folder, soak, stop))
            swapping.start()
            traffic = Traffic(target, png, soak, 60 * minutes)
            try:
                asyncio.run(traffic.run(lambda: soak.samples.append(take_sample(target, start))))
            finally:  # where the service has ended no sample can be taken, and versions would be made for ever
                stop.set()
                swapping.join()
            left = settled(target)
            after = take_sample(target, start)
            alive = target.process.poll() is None
    failed = judge(soak, left, before, after) + ([] if alive else ["the service ended"])
    return {
        "minutes": minutes,
        "machine": f"{machine()}, load {os.getloadavg()[1]:.1f} over five minutes",
        "answers": {kind: dict(sorted(found.items())) for kind, found in soak.statuses.items()},
        "good_by_quarter": soak.good_by_quarter,
        "swaps": soak.swaps,
        "wrong": soak.wrong[:20],
        "failed": failed,
        "before": vars(before),
        "after": vars(after),
        "left": left,
        "memory_mb_by_quarter": [_quarter(soak.samples, number, "memory_mb") for number in range(4)],
        "samples": [list(vars(sample).values()) for sample in soak.samples],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    found = run(arguments.minutes)
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found) + "\n")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
