"""What OpenTelemetry costs a request: off, on for none, for one in a hundred, for all.

    python -m benchmarks.tracing [--seconds 3] [--repeats 5] [--json results/tracing.json]

CPU time of the service a small picture, medians over runs that take turns; 64 clients, a collector that takes what it
gets. Off is the service as it starts by itself: nothing of OpenTelemetry's SDK is imported (FastAPI itself imports its
API), no span is made, and the end of a request walks through an empty tuple.
"""

import argparse
import json
import statistics
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.clients import Clients, post
from benchmarks.contenders import ours
from benchmarks.load import ROOT, Cores, Target, cpu_seconds, running
from benchmarks.serving import machine, model_folder
from benchmarks.serving import picture as golden_picture

CLIENTS = 64


class _Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def microseconds(target: Target, request: bytes, seconds: float) -> float:
    """CPU time of the service a request."""
    before = cpu_seconds(target.process.pid)
    tally = Clients(target.port, request, CLIENTS).run(seconds)
    assert set(tally.statuses()) == {200}, tally.statuses()
    return (cpu_seconds(target.process.pid) - before) / tally.statuses()[200] * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="a run (default: 3)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    folder = model_folder(ROOT / "model_store", "equivae-digits")
    png, cores, server = golden_picture(folder), Cores(), ours(folder)
    request = post("/classify", "image/png", png)
    collector = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{collector.server_port}"
    shares = {"off": None, "on, none traced": "0", "on, 1 %": "0.01", "on, all": "1"}
    with ExitStack() as stack:
        targets = {}
        for name, share in shares.items():
            extra = {} if share is None else {"EQUIPOISE_OTEL_ENDPOINT": address, "EQUIPOISE_OTEL_SHARE": share}
            own = replace(server, environment=server.environment | {"NO_PROXY": "127.0.0.1"} | extra)
            targets[name] = stack.enter_context(running(own, cores, png))
        found: dict[str, list[float]] = {name: [] for name in shares}
        for _ in range(arguments.repeats):
            for name, target in targets.items():
                found[name].append(microseconds(target, request, arguments.seconds))
    print("| tracing | CPU us a request (least to most) |\n|---|---|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f}) |")
    collector.shutdown()
    if arguments.json:
        rows = {name: {"cpu_us": statistics.median(values), "runs": values} for name, values in found.items()}
        arguments.json.write_text(json.dumps({"machine": machine(), "measured": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
