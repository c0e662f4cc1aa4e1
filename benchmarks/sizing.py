"""How many cores, how much memory and what cost a load takes, from what a core was measured to do.

    python -m benchmarks.sizing measure --json results/sizing.json      (about a minute; needs wrk)
    python -m benchmarks.sizing plan results/serving.json results/sizing.json --per-day 1e6 1e8 1e10

A core's rate is one over the service's own CPU time a request, which depends little on what else the machine does.
`/classify` is taken from the comparison with other servers (benchmarks/serving.py), the other requests are measured
here. A plan keeps cores at `--utilisation` at the daily peak, has at least two replicas and one to spare, and takes
prices as options: the defaults are of the order of a cloud's list prices and are there to be replaced.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contenders
from benchmarks.load import ROOT, Cores, running
from benchmarks.serving import model_folder

SECONDS_A_DAY = 86_400
SERVING = "/classify, 28 x 28 PNG"  # the request of benchmarks/serving.py
REQUESTS = {
    "/embed, 8 x 8 PNG, enlarged": ("/embed", "digit-7.png", "image/png"),
    "/transform, 8 x 8 PNG, enlarged": ("/transform", "digit-7.png", "image/png"),
    "/canonicalize, 8 x 8 PNG, enlarged": ("/canonicalize", "digit-7.png", "image/png"),
    "/classify, 1200 x 900 JPEG": ("/classify", "page-3.jpg", "image/jpeg"),
}
CLIENTS = 32


@dataclass(frozen=True)
class Measured:
    """cpu_us: CPU time a request, microseconds. memory_mb: of a replica after the load (PSS)."""

    request: str
    cpu_us: float
    memory_mb: float

    @property
    def per_core(self) -> float:
        """Requests/s of one core that does nothing else."""
        return 1e6 / self.cpu_us


@dataclass(frozen=True)
class Assumptions:
    """peak: the busiest second over the mean one. core_price, gpu_price: an hour. gpu_rate: pictures/s of one GPU
    replica, 0 where nobody has measured it.
    """

    utilisation: float = 0.6
    peak: float = 3.0
    replica_cores: int = 1
    core_price: float = 0.04
    gpu_price: float = 1.0
    gpu_rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation must be above 0 and at most 1, not {self.utilisation:g}")
        if self.peak < 1 or self.replica_cores < 1 or min(self.core_price, self.gpu_price, self.gpu_rate) < 0:
            raise ValueError("peak and replica_cores must be at least 1, prices and gpu_rate not negative")


@dataclass(frozen=True)
class Plan:
    per_day: float
    peak_rate: float
    replicas: int
    cores: int
    memory_gb: float
    cost_a_day: float
    gpus: int | None

    @property
    def cost_a_million(self) -> float:
        return self.cost_a_day / self.per_day * 1e6


def plan(measured: Measured, assumed: Assumptions, per_day: float) -> Plan:
    """What `per_day` pictures take, one a request.

    Raises:
        ValueError: no pictures.
    """
    if per_day <= 0:
        raise ValueError("per_day must be above 0")
    peak_rate = per_day / SECONDS_A_DAY * assumed.peak
    of_a_replica = measured.per_core * assumed.replica_cores * assumed.utilisation
    replicas = max(2, math.ceil(peak_rate / of_a_replica) + 1)
    cores = replicas * assumed.replica_cores
    gpus = max(2, math.ceil(peak_rate / (assumed.gpu_rate * assumed.utilisation)) + 1) if assumed.gpu_rate else None
    return Plan(
        per_day=per_day,
        peak_rate=peak_rate,
        replicas=replicas,
        cores=cores,
        memory_gb=replicas * measured.memory_mb / 1e3,
        cost_a_day=cores * assumed.core_price * 24,
        gpus=gpus,
    )


def break_even_rate(measured: Measured, assumed: Assumptions) -> float:
    """Whole requests/s that a GPU replica must do to cost no more than the cores that do the same. A GPU runs the graph
    alone: decoding, framing and HTTP stay on the cores that the replica has beside it.
    """
    return assumed.gpu_price / assumed.core_price * measured.per_core


def table(plans: list[Plan]) -> str:
    lines = ["| pictures a day | peak a second | replicas | cores | memory, GB | cost a day | cost a million | GPUs |"]
    lines.append("|---" * 8 + "|")
    for each in plans:
        gpus = "not measured" if each.gpus is None else f"{each.gpus:,}"
        lines.append(
            f"| {each.per_day:,.0f} | {each.peak_rate:,.0f} | {each.replicas:,} | {each.cores:,} | "
            f"{each.memory_gb:,.1f} | {each.cost_a_day:,.2f} | {each.cost_a_million:,.4f} | {gpus} |"
        )
    return "\n".join(lines)


def read(path: Path) -> list[Measured]:
    """What `measure` wrote, or the service's row of `benchmarks.serving --json` with the most clients."""
    content = json.loads(path.read_text())
    if "measured" in content:
        return [Measured(**row) for row in content["measured"]]
    by_clients = content["servers"]["Equipoise"]
    ours = by_clients[max(by_clients, key=int)]
    cpu_us, memory = ours["cpu_us"], ours["pss_mb"]
    return [Measured(SERVING, cpu_us, memory)]


def measure(store: Path, seconds: float, repeats: int) -> list[Measured]:
    """Medians over runs on one core, with all models of the store loaded."""
    ours, cores, found = contenders.ours(model_folder(store, None)), Cores(), []
    for request, (path, file, content_type) in REQUESTS.items():
        server = dataclasses.replace(ours, path=path, content_type=content_type, read=_anything)
        with running(server, cores, (ROOT / "examples" / file).read_bytes()) as target:
            target.measure(CLIENTS, 1.0)  # warm
            runs = [target.measure(CLIENTS, seconds) for _ in range(repeats)]
        if any(run.not_2xx for run in runs):
            raise SystemExit(f"{request}: not every answer was good")
        cpu_us, memory = (statistics.median(getattr(run, name) for run in runs) for name in ("cpu_us", "pss_mb"))
        found.append(Measured(request, round(cpu_us, 1), round(memory, 1)))
        print(f"{request}: {cpu_us:.0f} us, {1e6 / cpu_us:,.0f} a second and core, {memory:.0f} MB")
    return found


def _anything(answer: object) -> dict[str, object]:
    return {"label": "answered", "probability": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    measuring.add_argument("--seconds", type=float, default=5.0, help="a run")
    measuring.add_argument("--repeats", type=int, default=3)
    measuring.add_argument("--json", type=Path, required=True)
    planning = commands.add_parser("plan")
    planning.add_argument("measured", type=Path, nargs="+")
    planning.add_argument("--per-day", type=float, nargs="+", default=[1e6, 1e8, 1e10])
    for known in dataclasses.fields(Assumptions):
        kind = type(known.default)
        planning.add_argument(f"--{known.name.replace('_', '-')}", type=kind, default=known.default)
    options = parser.parse_args()
    if options.command == "measure":
        rows = [dataclasses.asdict(each) for each in measure(options.model_store, options.seconds, options.repeats)]
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        options.json.write_text(json.dumps({"machine": machine, "measured": rows}, indent=1) + "\n")
        return
    try:
        assumed = Assumptions(**{each.name: getattr(options, each.name) for each in dataclasses.fields(Assumptions)})
        for measured in [row for path in options.measured for row in read(path)]:
            print(f"**{measured.request}**: {measured.per_core:,.0f} a second and core\n")
            print(table([plan(measured, assumed, per_day) for per_day in options.per_day]))
            rate = break_even_rate(measured, assumed)
            print(f"\nA GPU pays where one replica with it answers {rate:,.0f} a second, decoding included.\n")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
