"""What small pictures cost beside something else, the service on one core and its clients on another.

    python -m benchmarks.beside [--seconds 3] [--repeats 3] [--only canonicalize large ...] [--json results/beside.json]

- canonicalize: `/canonicalize` of a picture of the model's own size, and `/classify` of the same picture, with the
  parts of a request's time by the service's own metrics; the rest of its CPU time is HTTP.
- large: `/classify` alone, and while ten pictures of 12 megapixels wait, one of them always in the pool's one thread.
- models: `/classify` with 1, 2, 8 and 32 models loaded, copies of one.
- idle: `/classify` beside 1, 10, 100 and 1,000 connections that are open and say nothing.
- minutes: `/classify` for ten minutes without a pause, minute by minute.
- batch: JSON batches of 256 PNG files over one connection, and where their time goes by the answers' Server-Timing.
- tensors: binary tensors of 256 images through the inference protocol beside ONNX Runtime alone, see `tensors.py`.
- refuse: refusing everything beside a bare uvicorn that answers a constant, see `overload.py`.
- start: `python -m service` with the shipped models, from the command to `/readyz`.

Repeats alternate, and rows are medians. On a machine that does something else as well read the ratios.
"""

import argparse
import base64
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.clients import Clients, post
from benchmarks.contenders import marks, ours
from benchmarks.load import ROOT, Cores, Sample, Target, cpu_seconds, free_port, parts, running
from benchmarks.overload import refusal
from benchmarks.serving import graph_microseconds, machine, model_folder, picture, store_of
from benchmarks.tensors import compare

CLIENTS = 64
PHOTOGRAPHS = 10
IN_BATCH = 256
Row = dict[str, Any]


def canonicalize(bench: "Bench") -> list[Row]:
    poses = bench.arguments.poses
    with bench.serving(bench.folder.parent.name, poses) as target:
        other = replace(target, server=replace(target.server, path=f"/canonicalize?model={poses}"))
        targets = {"/classify": target, f"/canonicalize, {poses}": other}
        rows = bench.alternate(targets)
        for row, asked in zip(rows, targets.values(), strict=True):
            before = target.metrics()
            asked.measure(CLIENTS, bench.arguments.seconds)
            row |= parts(before, target.metrics())
    graphs = [(bench.folder, "classify"), (model_folder(bench.store, poses, "canonicalize"), "canonicalize")]
    for row, (folder, graph) in zip(rows, graphs, strict=True):
        for size in (8, 32):
            row[f"graph alone at batch {size}, us"] = graph_microseconds(folder, size, graph=graph)
    return rows


def large(bench: "Bench") -> list[Row]:
    """The photographs are asked for again as soon as they are answered, so that there are always ten."""
    file = BytesIO()
    with Image.open(ROOT / "examples" / "page-3.jpg") as page:
        page.resize((4000, 3000)).save(file, "JPEG")
    request = post("/classify", "image/jpeg", file.getvalue())
    seconds = bench.arguments.seconds
    alone: list[Sample] = []
    beside: list[Sample] = []
    answered = []
    with bench.serving(bench.folder.parent.name) as target:
        for _ in range(bench.arguments.repeats):
            alone.append(bench.measure(target))
            clients = Clients(target.port, request, PHOTOGRAPHS)
            with ThreadPoolExecutor(1) as pool:
                asking = pool.submit(clients.run, seconds + 3)
                time.sleep(1.0)  # until they are there
                beside.append(bench.measure(target))
                answered.append(asking.result().rate(200))
    return [
        bench.row("alone", alone),
        bench.row(f"beside {PHOTOGRAPHS} photographs", beside) | {"photographs/s": statistics.median(answered)},
    ]


def models(bench: "Bench") -> list[Row]:
    counts = {count: [bench.folder] * count for count in (1, 2, 8, 32)}
    samples: dict[int, list[Sample]] = {count: [] for count in counts}
    for _ in range(bench.arguments.repeats):
        for count, folders in counts.items():
            with bench.serving_folders(folders) as target:
                samples[count].append(bench.measure(target))
    return [bench.row(f"{count} models", runs) for count, runs in samples.items()]


def idle(bench: "Bench") -> list[Row]:
    samples: dict[int, list[Sample]] = {count: [] for count in (1, 10, 100, 1000)}
    with bench.serving(bench.folder.parent.name) as target:
        for _ in range(bench.arguments.repeats):
            for count, runs in samples.items():
                with _open(target.port, count):
                    runs.append(bench.measure(target))
    return [bench.row(f"{count} idle connections", runs) for count, runs in samples.items()]


def minutes(bench: "Bench") -> list[Row]:
    with bench.serving(bench.folder.parent.name) as target:
        target.measure(CLIENTS, 1.0)  # warm
        return [bench.row(f"minute {minute}", [target.measure(CLIENTS, 60.0)]) for minute in range(1, 11)]


@contextmanager
def _open(port: int, count: int) -> Iterator[None]:
    """So many connections, each of which has asked once."""
    connections = []
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        connections.append(connection)
    yield
    for connection in connections:
        connection.close()


def batch(bench: "Bench") -> list[Row]:
    data = base64.b64encode(bench.picture).decode()
    body = json.dumps({"images": [{"data": data}] * IN_BATCH}).encode()
    rates, costs, stages = [], [], []
    with bench.serving(bench.folder.parent.name) as target:
        connection = http.client.HTTPConnection("127.0.0.1", target.port)
        for _ in range(bench.arguments.repeats):
            count, start, cpu = 0, time.perf_counter(), cpu_seconds(target.process.pid)
            while time.perf_counter() - start < bench.arguments.seconds:
                connection.request("POST", "/classify", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                assert response.status == 200, response.status
                timing = response.getheader("Server-Timing", "")
                stages.append({name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", timing)})
                count += IN_BATCH
            rates.append(count / (time.perf_counter() - start))
            costs.append((cpu_seconds(target.process.pid) - cpu) / count * 1e6)
        connection.close()
    row = {"what": f"JSON of {IN_BATCH} PNG files", "pictures/s": statistics.median(rates)}
    row["CPU us a picture"] = statistics.median(costs)
    typical = sorted(stages, key=lambda stage: stage["total"])[len(stages) // 2]  # one request, whose stages add up
    for name in ("decode", "queue", "infer", "encode", "total"):
        row[f"{name}, us a picture"] = typical[name] / IN_BATCH * 1e3
    return [row]


def tensors(bench: "Bench") -> list[Row]:
    seconds, repeats = bench.arguments.seconds, bench.arguments.repeats
    folders = dict.fromkeys([bench.folder, model_folder(bench.store, "equivae-digits")])
    return [{"what": folder.parent.name} | compare(folder, IN_BATCH, seconds, repeats) for folder in folders]


def refuse(bench: "Bench") -> list[Row]:
    floor, cores = marks(bench.folder)[0], bench.cores
    if cores.client:
        os.sched_setaffinity(0, {int(cores.client[-1])})
    figures = [
        refusal(ours(bench.folder), floor, cores, bench.picture, bench.arguments.seconds)
        for _ in range(bench.arguments.repeats)
    ]
    names = [name for name, value in figures[0].items() if isinstance(value, float)]
    return [{"what": "refusals"} | {name: statistics.median(row[name] for row in figures) for name in names}]


def start(bench: "Bench") -> list[Row]:
    seconds, costs = [], []
    for _ in range(bench.arguments.repeats):
        port = free_port()
        command = [sys.executable, "-m", "service", "--model-store", str(bench.store), "--port", str(port)]
        began = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            while not is_ready(port):
                time.sleep(0.01)
            seconds.append(time.perf_counter() - began)
            costs.append(cpu_seconds(process.pid))
            process.send_signal(signal.SIGINT)
    count = len(list(bench.store.glob("*/[1-9]*")))
    row = {"what": f"{count} models", "to /readyz, s": statistics.median(seconds)}
    return [row | {"CPU s": statistics.median(costs)}]


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:  # not listening yet, or 503
        return False


PARTS: dict[str, Callable[["Bench"], list[Row]]] = {
    part.__name__: part for part in (canonicalize, large, models, idle, minutes, batch, tensors, start, refuse)
}


class Bench:
    """What the parts share."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments = arguments
        self.store: Path = arguments.model_store
        self.folder = model_folder(self.store, arguments.model)
        self.picture = picture(self.folder)
        self._scratch = scratch
        self.cores = Cores()

    def serving(self, *names: str) -> Any:
        return self.serving_folders([model_folder(self.store, name, "embed") for name in names])

    @contextmanager
    def serving_folders(self, folders: Sequence[Path]) -> Iterator[Target]:
        """The first of them classifies."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as store:
            first = store_of(folders, Path(store))
            with running(ours(first), self.cores, self.picture) as target:
                yield target

    def measure(self, target: Target) -> Sample:
        target.measure(CLIENTS, 1.0)  # warm
        return target.measure(CLIENTS, self.arguments.seconds)

    def alternate(self, targets: dict[str, Target]) -> list[Row]:
        samples: dict[str, list[Sample]] = {name: [] for name in targets}
        for _ in range(self.arguments.repeats):
            for name, target in targets.items():
                samples[name].append(self.measure(target))
        return [self.row(name, runs) for name, runs in samples.items()]

    def row(self, what: str, runs: Sequence[Sample]) -> Row:
        def median(key: str) -> float:
            return statistics.median(getattr(run, key) for run in runs)

        return {
            "what": what,
            "requests/s": median("rate"),
            "CPU us": median("cpu_us"),
            "p50 ms": median("p50_ms"),
            "p99 ms": median("p99_ms"),
            "not 2xx": sum(run.not_2xx for run in runs),
            "PSS MB": median("pss_mb"),
        }


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    heads = list(rows[0])
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [
            f"{value:,.{0 if value >= 100 else 2}f}" if isinstance(value, float) else value for value in row.values()
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--model", default="equivae-mnist", help="that classifies (default: equivae-mnist)")
    parser.add_argument(
        "--poses", default="mcevae-mnist-so2", help="that brings upright (default: mcevae-mnist-so2, 28 x 28)"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="a run, whole seconds (default: 3)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all of them")
    parser.add_argument("--json", type=Path, help="where to write the figures; those of other parts there are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments, Path(scratch))
        figures = {}
        for name in (part for part in PARTS if part in arguments.only):  # the last one pins this process to a core
            figures[name] = PARTS[name](bench)
            print(f"\n{name}\n\n{table(figures[name])}", flush=True)
    if arguments.json:
        kept = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        taken = {"machine": machine(), "model": "/".join(bench.folder.parts[-2:])}
        taken |= {"seconds": arguments.seconds, "repeats": arguments.repeats}
        kept["taken"] = kept.get("taken", {}) | dict.fromkeys(figures, taken)
        arguments.json.write_text(json.dumps(kept | figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
