"""How many cores, how much memory and what cost a load takes, and from which load on a GPU can pay, from measurements.

    python -m benchmarks.sizing measure --json results/sizing.json      (about two minutes; needs wrk)
    python -m benchmarks.sizing plan results/sizing.json --per-day 1e6 1e8 1e10

A core's rate is one over the service's own CPU time a request, which depends little on what else the machine does. A
plan keeps cores at `--utilisation` at the daily peak, has at least two replicas and one to spare, and takes prices as
options: the defaults are of the order of a cloud's list prices and are there to be replaced. A GPU takes the graph off
the cores and nothing else. How many graphs a second it runs, copies included, says `--gpu`, a file of `benchmarks.gpu`;
without one, public figures of an L4 bound it.
"""

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contenders
from benchmarks.load import ROOT, Cores, running
from benchmarks.serving import graph_microseconds, machine, model_folder, picture

SECONDS_A_DAY = 86_400
CLIENTS = 32
GRAPH_BATCH = 32

# NVIDIA's L4: as it runs ResNet-50 by ONNX Runtime, one picture at a time, which is far from its limit (as a graph of
# small layers may be, too), and its limit.
L4_RESNET50_RATE = 358.6  # pictures/s: docs.roboflow.com/reference/inference/inference-python/benchmarks
RESNET50_MULTIPLY_ADDS = 4.09e9  # docs.pytorch.org/vision/stable/models.html
L4_MULTIPLY_ADDS_RATE = 30.3e12 / 2  # 30.3 TFLOPS in 32 bits: www.nvidia.com/en-us/data-center/l4


@dataclass(frozen=True)
class Request:
    """picture: a file of examples/, or None for one of the model's own size."""

    name: str
    model: str
    graph: str
    picture: str | None = None

    @property
    def measured_graph(self) -> str:
        return f"{self.model}.{self.graph}"

    @property
    def path(self) -> str:
        return f"/{self.graph}?model={self.model}"

    def body(self, folder: Path) -> bytes:
        return picture(folder) if self.picture is None else (ROOT / "examples" / self.picture).read_bytes()


REQUESTS = [
    Request("/classify, 28 x 28 PNG", "equivae-mnist", "classify"),
    Request("/embed, 8 x 8 PNG, enlarged", "equivae-mnist", "embed", "digit-7.png"),
    Request("/transform, 8 x 8 PNG, enlarged", "mcevae-mnist-se2", "transform", "digit-7.png"),
    Request("/canonicalize, 8 x 8 PNG, enlarged", "mcevae-mnist-se2", "canonicalize", "digit-7.png"),
    Request("/classify, 1200 x 900 JPEG", "equivae-mnist", "classify", "page-3.jpg"),
]


@dataclass(frozen=True)
class Measured:
    """cpu_us: CPU time a request, microseconds, of which the graph takes graph_us. multiply_adds: of the graph, for a
    picture. memory_mb: of a replica after the load (PSS).
    """

    request: str
    graph: str
    cpu_us: float
    graph_us: float
    multiply_adds: int
    memory_mb: float

    def __post_init__(self) -> None:
        if not 0 < self.graph_us < self.cpu_us:
            raise ValueError(f"{self.request}: the graph's time must be above 0 and below the request's")

    @property
    def per_core(self) -> float:
        """Requests/s of one core that does nothing else."""
        return 1e6 / self.cpu_us

    @property
    def beside_gpu(self) -> float:
        """The same where a GPU runs the graph."""
        return 1e6 / (self.cpu_us - self.graph_us)

    def on_an_l4(self) -> tuple[float, float]:
        """Graphs/s by public figures: with as many multiply-adds a second as of ResNet-50, and with all it has."""
        as_resnet50 = L4_RESNET50_RATE * RESNET50_MULTIPLY_ADDS / self.multiply_adds
        return as_resnet50, L4_MULTIPLY_ADDS_RATE / self.multiply_adds


@dataclass(frozen=True)
class Assumptions:
    """peak: the busiest second over the mean one. core_price, gpu_price: an hour. gpu_rate: graphs/s of a GPU, 0 where
    nobody has measured it: what an L4 runs with as many multiply-adds as of ResNet-50.
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
        if self.peak < 1 or self.replica_cores < 1 or min(self.core_price, self.gpu_price) <= 0 or self.gpu_rate < 0:
            raise ValueError("peak and replica_cores must be at least 1, prices above 0, gpu_rate not negative")


@dataclass(frozen=True)
class Plan:
    """cost_a_day: of cores alone. cost_with_gpus: of fewer cores and of the GPUs that run the graphs."""

    per_day: float
    peak_rate: float
    replicas: int
    cores: int
    memory_gb: float
    cost_a_day: float
    gpus: int
    cost_with_gpus: float

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
    used = assumed.utilisation
    replicas = _with_a_spare(peak_rate, measured.per_core * assumed.replica_cores * used)
    beside = _with_a_spare(peak_rate, measured.beside_gpu * assumed.replica_cores * used)
    gpus = _with_a_spare(peak_rate, (assumed.gpu_rate or measured.on_an_l4()[0]) * used)
    cores = replicas * assumed.replica_cores
    return Plan(
        per_day=per_day,
        peak_rate=peak_rate,
        replicas=replicas,
        cores=cores,
        memory_gb=replicas * measured.memory_mb / 1e3,
        cost_a_day=cores * assumed.core_price * 24,
        gpus=gpus,
        cost_with_gpus=(beside * assumed.replica_cores * assumed.core_price + gpus * assumed.gpu_price) * 24,
    )


def _with_a_spare(rate: float, of_one: float) -> int:
    return max(2, math.ceil(rate / of_one) + 1)


def gpu_has_to_run(measured: Measured, assumed: Assumptions) -> float:
    """Graphs/s that a GPU has to run to be worth the cores that cost as much."""
    return assumed.gpu_price / assumed.core_price / (measured.graph_us * 1e-6)


def gpus_pay_from(measured: Measured, assumed: Assumptions) -> float:
    """Pictures a day, 10^6 to 10^13, from which on cores with GPUs cost less than cores alone; infinite where never."""
    found = math.inf
    for step in range(700, -1, -1):
        planned = plan(measured, assumed, 10 ** (6 + step / 100))
        if planned.cost_with_gpus >= planned.cost_a_day:
            break
        found = planned.per_day
    return found


def table(plans: list[Plan]) -> str:
    lines = [
        "| pictures a day | peak a second | replicas | cores | memory, GB | cost a day | cost a million | "
        "with GPUs: so many | cost a day |"
    ]
    lines.append("|---" * 9 + "|")
    for each in plans:
        lines.append(
            f"| {each.per_day:,.0f} | {each.peak_rate:,.0f} | {each.replicas:,} | {each.cores:,} | "
            f"{each.memory_gb:,.1f} | {each.cost_a_day:,.2f} | {each.cost_a_million:,.4f} | "
            f"{each.gpus:,} | {each.cost_with_gpus:,.2f} |"
        )
    return "\n".join(lines)


def verdict(measured: Measured, assumed: Assumptions) -> str:
    """What a GPU adds to a core, what it has to do to pay, and from which load on it does."""
    ratio = measured.cpu_us / (measured.cpu_us - measured.graph_us)
    adds = (
        f"The graph takes {measured.graph_us:,.0f} of {measured.cpu_us:,.0f} us: beside a GPU a core answers about "
        f"{ratio:.2f} times as many requests. To pay, a GPU has to run more than "
        f"{_two_digits(gpu_has_to_run(measured, assumed))} of these graphs a second, as the cores do that cost as much."
    )
    if assumed.gpu_rate:
        return f"{adds} The one that was measured {_pays(measured, assumed)}."
    as_resnet50, most = (dataclasses.replace(assumed, gpu_rate=rate) for rate in measured.on_an_l4())
    return (
        f"{adds} An L4 that does as many multiply-adds a second as of ResNet-50 {_pays(measured, as_resnet50)}; "
        f"one that does all it can {_pays(measured, most)}."
    )


def _pays(measured: Measured, assumed: Assumptions) -> str:
    runs, per_day = _two_digits(assumed.gpu_rate), gpus_pay_from(measured, assumed)
    if math.isinf(per_day):
        return f"runs {runs} and does not"
    rate = per_day / SECONDS_A_DAY * assumed.peak
    return (
        f"runs {runs} and does so from about {_two_digits(per_day)} pictures a day on, {_two_digits(rate)} a second at "
        "the peak"
    )


def _two_digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.0f}"


def read(path: Path) -> list[Measured]:
    """What `measure` wrote."""
    return [Measured(**row) for row in json.loads(path.read_text())["measured"]]


def read_gpu(path: Path) -> dict[str, float]:
    """Graphs/s at the best batch by graph, of what `benchmarks.gpu --json` wrote."""
    titled = {title.partition(" on "): figures for title, figures in json.loads(path.read_text()).items()}
    return {
        graph: max(figures["pictures/s by batch"].values())
        for (graph, _, device), figures in titled.items()
        if device.startswith("cuda")
    }


def measure(store: Path, seconds: float, repeats: int) -> list[Measured]:
    """Medians over runs on one core, with all models of the store loaded."""
    from benchmarks.multiply_adds import multiply_adds  # with onnx, which a plan does without

    cores, found = Cores(), []
    for request in REQUESTS:
        folder = model_folder(store, request.model, request.graph)
        server = dataclasses.replace(contenders.ours(model_folder(store, None)), path=request.path, read=_anything)
        content_type = "image/jpeg" if (request.picture or "").endswith(".jpg") else "image/png"
        with running(dataclasses.replace(server, content_type=content_type), cores, request.body(folder)) as target:
            target.measure(CLIENTS, 1.0)  # warm
            runs = [target.measure(CLIENTS, seconds) for _ in range(repeats)]
        if any(run.not_2xx for run in runs):
            raise SystemExit(f"{request.name}: not every answer was good")
        graph_us = graph_microseconds(folder, GRAPH_BATCH, graph=request.graph)
        cpu_us, memory = (statistics.median(getattr(run, name) for run in runs) for name in ("cpu_us", "pss_mb"))
        found.append(
            Measured(
                request=request.name,
                graph=request.measured_graph,
                cpu_us=round(cpu_us, 1),
                graph_us=round(graph_us, 1),
                multiply_adds=multiply_adds(folder / f"{request.graph}.onnx"),
                memory_mb=round(memory, 1),
            )
        )
        print(f"{request.name}: {cpu_us:.0f} us, the graph {graph_us:.0f}; {memory:.0f} MB")
    return found


def _anything(answer: object) -> dict[str, object]:
    return {"label": "answered", "probability": 1.0}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    measuring.add_argument("--seconds", type=float, default=5.0, help="a run")
    measuring.add_argument("--repeats", type=int, default=3)
    measuring.add_argument("--json", type=Path, required=True)
    planning = commands.add_parser("plan")
    planning.add_argument("measured", type=Path)
    planning.add_argument("--per-day", type=float, nargs="+", default=[1e6, 1e8, 1e10])
    planning.add_argument("--gpu", type=Path, help="figures of a GPU: `python -m benchmarks.gpu --json FILE`")
    for known in dataclasses.fields(Assumptions):
        kind = type(known.default)
        planning.add_argument(f"--{known.name.replace('_', '-')}", type=kind, default=known.default)
    options = parser.parse_args(arguments)
    if options.command == "measure":
        rows = [dataclasses.asdict(each) for each in measure(options.model_store, options.seconds, options.repeats)]
        options.json.write_text(json.dumps({"machine": machine(), "measured": rows}, indent=1) + "\n")
        return
    try:
        assumed = Assumptions(**{each.name: getattr(options, each.name) for each in dataclasses.fields(Assumptions)})
        gpu_rates = read_gpu(options.gpu) if options.gpu else {}
        for measured in read(options.measured):
            if options.gpu:
                assumed = dataclasses.replace(assumed, gpu_rate=gpu_rates.get(measured.graph, 0.0))
            print(f"**{measured.request}**: {measured.per_core:,.0f} a second and core\n")
            print(table([plan(measured, assumed, per_day) for per_day in options.per_day]))
            print(f"\n{verdict(measured, assumed)}\n")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
