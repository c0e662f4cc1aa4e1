"""This service beside plain FastAPI: the same graph, the same picture, each server on one core, `wrk` on another.

    python benchmarks/serving.py

Every server answers `POST /classify`; ours through its documented endpoint with everything on. Repeats alternate, so
that a machine that is busy with something else is busy with it for both: read the ratio, not the rates. The server's
own CPU time a request depends less on what else runs. Needs `wrk` and, for the pinning, Linux with two cores.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = (1, 64)


@dataclass(frozen=True)
class Server:
    name: str
    command: list[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class Sample:
    """One run of wrk. cpu_us: the server's CPU time a request, microseconds."""

    rate: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    not_2xx: int


def servers(folder: Path) -> list[Server]:
    """Ours first; the others are compared with it."""
    store, model = folder.parent.parent, folder.parent.name
    ours = [sys.executable, "-m", "service", "--model-store", str(store), "--default-classify", model]
    plain = [sys.executable, "-m", "uvicorn", "benchmarks.plain_fastapi:app", "--no-access-log", "--log-level", "error"]
    return [
        Server("equipoise", ours, {"EQUIPOISE_INFERENCE_THREADS": "1"}),
        Server("plain FastAPI", plain, {"MODEL": str(folder)}),
    ]


def picture(folder: Path) -> bytes:
    """A picture of the model's own size, from its golden cases, as a PNG."""
    with np.load(folder / "golden.npz") as golden:
        image = golden["classify/in/image"][0]
    pixels = np.rint(image * 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def running(server: Server, core: int | None, body: bytes) -> Iterator[tuple[int, int]]:
    """The server's port and process, once it has answered a request."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*_pinned(core), *server.command, "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | server.environment
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        answer = _first_answer(process, port, body)
        print(f"{server.name}: {answer['label']} with probability {answer['probability']:.6f}", flush=True)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def _first_answer(process: "subprocess.Popen[bytes]", port: int, body: bytes) -> dict[str, float]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/classify", body, {"Content-Type": "image/png"})
    for _ in range(150):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}: {process.args!r}")
        try:
            with urllib.request.urlopen(request) as response:
                answer: dict[str, float] = json.load(response)
                return answer
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server did not answer within 30 s")


def _cpu_seconds(process: int) -> float:
    """User and system time so far; taskset replaces itself by the server, so the process is the server."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, process: int, clients: int, seconds: float, core: int | None, picture_file: Path) -> Sample:
    command = [*_pinned(core), "wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "-s", str(ROOT / "benchmarks/wrk.lua")]
    before = _cpu_seconds(process)
    output = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/classify"],
        env=os.environ | {"PICTURE": str(picture_file)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    result = json.loads(output.strip().splitlines()[-1])
    return Sample(
        rate=result["requests"] / result["seconds"],
        cpu_us=(_cpu_seconds(process) - before) / max(1, result["requests"]) * 1e6,
        p50_ms=result["p50_ms"],
        p99_ms=result["p99_ms"],
        not_2xx=result["not_2xx"] + result["broken"],
    )


def _pinned(core: int | None) -> list[str]:
    return [] if core is None else ["taskset", "-c", str(core)]


def _cores() -> tuple[int | None, int | None]:
    """One for the servers and one for wrk; None, with a warning, where there are not two."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2 or shutil.which("taskset") is None:
        print("warning: nothing is pinned, two cores and taskset are needed for that", file=sys.stderr)
        return None, None
    return cores[-1], cores[0]


def _folder(store: Path, model: str | None) -> Path:
    """The highest version of a model that classifies."""
    for name in [model] if model else ["equivae-mnist", *sorted(path.name for path in store.iterdir())]:
        versions = sorted((int(path.name), path) for path in store.glob(f"{name}/[1-9]*"))
        if versions and (versions[-1][1] / "classify.onnx").exists():
            return versions[-1][1].resolve()
    raise SystemExit(f"no model that classifies in {store}")


def report(samples: dict[tuple[str, int], list[Sample]], names: list[str]) -> None:
    print("\n| server | clients | requests/s, median (least to most) | CPU us | p50 ms | p99 ms | not 2xx |")
    print("|---|---|---|---|---|---|---|")
    for (name, clients), runs in samples.items():
        rates = [run.rate for run in runs]
        cpu, p50, p99 = (statistics.median(getattr(run, key) for run in runs) for key in ("cpu_us", "p50_ms", "p99_ms"))
        bad = sum(run.not_2xx for run in runs)
        spread = f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
        print(f"| {name} | {clients} | {spread} | {cpu:.0f} | {p50:.2f} | {p99:.2f} | {bad} |")
    ours, *others = names
    print()
    for other in others:
        for clients in CLIENTS:
            pairs = list(zip(samples[ours, clients], samples[other, clients], strict=True))
            ratios = sorted(mine.rate / theirs.rate for mine, theirs in pairs)
            by_cpu = statistics.median(theirs.cpu_us / mine.cpu_us for mine, theirs in pairs)
            print(
                f"{ours} / {other} at {clients} clients: {statistics.median(ratios):.2f} requests/s "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {by_cpu:.2f} requests a CPU second"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--model", help="default: equivae-mnist, else the first model that classifies")
    parser.add_argument("--seconds", type=float, default=5.0, help="a run (default: 5)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each server and number of clients (default: 5)")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed (Debian: apt-get install wrk)")
    folder = _folder(arguments.model_store, arguments.model)
    body = picture(folder)
    server_core, wrk_core = _cores()
    print(f"model {folder.parent.name}/{folder.name}, picture of {len(body)} bytes")
    samples: dict[tuple[str, int], list[Sample]] = {}
    contenders = servers(folder)
    with tempfile.TemporaryDirectory() as scratch:
        picture_file = Path(scratch) / "picture.png"
        picture_file.write_bytes(body)
        for _ in range(arguments.repeats):
            for server in contenders:
                with running(server, server_core, body) as (port, process):
                    measure(port, process, max(CLIENTS), 1.0, wrk_core, picture_file)  # warm
                    for clients in CLIENTS:
                        sample = measure(port, process, clients, arguments.seconds, wrk_core, picture_file)
                        samples.setdefault((server.name, clients), []).append(sample)
    report(samples, [server.name for server in contenders])
    return 1 if any(run.not_2xx for clients in CLIENTS for run in samples[contenders[0].name, clients]) else 0


if __name__ == "__main__":
    sys.exit(main())
