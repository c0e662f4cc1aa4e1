"""Where the CPU time of a small picture goes, by a sampling profile: of this service, beside plain FastAPI and the raw
ASGI mark that reads pictures with the same decoder.

    python -m benchmarks.hotspots [--seconds 12] [--json results/hotspots.json]

Each server on one core under 64 clients of `wrk`, as in `serving.py`. `py-spy` (pip install py-spy) takes 400 samples a
second of the threads that are busy. A sample belongs to the package or, of this project, to the module whose code is
innermost; what is compiled has no frames of its own, so decoding belongs to the module that calls Pillow's decoder, and
the system calls to those that read and write. Shares of the samples, times the CPU time of a request that was measured
before without the profiler, are its microseconds.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import contenders
from benchmarks.load import ROOT, Cores, Server, running
from benchmarks.serving import machine, model_folder, picture, store_of

CLIENTS = 64
_WAITING = {"_worker", "Condition.wait"}  # where other threads wait, which look busy
_FRAME = re.compile(r"(?P<function>.*) \((?P<file>[^()]*)\)$")
_RATE = 400


def profile(server: Server, cores: Cores, body: bytes, seconds: float) -> dict[str, Any]:
    """CPU microseconds of a request, whole, by module and by function; functions of less than one are left out."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as file, running(server, cores, body) as target:
        target.measure(CLIENTS, 1.0)  # warm
        cpu_us = target.measure(CLIENTS, seconds).cpu_us
        command = ["py-spy", "record", "--rate", str(_RATE), "--duration", f"{max(1, round(seconds - 2))}"]
        command += ["--format", "raw", "--output", file.name, "--pid", str(target.process.pid)]
        spy = subprocess.Popen([*cores.client, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        target.measure(CLIENTS, seconds)
        if spy.communicate()[1] and spy.returncode:
            raise SystemExit(f"py-spy failed on {server.name}; it may need the right to trace other processes (root)")
        stacks = Path(file.name).read_text().splitlines()
    modules, functions = shares(stacks)
    return {
        "cpu_us": cpu_us,
        "modules": {name: share * cpu_us for name, share in modules.items()},
        "functions": {name: share * cpu_us for name, share in functions.items() if share * cpu_us >= 1},
    }


def shares(stacks: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Of all samples those of each module, and of each function with its module; greatest first.

    Args:
        stacks: lines of py-spy's format `raw`: frames, outermost first, joined by `;`, a space, the samples
    """
    modules: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frame = _FRAME.match(stack.rpartition(";")[2])
        if frame is None or frame["function"] in _WAITING:
            continue
        name = module(frame["file"].partition(":")[0])
        modules[name] += int(count)
        functions[f"{name}: {frame['function']}"] += int(count)
    every = modules.total() or 1
    return (
        {name: count / every for name, count in modules.most_common()},
        {name: count / every for name, count in functions.most_common()},
    )


def module(file: str) -> str:
    """`service/queue.py` as it is, of others the package."""
    parts = Path(file).parts
    return file if parts[0] in ("service", "contract", "benchmarks") else Path(parts[0]).stem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--model", help="default: equivae-mnist, else the first model that classifies")
    parser.add_argument("--seconds", type=float, default=12.0, help="a run (default: 12)")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    for program in ("wrk", "py-spy"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed")
    folder = model_folder(arguments.model_store, arguments.model)
    body, cores = picture(folder), Cores()
    with tempfile.TemporaryDirectory() as store:
        ours = contenders.ours(store_of([folder], Path(store)), with_key=True)
        mark = contenders.marks(folder)[-1]  # with our decoder
        found = {
            server.name: profile(server, cores, body, arguments.seconds)
            for server in (ours, contenders.plain_fastapi(folder), mark)
        }
    figures = {"machine": machine(), "servers": found}
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
