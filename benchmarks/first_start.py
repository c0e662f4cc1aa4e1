"""How long a newcomer waits: `make serve` in a fresh clone of this repository, and again three times.

    python -m benchmarks.first_start [--json results/first-start.json]

The first makes the environment from the project's own files, with what pip has in its cache; all go on until
`/readyz` answers. What is cloned is what is committed.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.beside import is_ready
from benchmarks.load import ROOT, free_port
from benchmarks.serving import machine

AGAIN = 3


def serve(clone: Path) -> float:
    """Seconds from the command to ready."""
    port = free_port()
    began = time.perf_counter()
    command = ["make", "serve", f"PORT={port}"]
    with subprocess.Popen(command, cwd=clone, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while not is_ready(port):
            if process.poll() is not None:
                raise SystemExit(f"make serve ended with status {process.returncode}")
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        os.killpg(process.pid, signal.SIGINT)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "equipoise"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        first = serve(clone)
        runs = [serve(clone) for _ in range(AGAIN)]
        models = len(list((clone / "model_store").iterdir()))
    again = statistics.median(runs)
    figures = {"machine": machine(), "first": first, "again": again, "again_runs": runs, "models": models}
    print(
        f"make serve, seconds to /readyz with {models} models: first {first:.1f}, "
        f"again {again:.1f} ({min(runs):.1f}-{max(runs):.1f})"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
