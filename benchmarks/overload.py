"""The service past its limits, on one core: overload, fairness, drain, swaps.

    python -m benchmarks.overload [--seconds 60] [--swaps 100] [--only PART ...] [--json results/overload.json]

- Refusals: what one costs, of a service whose queue is full, beside a bare uvicorn that answers a constant.
- Overload: full load (64 clients without a pause), then four times that rate for a minute whatever is answered, then
  full load again, for requests of 32 pictures and for single ones, with the default settings. Goodput counts answers
  with status 200, full load is the mean of before and after. By default there is room for each of 1,024 clients with
  single pictures; `singles_refused` lets pictures wait for 1.3 times as long as full load takes (queue_seconds), so
  that most are refused. `goodput_by_formula` is what is left of full load when every refusal takes its time: that of
  the same requests over as many connections where all are refused.
- Connections: single pictures over 64 and over 1,024 connections without a pause and over 1,024 at four times the
  rate, of the service, of the HTTP floor and of the raw ASGI mark: what so many at once cost whoever serves them. The
  CPU time an answer, by turns of seconds, so that what else the machine does weighs on all three; of the service its
  stages too.
- Fairness: single pictures, alone and beside requests of 1,000.
- Drain: SIGTERM under load; every request is answered, the process exits with 0.
- Swaps: see `swaps.py`. Memory before, meanwhile and after.

The server has one core and the clients the other; on a busy machine read ratios, not rates. `--only` measures some
parts and leaves the others of the JSON as they are. With the defaults about nine minutes.
"""

import argparse
import base64
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.clients import Clients, Tally, post
from benchmarks.contenders import marks, ours
from benchmarks.load import ROOT, Cores, Server, Target, cpu_seconds, parts, running, tree_pss_mb
from benchmarks.serving import machine, model_folder
from benchmarks.serving import picture as golden_picture
from benchmarks.swaps import get_json, swaps

CLIENTS = 64
OVERLOAD = 4
IN_BATCH = 32
WAIT = 1.3  # times full load's, for single pictures, so that there are refusals
PARTS = ("refusals", "batches", "singles", "singles_refused", "connections", "fairness", "drain", "swaps")
_CONNECTIONS = 1024
_TURNS = 5
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
    """Where only one such load runs, its clients have their core for themselves and stay awake."""
    return Clients(target.port, request, connections, per_second, awake=True).run(seconds)


def batch(picture: bytes, size: int) -> bytes:
    data = base64.b64encode(picture).decode()
    return post("/classify", "application/json", json.dumps({"images": [{"data": data}] * size}).encode())


def overload(
    server: Server, cores: Cores, picture: bytes, size: int, seconds: float, wait: float | None = None
) -> dict[str, Any]:
    """Full load, then four times as much; `size` pictures a request. wait: as long as so many times the median of full
    load pictures may wait; None: as by default.
    """
    request = post("/classify", "image/png", picture) if size == 1 else batch(picture, size)
    short = min(10.0, seconds)
    own: dict[str, str] = {}
    if wait is not None:
        with running(server, cores, picture) as target:
            load(target, request, CLIENTS, 1.0)  # warm
            longest = wait * load(target, request, CLIENTS, short / 2).milliseconds(50) / 1e3
        own["EQUIPOISE_QUEUE_SECONDS"] = f"{longest:.4f}"
    limited = replace(server, environment=server.environment | own)
    memory: list[float] = []
    shares: dict[str, dict[str, float]] = {}
    with running(limited, cores, picture) as target:
        load(target, request, CLIENTS, 1.0)
        with where(target, shares, "full load"):
            full = [load(target, request, CLIENTS, short)]
        offered = OVERLOAD * full[0].rate(200)
        load(target, request, _CONNECTIONS, 1.0, offered)  # its buffers are no growth
        before, worked = tree_pss_mb(target.process.pid), cpu_seconds(target.process.pid)
        for part in range(1, 5):
            timer = threading.Timer(part * seconds / 4, lambda: memory.append(tree_pss_mb(target.process.pid)))
            timer.start()
        with where(target, shares, "overload"):
            over = load(target, request, _CONNECTIONS, seconds, offered)
        worked = cpu_seconds(target.process.pid) - worked
        timer.join()
        full.append(load(target, request, CLIENTS, short))
    with refusing(server, cores, picture) as target:
        _, refusal_us = _cost(target, request, short / 2, _CONNECTIONS)
    refused = over.rate(429)
    full_rate = statistics.mean(tally.rate(200) for tally in full)
    full_p99 = statistics.mean(tally.milliseconds(99) for tally in full)
    return {
        "pictures_a_request": size,
        "settings": own,
        "full_load": full_rate * size,
        "full_load_before_and_after": [tally.rate(200) * size for tally in full],
        "full_load_p99_ms": full_p99,
        "offered_requests": offered,
        "sent_share": 1 - over.unsent / over.duration / offered,
        "server_cpu": worked / over.duration,
        "goodput": over.rate(200) * size,
        "goodput_share": over.rate(200) / full_rate,
        "refusal_cpu_us": refusal_us,
        "goodput_by_formula": 1 - refused * refusal_us * 1e-6,
        "p50_ms": over.milliseconds(50),
        "p99_ms": over.milliseconds(99),
        "p99_ratio": over.milliseconds(99) / full_p99,
        "refused_requests": refused,
        "refused_p99_ms": over.milliseconds(99, 429) if refused else None,
        "statuses": {str(status): count for status, count in over.statuses().items()},
        "broken": over.broken,
        "memory_mb": [round(size, 1) for size in (before, *memory)],
        "parts": shares,
    }


@contextmanager
def where(target: Target, shares: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    """Where the server's CPU time of a picture that is answered goes meanwhile, microseconds; refusals are in `all`."""
    before, worked = target.metrics(), cpu_seconds(target.process.pid)
    yield
    worked, after = cpu_seconds(target.process.pid) - worked, target.metrics()
    shares[name] = parts(before, after)
    shares[name]["all, us"] = worked / shares[name]["pictures"] * 1e6


def refusal(server: Server, floor: Server, cores: Cores, picture: bytes, seconds: float) -> dict[str, Any]:
    """What it costs to refuse everything, beside the HTTP floor."""
    request = post("/classify", "image/png", picture)
    with refusing(server, cores, picture) as target:
        refused, cost = _cost(target, request, seconds, CLIENTS)
    with running(floor, cores, picture) as target:
        answered, least = _cost(target, request, seconds, CLIENTS)
    return {
        "refusals_a_second": refused.rate(429),
        "floor_a_second": answered.rate(200),
        "cpu_us": cost,
        "floor_cpu_us": least,
        "ratio": cost / least,
        "statuses": {str(status): count for status, count in refused.statuses().items()},
    }


@contextmanager
def refusing(server: Server, cores: Cores, picture: bytes) -> Iterator[Target]:
    """The service with its queue full."""
    full = replace(
        server,
        command=[sys.executable, "-c", _FULL, *server.command[3:]],
        environment=server.environment | {"EQUIPOISE_QUEUE_IMAGES": "1", "EQUIPOISE_MAX_IMAGES": "1"},
        path="/healthz",
        encode=lambda picture: None,  # type: ignore[arg-type, return-value]  # asked by GET until it is there
        read=lambda answer: {"label": answer["status"], "probability": 1.0},
    )
    full.environment["EQUIPOISE_INLINE_MILLISECONDS"] = "0"
    with running(full, cores, picture) as target:
        _wait_until(lambda: get_json(target, "/readyz")[0] == 200)
        request = post("/classify", "image/png", picture)
        threading.Thread(target=Clients(target.port, request, 1).run, args=(1.0,), daemon=True).start()
        time.sleep(0.5)
        yield target
        target.process.kill()  # it would wait for its hanging run


def _wait_until(condition: Any) -> None:
    while not condition():
        time.sleep(0.05)


def _cost(
    target: Target, request: bytes, seconds: float, connections: int, per_second: float | None = None
) -> tuple[Tally, float]:
    """The server's CPU time an answer, microseconds, when it has no pause, as in overload: to be woken for every single
    one would cost more. What else runs on the machine weighs less on it than on a rate.
    """
    before = cpu_seconds(target.process.pid)
    tally = load(target, request, connections, seconds, per_second)
    return tally, (cpu_seconds(target.process.pid) - before) / sum(tally.statuses().values()) * 1e6


def connections(servers: Sequence[Server], cores: Cores, picture: bytes, seconds: float) -> dict[str, Any]:
    """The CPU time an answer and of its stages, microseconds, over few connections, over many, and over many at
    OVERLOAD times the rate; medians of five turns. The first of the servers is ours, which alone knows its stages.
    """
    request = post("/classify", "image/png", picture)
    figures: dict[str, Any] = {"many": _CONNECTIONS, "few": CLIENTS}
    for server in servers:
        with running(server, cores, picture) as target:
            rate = load(target, request, CLIENTS, 1.0).rate(200)
            loads = {"few": (CLIENTS, None), "many": (_CONNECTIONS, None), "overload": (_CONNECTIONS, OVERLOAD * rate)}
            turns: dict[str, list[dict[str, float]]] = {name: [] for name in loads}
            for _ in range(_TURNS):
                for name, (count, per_second) in loads.items():
                    before = target.metrics() if server is servers[0] else None
                    tally, cost = _cost(target, request, seconds, count, per_second)
                    stages = {} if before is None else parts(before, target.metrics())
                    turns[name].append({"answers a second": tally.rate(200), "all, us": cost} | stages)
        figures[server.name] = {
            name: {part: statistics.median(turn[part] for turn in found) for part in found[0]}
            for name, found in turns.items()
        }
    return figures


def fairness(server: Server, cores: Cores, picture: bytes, seconds: float) -> dict[str, Any]:
    single, large = post("/classify", "image/png", picture), batch(picture, 1000)

    with running(server, cores, picture) as target:
        load(target, large, 1, 1.0)
        alone = Clients(target.port, single, 1).run(seconds)
        with ThreadPoolExecutor(1) as pool:
            others = pool.submit(Clients(target.port, large, 1).run, seconds)
            singles, batches = Clients(target.port, single, 1).run(seconds), others.result()
    return {
        "alone_a_second": alone.rate(200),
        "alone_p99_ms": alone.milliseconds(99),
        "beside_a_second": singles.rate(200),
        "beside_p50_ms": singles.milliseconds(50),
        "beside_p99_ms": singles.milliseconds(99),
        "batch_p50_ms": batches.milliseconds(50),
        "batches_a_second": batches.rate(200),
    }


def drain(server: Server, cores: Cores, picture: bytes, seconds: float) -> dict[str, Any]:
    draining = replace(server, environment=server.environment | {"EQUIPOISE_DRAIN_SECONDS": "2"})
    request = post("/classify", "image/png", picture)
    with running(draining, cores, picture) as target:
        threading.Timer(seconds / 2, lambda: target.process.send_signal(signal.SIGTERM)).start()
        tally = load(target, request, CLIENTS, seconds)
        return {
            "statuses": {str(status): count for status, count in tally.statuses().items()},
            "closed_by_an_answer": tally.closed,
            "broken": tally.broken,
            "exit_status": target.process.wait(30),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--model", default="equivae-digits", help="a model that classifies (default: equivae-digits)")
    parser.add_argument("--second", default="equivae-mnist", help="swapped with it (default: equivae-mnist)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload (default: 60)")
    parser.add_argument("--swaps", type=int, default=100, help="new versions under load (default: 100)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these")
    parser.add_argument("--json", type=Path, help="write the figures there; those of other parts stay")
    arguments = parser.parse_args()
    folder, second = (model_folder(arguments.model_store, name) for name in (arguments.model, arguments.second))
    picture, cores, server, seconds = golden_picture(folder), Cores(), ours(folder), arguments.seconds
    if cores.client:
        os.sched_setaffinity(0, {int(cores.client[-1])})
    short = min(5.0, seconds)
    figures: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        figures = json.loads(arguments.json.read_text())
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "refusals": lambda: refusal(server, marks(folder)[0], cores, picture, short),
        "batches": lambda: overload(server, cores, picture, IN_BATCH, seconds),
        "singles": lambda: overload(server, cores, picture, 1, seconds),
        "singles_refused": lambda: overload(server, cores, picture, 1, seconds, WAIT),
        "connections": lambda: connections([server, *marks(folder)[:2]], cores, picture, short),
        "fairness": lambda: fairness(server, cores, picture, short),
        "drain": lambda: drain(server, cores, picture, short),
        "swaps": lambda: swaps(server, [folder, second], cores, picture, arguments.swaps),
    }
    for part in PARTS:
        if part in arguments.only:
            figures[part] = measures[part]() | {"machine": machine()}
            print(json.dumps({part: figures[part]}, indent=1), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
