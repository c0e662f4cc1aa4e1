"""This service beside plain FastAPI, and with `--peers` beside other model servers: one graph, one picture.

    python -m benchmarks.serving
    python -m benchmarks.serving --peers --clients 1 8 32 64 --json results/serving.json --chart docs/serving.png

Each server has one core, `wrk` another. Every server judges the same PNG with the same ONNX graph and answers with the
same fields; ours through its documented `/classify` with everything on, API keys too. Repeats alternate, so that a
machine that is busy with something else is busy with it for all: read the ratios, not the rates. A server's own CPU
time a request depends less on what else runs. Needs `wrk` and, for the pinning, Linux with two cores.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks import contenders
from benchmarks.load import ROOT, Cores, Sample, parts, running

_SECOND = "equivae-digits"  # a second model that ours has loaded

Samples = dict[tuple[str, int], list[Sample]]


def picture(folder: Path) -> bytes:
    """A picture of the model's own size, from its golden cases, as a PNG."""
    with np.load(folder / "golden.npz") as golden:
        image = golden["classify/in/image"][0]
    pixels = np.rint(image * 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def graph_microseconds(folder: Path, batch: int, seconds: float = 1.0, graph: str = "classify") -> float:
    """ONNX Runtime alone, one thread: time an image of one batch size."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / f"{graph}.onnx", options, providers=["CPUExecutionProvider"])
    with np.load(folder / "golden.npz") as golden:
        images = np.repeat(golden[f"{graph}/in/image"][:1], batch, 0)
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, {"image": images})
        times.append(time.perf_counter() - start)
    return statistics.median(times) / batch * 1e6


def model_folder(store: Path, model: str | None, graph: str = "classify") -> Path:
    """The highest version of a model that has this graph."""
    for name in [model] if model else ["equivae-mnist", *sorted(path.name for path in store.iterdir())]:
        versions = sorted((int(path.name), path) for path in store.glob(f"{name}/[1-9]*"))
        if versions and (versions[-1][1] / f"{graph}.onnx").exists():
            return versions[-1][1].resolve()
    raise SystemExit(f"no model with the graph {graph} in {store}")


def store_of(folders: Sequence[Path], store: Path) -> Path:
    """A model store with copies of these versions, each as version 1 (a name that comes again is `<name>-2` and so on);
    the folder of the first.
    """
    names: list[str] = []
    for folder in folders:
        name = folder.parent.name
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
        copy = store / names[-1] / "1"
        shutil.copytree(folder, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"name": names[-1], "version": 1}))
    return store / names[0] / "1"


def machine() -> str:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()}, {cpu}, {os.cpu_count()} cores, Python {platform.python_version()}"


def table(samples: Samples, clients: Sequence[int]) -> str:
    """Markdown: medians over the repeats, with the least and most rate at the largest number of clients."""
    least, most = min(clients), max(clients)
    heads = [f"{count} client{'s' if count > 1 else ''}" for count in clients]
    lines = [
        f"| server | {' | '.join(heads)} | least to most at {most} | CPU us at {most} | p50 ms at {least} | "
        f"p50 / p99 ms at {most} | not 2xx | PSS MB | processes |",
        "|---" * (len(heads) + 8) + "|",
    ]
    for name in dict.fromkeys(name for name, _ in samples):
        rates = [f"{_median(samples[name, count], 'rate'):,.0f}" for count in clients]
        last = samples[name, most]
        spread = f"{min(run.rate for run in last):,.0f} to {max(run.rate for run in last):,.0f}"
        bad = sum(run.not_2xx for count in clients for run in samples[name, count])
        lines.append(
            f"| {name} | {' | '.join(rates)} | {spread} | {_median(last, 'cpu_us'):.0f} | "
            f"{_median(samples[name, least], 'p50_ms'):.2f} | "
            f"{_median(last, 'p50_ms'):.1f} / {_median(last, 'p99_ms'):.1f} | {bad} | "
            f"{_median(last, 'pss_mb'):.0f} | {last[-1].processes} |"
        )
    return "\n".join(lines)


def ratios(samples: Samples, clients: Sequence[int]) -> str:
    """Ours against every other server, pair by pair of the alternating repeats."""
    lines = []
    first, *others = dict.fromkeys(name for name, _ in samples)
    for other in others:
        for count in clients:
            pairs = list(zip(samples[first, count], samples[other, count], strict=True))
            by_rate = sorted(mine.rate / theirs.rate for mine, theirs in pairs)
            by_cpu = statistics.median(theirs.cpu_us / mine.cpu_us for mine, theirs in pairs)
            lines.append(
                f"{first} / {other} at {count}: {statistics.median(by_rate):.2f} requests/s "
                f"({by_rate[0]:.2f} to {by_rate[-1]:.2f}), {by_cpu:.2f} requests a CPU second"
            )
    return "\n".join(lines)


def by_server(samples: Samples) -> dict[str, dict[str, Any]]:
    """Medians and all runs by server and number of clients; ratio: of our rate to theirs, the median of pairs."""
    ours = next(iter(samples))[0]
    figures: dict[str, dict[str, Any]] = {}
    for (name, clients), runs in samples.items():
        rows = [run.as_dict() for run in runs]
        medians: dict[str, Any] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        pairs = zip(samples[ours, clients], runs, strict=True)
        figures.setdefault(name, {})[str(clients)] = medians | {
            "least_rate": min(run.rate for run in runs),
            "most_rate": max(run.rate for run in runs),
            "ratio": statistics.median(mine.rate / theirs.rate for mine, theirs in pairs),
            "runs": rows,
        }
    return figures


def chart(samples: Samples, clients: Sequence[int], path: Path) -> None:
    """Requests a second at the largest number of clients as bars."""
    from matplotlib.figure import Figure

    most = max(clients)
    names = sorted({name for name, _ in samples}, key=lambda name: _median(samples[name, most], "rate"))
    rates = [_median(samples[name, most], "rate") for name in names]
    figure = Figure(figsize=(8, 0.42 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    colours = ["#1f6f8b" if name == "Equipoise" else "#b8c4cc" for name in names]
    bars = axes.barh(names, rates, color=colours)
    axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3)
    axes.set_xlabel(f"requests/s on one core, {most} clients, one 28 x 28 PNG a request")
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=110)


def _median(runs: Sequence[Sample], key: str) -> float:
    return statistics.median(getattr(run, key) for run in runs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--model", help="default: equivae-mnist, else the first model that classifies")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 64], help="connections (default: 1 64)")
    parser.add_argument("--seconds", type=float, default=5.0, help="a run (default: 5)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each server and number of clients (default: 5)")
    parser.add_argument("--marks", action="store_true", help="also the HTTP floor and a raw ASGI app")
    parser.add_argument(
        "--peers", action="store_true", help="also LitServe, BentoML, MLServer, Ray Serve and the marks"
    )
    parser.add_argument("--json", type=Path, help="where to write every sample")
    parser.add_argument("--chart", type=Path, help="where to draw the rates (needs the extra figures)")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed (Debian: apt-get install wrk)")
    folder = model_folder(arguments.model_store, arguments.model)
    body = picture(folder)
    cores = Cores()
    alone = {batch: graph_microseconds(folder, batch) for batch in (1, 32)}
    print(f"model {folder.parent.name}/{folder.name}, picture of {len(body)} bytes")
    print("ONNX Runtime alone, one thread:", ", ".join(f"{t:.0f} us an image at batch {b}" for b, t in alone.items()))
    samples: Samples = {}
    shares: list[dict[str, float]] = []  # of our CPU time a request, at the most clients, by repeat
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as store:
        two = store_of([folder, model_folder(arguments.model_store, _SECOND)], Path(store))
        servers = [contenders.ours(two, with_key=True), contenders.plain_fastapi(folder)]
        if arguments.marks or arguments.peers:
            servers += contenders.marks(folder)
        if arguments.peers:
            servers += contenders.peers(folder, Path(scratch))
        for _ in range(arguments.repeats):
            for server in servers:
                with running(server, cores, body) as target:
                    target.measure(max(arguments.clients), 1.0)  # warm
                    for clients in sorted(arguments.clients):
                        before = target.metrics() if server is servers[0] else {}
                        sample = target.measure(clients, arguments.seconds)
                        samples.setdefault((server.name, clients), []).append(sample)
                    if server is servers[0]:
                        shares.append(parts(before, target.metrics()) | {"all, us": sample.cpu_us})
    middle = {name: statistics.median(share[name] for share in shares) for name in shares[0]}
    print(f"\n{table(samples, arguments.clients)}\n\n{ratios(samples, arguments.clients)}")
    print(f"\nours at {max(arguments.clients)}: {', '.join(f'{name} {share:.1f}' for name, share in middle.items())}")
    if arguments.json:
        figures = {"machine": machine(), "graph_us": alone, "parts": middle, "servers": by_server(samples)}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.chart:
        chart(samples, arguments.clients, arguments.chart)
    return 1 if any(run.not_2xx for clients in arguments.clients for run in samples[servers[0].name, clients]) else 0


if __name__ == "__main__":
    sys.exit(main())
