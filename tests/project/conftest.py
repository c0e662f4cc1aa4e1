"""One service with all shipped models, started as the README says, for every test that asks them."""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import httpx
import pytest

from tests.project.readme import ROOT, environment


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[str, float]]:
    """`make serve` on a free port, ready: its address, and the CPU time that it has taken until now, seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["make", "serve"]
    serve = subprocess.Popen(command, cwd=ROOT, env=environment(PORT=str(port)), start_new_session=True)
    try:
        deadline = time.monotonic() + 100
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
                break
            except OSError:
                assert serve.poll() is None, "make serve ended"
                assert time.monotonic() < deadline, "make serve is not ready after 100 s"
                time.sleep(0.1)
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        yield f"127.0.0.1:{port}", float(re.findall(r"^process_cpu_seconds_total (\S+)$", metrics, re.MULTILINE)[0])
    finally:
        os.killpg(serve.pid, signal.SIGTERM)
        serve.wait(30)


@pytest.fixture(scope="session")
def shipped(served: tuple[str, float]) -> Iterator[httpx.Client]:
    """Asks that service."""
    with httpx.Client(base_url=f"http://{served[0]}", trust_env=False, timeout=60) as opened:
        yield opened
