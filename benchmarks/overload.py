"""The service past its limits, on one core: overload, fairness, drain, swaps.

    python benchmarks/overload.py [--seconds 10] [--swaps 100] [--model equivae-digits] [--json FILE]

- Overload: full load (64 clients without a pause), then four times that rate whatever is answered, for requests of 32
  pictures and for single ones. Goodput counts answers with status 200.
- The cost of a refusal: a service whose queue is full beside a bare uvicorn that answers a constant.
- Fairness: single pictures, alone and beside requests of 1,000.
- Drain: SIGTERM under load; every request is answered, the process exits with 0.
- Swaps: new versions under load; every answer from one version, memory before and after.

The server has one core and the clients the other; on a busy machine read ratios, not rates. With the defaults it takes
about two minutes; `--seconds 4 --swaps 20` takes one.
"""

import argparse
import asyncio
import base64
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.clients import Clients, Tally, post
from benchmarks.contenders import marks, ours
from benchmarks.load import ROOT, Cores, Server, Target, cpu_seconds, running, tree_pss_mb
from benchmarks.serving import model_folder
from benchmarks.serving import picture as golden_picture

CLIENTS = 64
OVERLOAD = 4
IN_BATCH = 32
# A run of a graph never ends, so that one request holds the only place in the queue.
_FULL = """
import sys, time
from service import __main__
from service.engine import Engine
from service.model_store import ModelStore

load_all = ModelStore.load_all

def load_all_then_hang(self, **options):
    load_all(self, **options)
    Engine.run = lambda self, inputs: time.sleep(3600)

ModelStore.load_all = load_all_then_hang
sys.exit(__main__.main())
"""


def load(target: Target, request: bytes, connections: int, seconds: float, per_second: float | None = None) -> Tally:
    return uvloop.run(Clients(target.port, request, connections, per_second).run(seconds))


def memory_mb(target: Target) -> float:
    return tree_pss_mb(target.process.pid)


def batch(picture: bytes, size: int) -> bytes:
    data = base64.b64encode(picture).decode()
    return post("/classify", "application/json", json.dumps({"images": [{"data": data}] * size}).encode())


def overload(server: Server, cores: Cores, picture: bytes, size: int, seconds: float) -> dict[str, Any]:
    """Full load, then four times as much; `size` pictures a request."""
    request = post("/classify", "image/png", picture) if size == 1 else batch(picture, size)
    with running(server, cores, picture) as target:
        load(target, request, CLIENTS, 1.0)  # warm
        full = load(target, request, CLIENTS, seconds)
        before = memory_mb(target)
        offered = OVERLOAD * full.rate(200)
        over = load(target, request, 1024, seconds, offered)
        return {
            "pictures a request": size,
            "full load, pictures/s": full.rate(200) * size,
            "full load, p99 ms": full.milliseconds(99),
            "offered requests/s": offered,
            "sent requests/s": offered - over.unsent / over.duration,
            "goodput, pictures/s": over.rate(200) * size,
            "goodput / full load": over.rate(200) / full.rate(200),
            "accepted, p50 ms": over.milliseconds(50),
            "accepted, p99 ms": over.milliseconds(99),
            "refused requests/s": over.rate(429),
            "refused, p50 ms": over.milliseconds(50, 429),
            "statuses": over.statuses(),
            "broken connections": over.broken,
            "memory before, MB": before,
            "memory after, MB": memory_mb(target),
        }


def refusal(server: Server, floor: Server, cores: Cores, picture: bytes, seconds: float) -> dict[str, Any]:
    """What it costs to refuse everything, beside the HTTP floor."""
    full = replace(
        server,
        command=[sys.executable, "-c", _FULL, *server.command[3:]],
        environment=server.environment | {"EQUIPOISE_QUEUE_IMAGES": "1", "EQUIPOISE_MAX_IMAGES": "1"},
        path="/healthz",
        encode=lambda picture: None,  # type: ignore[arg-type, return-value]  # asked by GET until it is there
        read=lambda answer: {"label": answer["status"], "probability": 1.0},
    )
    full.environment["EQUIPOISE_INLINE_MILLISECONDS"] = "0"
    request = post("/classify", "image/png", picture)
    with running(full, cores, picture) as target:
        _wait_until(lambda: _get(target, "/readyz")[0] == 200)
        threading.Thread(target=load, args=(target, request, 1, 1.0), daemon=True).start()
        time.sleep(0.5)
        refused, cost = _cost(target, request, seconds)
        target.process.kill()  # it would wait for its hanging run
    with running(floor, cores, picture) as target:
        answered, least = _cost(target, request, seconds)
    return {
        "refusals/s": refused.rate(429),
        "HTTP floor, answers/s": answered.rate(200),
        "cost of a refusal, CPU us": cost,
        "cost of an answer of the HTTP floor, CPU us": least,
        "ratio of the costs": cost / least,
        "statuses": refused.statuses(),
    }


def _cost(target: Target, request: bytes, seconds: float) -> tuple[Tally, float]:
    """The server's CPU time an answer, microseconds; what else runs on the machine weighs less on it than on a rate."""
    before = cpu_seconds(target.process.pid)
    tally = load(target, request, CLIENTS, seconds)
    return tally, (cpu_seconds(target.process.pid) - before) / sum(tally.statuses().values()) * 1e6


def fairness(server: Server, cores: Cores, picture: bytes, seconds: float) -> dict[str, Any]:
    single, large = post("/classify", "image/png", picture), batch(picture, 1000)

    async def beside(port: int) -> tuple[Tally, Tally]:
        return await asyncio.gather(Clients(port, single, 1).run(seconds), Clients(port, large, 1).run(seconds))

    with running(server, cores, picture) as target:
        load(target, large, 1, 1.0)
        alone = load(target, single, 1, seconds)
        singles, batches = uvloop.run(beside(target.port))
    return {
        "alone, requests/s": alone.rate(200),
        "alone, p99 ms": alone.milliseconds(99),
        "beside batches of 1,000, requests/s": singles.rate(200),
        "beside batches of 1,000, p50 ms": singles.milliseconds(50),
        "beside batches of 1,000, p99 ms": singles.milliseconds(99),
        "a batch of 1,000, p50 ms": batches.milliseconds(50),
        "batches/s": batches.rate(200),
    }


def drain(server: Server, cores: Cores, picture: bytes, seconds: float) -> dict[str, Any]:
    draining = replace(server, environment=server.environment | {"EQUIPOISE_DRAIN_SECONDS": "2"})
    request = post("/classify", "image/png", picture)
    with running(draining, cores, picture) as target:
        threading.Timer(seconds / 2, lambda: target.process.send_signal(signal.SIGTERM)).start()
        tally = load(target, request, CLIENTS, seconds)
        return {
            "statuses": tally.statuses(),
            "connections closed by an answer": tally.closed,
            "requests without an answer": tally.broken,
            "exit status": target.process.wait(30),
        }


def swaps(server: Server, folder: Path, cores: Cores, picture: bytes, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        name = folder.parent.name
        write_version(folder, Path(scratch) / name, 1)
        command = [part if part != str(folder.parent.parent) else scratch for part in server.command]
        polling = server.environment | {"EQUIPOISE_MODEL_POLL_SECONDS": "0.05"}
        request = post("/classify", "image/png", picture)
        with running(replace(server, command=command, environment=polling), cores, picture) as target:
            load(target, request, 8, 1.0)
            before = memory_mb(target)
            not_ready = 0
            asked: list[Tally] = []
            stop = threading.Event()

            def ask() -> None:
                while not stop.is_set():
                    asked.append(load(target, request, 8, 2.0))

            asking = threading.Thread(target=ask)
            asking.start()
            start = time.monotonic()
            for version in range(2, count + 2):
                write_version(folder, Path(scratch) / name, version)
                shutil.rmtree(Path(scratch) / name / str(version - 1))
                while True:
                    status, answer = _get(target, "/readyz")
                    not_ready += status != 200
                    if answer.get("models") == [f"{name}/{version}"]:
                        break
                    time.sleep(0.01)
            taken = time.monotonic() - start
            stop.set()
            asking.join()
            time.sleep(1.0)
            statuses: dict[int, int] = {}
            for tally in asked:
                for status, number in tally.statuses().items():
                    statuses[status] = statuses.get(status, 0) + number
            return {
                "swaps": count,
                "seconds a swap": taken / count,
                "statuses": statuses,
                "requests without an answer": sum(tally.broken for tally in asked),
                "not ready": not_ready,
                "p99 ms, median over the time": sorted(tally.milliseconds(99) for tally in asked)[len(asked) // 2],
                "memory before, MB": before,
                "memory after, MB": memory_mb(target),
            }


def write_version(folder: Path, model: Path, version: int) -> Path:
    """A copy of a version's folder as another version."""
    aside = model / f".tmp-{version}"
    shutil.copytree(folder, aside)
    manifest = json.loads((aside / "manifest.json").read_text())
    (aside / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
    return aside.rename(model / str(version))


def _get(target: Target, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{target.port}{path}", timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, {}


def _wait_until(condition: Any) -> None:
    while not condition():
        time.sleep(0.05)


def report(figures: dict[str, dict[str, Any]]) -> None:
    for title, rows in figures.items():
        print(f"\n| {title} | |\n|---|---|")
        for name, value in rows.items():
            print(f"| {name} | {value:,.2f} |" if isinstance(value, float) else f"| {name} | {value} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--model", default="equivae-digits", help="a model that classifies (default: equivae-digits)")
    parser.add_argument("--seconds", type=float, default=10.0, help="a run (default: 10)")
    parser.add_argument("--swaps", type=int, default=100, help="new versions under load (default: 100)")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    folder = model_folder(arguments.model_store, arguments.model)
    picture = golden_picture(folder)
    cores = Cores()
    server, seconds = ours(folder), arguments.seconds
    if cores.client:
        os.sched_setaffinity(0, {int(cores.client[-1])})
    figures = {
        "overload, requests of 32 pictures": overload(server, cores, picture, IN_BATCH, seconds),
        "overload, single pictures": overload(server, cores, picture, 1, seconds),
        "refusals": refusal(server, marks(folder)[0], cores, picture, seconds / 2),
        "fairness": fairness(server, cores, picture, seconds / 2),
        "drain": drain(server, cores, picture, max(3.0, seconds / 2)),
        "swaps": swaps(server, folder, cores, picture, arguments.swaps),
    }
    report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
