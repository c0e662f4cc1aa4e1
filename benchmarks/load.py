"""A server on one core, `wrk` on another: start it, load it, measure its whole process tree."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 90.0


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Server:
    """One contender.

    Attributes:
        command, environment: with `{port}` where the port goes.
        encode: from the PNG to the body of a request; content_type: of that body.
        read: from the JSON answer to one with `label` and `probability`.
        key: sent with every request as `Authorization: Bearer`, where there is one.
    """

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    path: str = "/classify"
    content_type: str = "image/png"
    encode: Callable[[bytes], bytes] = _same
    read: Callable[[Any], dict[str, Any]] = _same
    folder: Path = ROOT
    key: str = ""


@dataclass(frozen=True)
class Sample:
    """One run of wrk. cpu_us: CPU time of the server's tree a request, microseconds; pss_mb: its memory afterwards."""

    rate: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    not_2xx: int
    pss_mb: float
    processes: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Cores:
    """One core for the servers and one for wrk; none, with a warning, where there are not two."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(cores) < 2 or shutil.which("taskset") is None:
            print("warning: nothing is pinned, two cores and taskset are needed for that", file=sys.stderr)
            self.server: list[str] = []
            self.client: list[str] = []
        else:
            self.server = ["taskset", "-c", str(cores[-1])]
            self.client = ["taskset", "-c", str(cores[0])]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(server: Server, cores: Cores, picture: bytes) -> Iterator["Target"]:
    """The server, once it has answered a request; its whole tree is stopped in the end."""
    port = free_port()
    command = [*cores.server, *(part.replace("{port}", str(port)) for part in server.command)]
    own = {name: value.replace("{port}", str(port)) for name, value in server.environment.items()}
    process = subprocess.Popen(
        command,
        cwd=server.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    target = Target(server, port, process, cores, server.encode(picture))
    try:
        answer = server.read(target.first_answer())
        print(f"{server.name}: {answer['label']} with probability {answer['probability']:.6f}", flush=True)
        yield target
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)  # what a peer's launcher left behind
    except ProcessLookupError:
        pass
    process.wait()


@dataclass(frozen=True)
class Target:
    """A running server."""

    server: Server
    port: int
    process: "subprocess.Popen[bytes]"
    cores: Cores
    body: bytes

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.server.path}"

    def first_answer(self) -> Any:
        headers = {"Content-Type": self.server.content_type}
        if self.server.key:
            headers["Authorization"] = f"Bearer {self.server.key}"
        request = urllib.request.Request(self.url, self.body, headers)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.server.name} ended with status {self.process.returncode}")
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return json.load(response)
            except OSError:
                time.sleep(0.2)
        raise SystemExit(f"{self.server.name} did not answer within {START_SECONDS:.0f} s")

    def metrics(self) -> dict[str, float]:
        """What ours says at /metrics, by name and labels as they are written there."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as response:
            lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def measure(self, clients: int, seconds: float) -> Sample:
        before = cpu_seconds(self.process.pid)
        result = wrk(
            self.url, self.body, self.server.content_type, clients, seconds, self.server.key, prefix=self.cores.client
        )
        tree = _tree(self.process.pid)
        return Sample(
            rate=result["requests"] / result["seconds"],
            cpu_us=(cpu_seconds(self.process.pid) - before) / max(1, result["requests"]) * 1e6,
            p50_ms=result["p50_ms"],
            p99_ms=result["p99_ms"],
            not_2xx=result["not_2xx"] + result["broken"],
            pss_mb=tree_pss_mb(self.process.pid),
            processes=len(tree),
        )


def parts(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Microseconds of a picture in the stages that the service measures between two looks at its metrics, which are CPU
    time where it has a core to itself and waits for nothing; the pictures, and those of a batch.
    """
    found = {name: value - before.get(name, 0.0) for name, value in after.items()}

    def total(metric: str) -> float:
        return sum(value for name, value in found.items() if name.startswith(metric))

    pictures = total("equipoise_batch_images_sum")
    stages = {name: f'equipoise_stage_duration_seconds_sum{{stage="{name}"}}' for name in ("decode", "warp", "encode")}
    seconds = {name: total(metric) for name, metric in stages.items()}
    seconds["graph"] = total("equipoise_batch_duration_seconds_sum")
    row = {f"{name}, us": value / pictures * 1e6 for name, value in seconds.items()}
    return row | {"pictures": pictures, "pictures a batch": pictures / total("equipoise_batch_images_count")}


def wrk(
    url: str, body: bytes, content_type: str, clients: int, seconds: float, key: str = "", prefix: Sequence[str] = ()
) -> dict[str, float]:
    """What benchmarks/wrk.lua prints after that many clients have sent this one body for that long."""
    command = [*prefix, "wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "-s", str(ROOT / "benchmarks/wrk.lua"), url]
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        given = os.environ | {"BODY": file.name, "CONTENT_TYPE": content_type, "KEY": key}
        output = subprocess.run(command, env=given, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return result


def _tree(root: int) -> list[int]:
    """The process and all below it; taskset replaces itself, so the first is the server."""
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
        except OSError:
            continue
    return found


def cpu_seconds(root: int) -> float:
    """User and system time so far of the whole tree."""
    ticks = 0
    for pid in _tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def tree_pss_mb(root: int) -> float:
    """Memory of the whole tree, megabytes."""
    return sum(map(_pss_bytes, _tree(root))) / 1e6


def _pss_bytes(pid: int) -> int:
    """Proportional set size: memory shared by processes is counted once over all of them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
