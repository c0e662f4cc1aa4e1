"""A GPU beside the CPU: pictures a second by batch, latency by concurrency, and where a graph's time goes, by node.

    python -m benchmarks.gpu [--device cuda:0] [--seconds 5] [--json FILE]

Needs onnxruntime-gpu and a CUDA device, and says so where there is none. `--device cpu` measures the CPU alone.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clients import Clients, post
from benchmarks.contenders import ours
from benchmarks.load import ROOT, Cores, running
from benchmarks.nodes import profile
from contract.manifest import GOLDEN_FILE, versions
from service.cpus import usable_cpus
from service.devices import CPU, Device, DeviceUnavailable, find_devices
from service.engine import EngineOptions
from service.images import write_picture
from service.model_folder import read_version, warm

GRAPHS = (
    "equivae-mnist.classify",
    "equivae-mnist.embed",
    "mcevae-mnist-se2.transform",
    "mcevae-mnist-se2.canonicalize",
    "upright-text.canonicalize",
)
LARGEST = 256
CONCURRENCY = (1, 8, 64, 256)
_NODES = 12


def folder_of(name: str) -> Path:
    return ROOT / "model_store" / name / str(versions(ROOT / "model_store" / name)[-1])


def by_batch(name: str, capability: str, device: Device, seconds: float) -> dict[int, float]:
    """Pictures a second of a graph alone, by batch, the copies to the device and back included."""
    options = EngineOptions(usable_cpus(), LARGEST, 0.0, device)
    _, engines = read_version(folder_of(name), [options])
    warm(engines)
    (engine,) = engines[capability]
    rates = {}
    for power in range(LARGEST.bit_length()):
        size = 1 << power
        inputs = [
            np.random.default_rng(0).random((size, *tensor.row_shape), np.float32) for tensor in engine.spec.inputs
        ]
        taken, end = [], time.perf_counter() + seconds / 10
        while len(taken) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            engine.run(inputs)
            taken.append(time.perf_counter() - start)
        rates[size] = size / float(np.median(taken))
    return rates


def by_concurrency(name: str, capability: str, device: Device, seconds: float) -> dict[int, dict[str, float]]:
    """Latency over HTTP, one picture a request, by the number of clients that ask without a pause."""
    folder = folder_of(name)
    with np.load(folder / GOLDEN_FILE) as golden:
        png = write_picture(golden[f"{capability}/in/image"][0])
    settings = {"EQUIPOISE_DEVICE": device.name, "EQUIPOISE_MAX_BATCH": str(LARGEST if device != CPU else 32)}
    server = ours(folder)
    server = replace(server, environment=server.environment | settings, path=f"/{capability}?model={name}", read=_any)
    request = post(server.path, "image/png", png)
    found = {}
    with running(server, Cores(), png) as target:
        for clients in CONCURRENCY:
            tally = Clients(target.port, request, clients).run(seconds)
            found[clients] = {
                "requests/s": tally.rate(200),
                "p50 ms": tally.milliseconds(50),
                "p99 ms": tally.milliseconds(99),
                "other than 200": sum(count for status, count in tally.statuses().items() if status != 200),
            }
    return found


def _any(answer: Any) -> dict[str, Any]:
    return {"label": f"version {answer['version']}", "probability": 1.0}


def by_node(name: str, capability: str, device: Device) -> dict[str, float]:
    """Share of a graph's time, percent, of the nodes that take most, with where they run."""
    nodes = sorted(profile(folder_of(name), capability, device), key=lambda node: -node.microseconds)
    total = sum(node.microseconds for node in nodes)
    return {
        f"{node.operator} {node.name} ({node.provider})": round(100 * node.microseconds / total, 1)
        for node in nodes[:_NODES]
    }


def gpu_name(device: Device) -> str:
    command = ["nvidia-smi", f"--id={device.index}", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:0 (the default), another one, or cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="a run of clients (default: 5)")
    parser.add_argument("--graphs", nargs="+", default=GRAPHS, choices=GRAPHS, help="these alone")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    try:
        (device,) = find_devices(arguments.device).found
    except DeviceUnavailable as error:
        print(f"no CUDA device: {error}", file=sys.stderr)
        return 1
    figures: dict[str, Any] = {"device": device.name if device == CPU else gpu_name(device)}
    for graph in arguments.graphs:
        name, _, capability = graph.rpartition(".")
        for where in dict.fromkeys((device, CPU)):
            title = f"{graph} on {where.name}"
            figures[title] = {
                "pictures/s by batch": by_batch(name, capability, where, arguments.seconds),
                "over HTTP by clients": by_concurrency(name, capability, where, arguments.seconds),
                "percent of the time by node": by_node(name, capability, where),
            }
            print(json.dumps({title: figures[title]}, indent=1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
