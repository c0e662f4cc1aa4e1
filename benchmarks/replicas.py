"""Three replicas behind nginx while they are killed, rolled, given new models, taken away and brought back.

    python -m benchmarks.replicas --seconds 5 --json results/replicas.json

Real service processes on this machine, Debian's nginx with docker/nginx/equipoise.conf, and clients that keep their
connections and ask for one embedding after the other. The model's versions differ by a factor, so that every answer
says which version it is from, and an answer of two versions would show. Counted in each phase:

lost      requests without an answer of status 200: refused, reset, cut off
reopened  connections that the balancer closed between two requests, by its own right when it is reloaded; the client
          opened another and sent the request once more, as every HTTP client does
retried   requests that nginx asked of a second replica, by its log
mixed     answers that are not the embedding of the version they name
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import numpy as np

from benchmarks.load import free_port
from benchmarks.serving import machine
from tests.service import tiny

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "docker" / "nginx" / "equipoise.conf"
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
ACTS = ("steady", "kill_one", "roll_all", "swap_all", "scale")
POLL_SECONDS = 0.2
READY_SECONDS = 240.0
PICTURE_SEED = 3


@dataclass
class Phase:
    """What the clients saw in one phase."""

    name: str
    requests: int = 0
    lost: int = 0
    reopened: int = 0
    retried: int = 0
    mixed: int = 0
    versions: set[int] = field(default_factory=set)
    milliseconds: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        facts = asdict(self)
        times = facts.pop("milliseconds")
        percentiles = np.percentile(times, [50, 99, 100]) if times else np.zeros(3)
        facts["versions"] = sorted(self.versions)
        return facts | dict(zip(("p50_ms", "p99_ms", "max_ms"), percentiles.round(1).tolist(), strict=True))


class Replica:
    """One service process on a port of its own."""

    def __init__(self, store: Path, port: int, log: Path) -> None:
        self.port = port
        self._log = log
        self._command = [sys.executable, "-m", "service", "--model-store", str(store), "--port", str(port)]
        self._command += ["--model-poll-seconds", str(POLL_SECONDS), "--inference-threads", "1"]
        self._command += ["--drain-seconds", "1"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, stderr=log)

    async def wait_ready(self, version: int | None = None) -> None:
        """Until it is ready, and serves this version where one is given."""
        end = time.monotonic() + READY_SECONDS
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < end:
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.get(f"http://127.0.0.1:{self.port}/readyz")
                    if answer.status_code == 200 and (version is None or f"tiny/{version}" in answer.json()["models"]):
                        return
                await asyncio.sleep(0.05)
        raise RuntimeError(f"replica on port {self.port} is not ready; its log: {self._log}")

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and wait; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, READY_SECONDS)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Balancer:
    """nginx with the committed configuration; only addresses and paths are this run's."""

    def __init__(self, folder: Path, port: int, configuration: str) -> None:
        self.port = port
        self._replicas = folder / "replicas.conf"
        self.log = folder / "answers.log"
        server = configuration
        for there, here in (
            ("/etc/nginx/replicas.conf", str(self._replicas)),
            ("listen 8080;", f"listen 127.0.0.1:{port};"),
            ("/dev/stdout", str(self.log)),
        ):
            assert there in server
            server = server.replace(there, here)
        paths = "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\nworker_processes 1;\n"
            f"events {{ worker_connections 512; }}\nhttp {{\n{paths}{server}}}\n"
        )
        self._command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        self.process: subprocess.Popen[bytes] | None = None

    def use(self, ports: list[int]) -> None:
        lines = [f"server 127.0.0.1:{port} max_fails=3 fail_timeout=2s;\n" for port in ports]
        self._replicas.write_text("".join(lines))

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)

    def reload(self) -> None:
        subprocess.run([*self._command, "-s", "reload"], check=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)

    def retried(self) -> int:
        """Requests so far that more than one replica was asked for."""
        if not self.log.exists():
            return 0
        return sum("," in json.loads(line)["tried"] for line in self.log.read_text().splitlines())


class Clients:
    """Clients with a connection each that ask on and on, and count into the present phase."""

    def __init__(self, port: int, count: int, pause_seconds: float) -> None:
        self._port = port
        self._count = count
        self._pause = pause_seconds
        body = tiny.png(PICTURE_SEED)
        head = (
            f"POST /embed HTTP/1.1\r\nHost: equipoise\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._expected = tiny.embed(tiny.as_input(tiny.images(1, PICTURE_SEED)))[0]
        self.phase = Phase("start")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self._ask(stop)) for _ in range(self._count)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _ask(self, stop: asyncio.Event) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not stop.is_set():
            phase, start = self.phase, time.perf_counter()
            phase.requests += 1
            try:
                fresh = connection is None
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    status, answer = await self._exchange(*connection)
                except (ConnectionError, asyncio.IncompleteReadError) as error:
                    begun = isinstance(error, asyncio.IncompleteReadError) and error.partial
                    if fresh or begun:
                        raise
                    phase.reopened += 1
                    connection[1].close()
                    connection = await asyncio.open_connection("127.0.0.1", self._port)
                    status, answer = await self._exchange(*connection)
                self._judge(phase, status, answer)
                phase.milliseconds.append((time.perf_counter() - start) * 1e3)
            except (OSError, asyncio.IncompleteReadError) as error:
                phase.lost += 1
                phase.reasons.append(repr(error))
                if connection is not None:
                    connection[1].close()
                    connection = None
            await asyncio.sleep(self._pause)
        if connection is not None:
            connection[1].close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, bytes]:
        writer.write(self._request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if b"connection: close" in head:
            writer.close()
        return int(head.split(b" ", 2)[1]), body

    def _judge(self, phase: Phase, status: int, answer: bytes) -> None:
        if status != 200:
            phase.lost += 1
            phase.reasons.append(f"{status} {answer[:200].decode(errors='replace')}")
            return
        said = json.loads(answer)
        phase.versions.add(said["version"])
        if not np.allclose(said["embedding"], said["version"] * self._expected, rtol=1e-4, atol=1e-4):
            phase.mixed += 1


@dataclass
class Stage:
    """Everything that a phase works on."""

    store: Path
    replicas: list[Replica]
    balancer: Balancer
    clients: Clients
    seconds: float
    version: int = 1

    async def steady(self) -> None:
        await asyncio.sleep(self.seconds)

    async def kill_one(self) -> None:
        """SIGKILL, and a while later the process that an orchestrator would start in its place."""
        await asyncio.sleep(self.seconds / 4)
        await self.replicas[0].end(signal.SIGKILL)
        await asyncio.sleep(self.seconds / 4)
        self.replicas[0].start()
        await self.replicas[0].wait_ready()
        await asyncio.sleep(self.seconds / 2)

    async def roll_all(self) -> None:
        for replica in self.replicas:
            status = await replica.end(signal.SIGTERM)
            if status != 0:
                raise RuntimeError(f"SIGTERM: exit status {status}")
            replica.start()
            await replica.wait_ready()
            await asyncio.sleep(self.seconds / 4)

    async def swap_all(self) -> None:
        for _ in range(3):
            self.version += 1
            tiny.write_scaled(self.store, self.version)
            await asyncio.gather(*(replica.wait_ready(self.version) for replica in self.replicas))
            await asyncio.sleep(self.seconds / 4)

    async def scale(self) -> None:
        """To two replicas and back to three, as a controller does it: out of the balancer first, then ended."""
        *kept, last = self.replicas
        self.balancer.use([replica.port for replica in kept])
        self.balancer.reload()
        await asyncio.sleep(0.5)
        await last.end(signal.SIGTERM)
        await asyncio.sleep(self.seconds / 2)
        last.start()
        await last.wait_ready()
        self.balancer.use([replica.port for replica in self.replicas])
        self.balancer.reload()
        await asyncio.sleep(self.seconds / 2)


async def run(
    folder: Path,
    *,
    seconds: float,
    clients: int,
    pause_seconds: float,
    acts: Sequence[str] = ACTS,
    configuration: str | None = None,
) -> list[Phase]:
    """Phases one after the other, under traffic throughout; `seconds` scales how long each takes."""
    store = folder / "store"
    store.mkdir()
    tiny.write_scaled(store, 1)
    replicas = [Replica(store, free_port(), folder / f"replica-{number}.log") for number in range(3)]
    balancer = Balancer(folder, free_port(), configuration or CONFIGURATION.read_text())
    stage = Stage(store, replicas, balancer, Clients(balancer.port, clients, pause_seconds), seconds)
    phases: list[Phase] = []
    try:
        for replica in replicas:
            replica.start()
        await asyncio.gather(*(replica.wait_ready() for replica in replicas))
        balancer.use([replica.port for replica in replicas])
        balancer.start()
        await asyncio.sleep(0.5)
        async with stage.clients.running():
            for name in acts:
                phases.append(await _observe(stage, name))
    finally:
        balancer.stop()
        for replica in replicas:
            replica.stop()
    return phases


async def _observe(stage: Stage, name: str) -> Phase:
    stage.clients.phase = phase = Phase(name)
    before = stage.balancer.retried()
    await getattr(stage, name)()
    phase.retried = stage.balancer.retried() - before
    return phase


def table(phases: list[Phase]) -> str:
    lines = [
        "| phase | requests | lost | mixed | retried by nginx | reopened by clients | p50 / p99 / max ms |",
        "|---" * 7 + "|",
    ]
    for phase in phases:
        facts = phase.summary()
        times = " / ".join(str(facts[name]) for name in ("p50_ms", "p99_ms", "max_ms"))
        counts = f"{phase.requests:,} | {phase.lost} | {phase.mixed} | {phase.retried} | {phase.reopened}"
        lines.append(f"| {phase.name.replace('_', ' ')} | {counts} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="scales how long a phase takes")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds that a client waits between two requests")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not Path(NGINX).exists():
        raise SystemExit("nginx is not installed: apt-get install nginx")
    with tempfile.TemporaryDirectory() as folder:
        phases = asyncio.run(
            run(Path(folder), seconds=options.seconds, clients=options.clients, pause_seconds=options.pause)
        )
    print(table(phases))
    if options.json:
        run_on = {"machine": machine(), "command": " ".join(sys.argv[1:])}
        options.json.write_text(json.dumps(run_on | {"phases": [phase.summary() for phase in phases]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
