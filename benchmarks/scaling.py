"""Requests/s of 1, 2 and 3 replicas behind nginx with docker/nginx/equipoise.conf, as far as the cores allow.

    python -m benchmarks.scaling --json results/scaling.json

Nothing is pinned: replicas, nginx and wrk share the machine, so the rate stops growing with the replicas where all
cores are busy. The CPU time a request says how much of each is the balancer's. Needs nginx and wrk.
"""

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.load import ROOT, cpu_seconds, free_port, wrk
from benchmarks.replicas import CONFIGURATION, Balancer, Replica
from benchmarks.serving import machine, model_folder

COUNTS = (1, 2, 3)
# What, of what type, by how many clients: 64 of the large ones would wait as long for one replica as it lets them.
PICTURES = {
    "8 x 8 PNG, enlarged": ("digit-7.png", "image/png", 64),
    "1200 x 900 JPEG": ("page-3.jpg", "image/jpeg", 16),
}


@dataclass(frozen=True)
class Scaled:
    """rate: answers with status 200 a second. service_us, nginx_us: CPU time a request, microseconds, of all replicas
    and of the balancer. busy: of the machine's cores, in all.
    """

    picture: str
    clients: int
    replicas: int
    rate: float
    service_us: float
    nginx_us: float
    busy: float
    p50_ms: float
    p99_ms: float
    failed: int


def measure(name: str, replicas: list[Replica], balancer: Balancer, seconds: float) -> Scaled:
    file, content_type, clients = PICTURES[name]
    body, url = (ROOT / "examples" / file).read_bytes(), f"http://127.0.0.1:{balancer.port}/classify"
    trees = [[replica.process for replica in replicas], [balancer.process]]

    def spent() -> list[float]:
        return [sum(cpu_seconds(process.pid) for process in tree if process) for tree in trees]

    before, idle, start = spent(), idle_seconds(), time.monotonic()
    result = wrk(url, body, content_type, clients, seconds)
    cores = os.cpu_count() or 1
    busy = cores - (idle_seconds() - idle) / (time.monotonic() - start)
    failed = int(result["not_2xx"] + result["broken"])
    service, nginx = (
        (after - earlier) / max(1, result["requests"]) * 1e6 for after, earlier in zip(spent(), before, strict=True)
    )
    return Scaled(
        picture=name,
        clients=clients,
        replicas=len(replicas),
        rate=round((result["requests"] - failed) / result["seconds"], 1),
        service_us=round(service, 1),
        nginx_us=round(nginx, 1),
        busy=round(min(busy, cores), 2),
        p50_ms=result["p50_ms"],
        p99_ms=result["p99_ms"],
        failed=failed,
    )


def idle_seconds() -> float:
    """Of all cores together, so far."""
    fields = Path("/proc/stat").read_text().split(maxsplit=6)
    return int(fields[4]) / os.sysconf("SC_CLK_TCK")


async def run(folder: Path, model: Path, seconds: float, repeats: int) -> list[Scaled]:
    """Medians by rate; one replica more each time, behind the same balancer."""
    store = folder / "store"
    shutil.copytree(model, store / model.parent.name / model.name)
    replicas = [Replica(store, free_port(), folder / f"replica-{number}.log") for number in COUNTS]
    balancer = Balancer(folder, free_port(), CONFIGURATION.read_text())
    found = []
    try:
        for count in COUNTS:
            replicas[count - 1].start()
            await replicas[count - 1].wait_ready()
            balancer.use([replica.port for replica in replicas[:count]])
            if count == 1:
                balancer.start()
            else:
                balancer.reload()
            await asyncio.sleep(1)
            for name in PICTURES:
                measure(name, replicas[:count], balancer, 1.0)  # warm
                runs = [measure(name, replicas[:count], balancer, seconds) for _ in range(repeats)]
                found.append(sorted(runs, key=lambda each: each.rate)[repeats // 2])
                print(found[-1], flush=True)
    finally:
        balancer.stop()
        for replica in replicas:
            replica.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="equivae-mnist")
    parser.add_argument("--seconds", type=float, default=5.0, help="a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = model_folder(ROOT / "model_store", options.model)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(Path(folder), model, options.seconds, options.repeats))
    if options.json:
        rows = [asdict(each) for each in found]
        options.json.write_text(json.dumps({"machine": machine(), "measured": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
