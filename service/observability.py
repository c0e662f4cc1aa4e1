"""Metrics for Prometheus.

Label values come from the routes, the model folders and the table of problems, never from what a client sends, so the
number of series is bounded. Children of a label set are resolved once, since the look-up costs more than the count.
"""

import asyncio
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import get_args

from prometheus_client import Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.batching import Batcher, DropReason
from service.budget import Budget
from service.connections import Connections
from service.devices import Devices
from service.drift import Drift
from service.engine import Array
from service.errors import problem_types
from service.histograms import Histogram, Registry, Series

STAGES = ("decode", "queue", "infer", "warp", "encode")
# 50 microseconds to 13 seconds, doubling
_SECONDS = tuple(50e-6 * 2**power for power in range(19))
_IMAGES = tuple(float(2**power) for power in range(11))

_QUEUE = ("model", "version", "capability")
_DROP_REASONS: tuple[DropReason, ...] = get_args(DropReason)


class Metrics:
    """One app's metrics in a registry of its own. Everything but a model's load is counted on the event loop."""

    def __init__(self, budget: Budget) -> None:
        self.registry = registry = Registry()
        self.in_flight = 0
        ProcessCollector(registry=registry)
        self._requests = Counter("equipoise_requests", "Answered requests.", ("endpoint", "status"), registry=registry)
        self._seconds = Histogram(
            "equipoise_request_duration_seconds",
            "From the request's head to its answer.",
            ("endpoint",),
            _SECONDS,
            registry,
        )
        stages = Histogram(
            "equipoise_stage_duration_seconds",
            "Parts of a request: decode (body to model input), queue, infer (its batch), warp (pictures brought "
            "upright), encode (answer to bytes).",
            ("stage",),
            _SECONDS,
            registry,
        )
        self.stages = {stage: stages.series(stage) for stage in STAGES}
        problems = Counter(
            "equipoise_problems",
            "Problems by type, those of single pictures in a batch included.",
            ("type",),
            registry=registry,
        )
        self._problems = {kind.slug: problems.labels(kind.slug) for kind in problem_types()}
        self._images = Counter("equipoise_images", "Pictures that a graph has run on.", _QUEUE, registry=registry)
        self._batch_images = Histogram(
            "equipoise_batch_images", "Pictures in one run of a graph.", _QUEUE, _IMAGES, registry
        )
        self._batch_seconds = Histogram(
            "equipoise_batch_duration_seconds", "One run of a graph.", _QUEUE, _SECONDS, registry
        )
        self._dropped = Counter(
            "equipoise_dropped_images",
            "Pictures that waited and were never run: their caller left, or their deadline passed.",
            (*_QUEUE, "reason"),
            registry=registry,
        )
        self._depth = Gauge("equipoise_queue_depth_images", "Pictures that wait for a run.", _QUEUE, registry=registry)
        self._model_info = Gauge(
            "equipoise_model_info", "1 for every version that serves.", ("model", "version", "kind"), registry=registry
        )
        self._nodes = Gauge(
            "equipoise_graph_nodes",
            "Nodes of a graph by the execution provider that runs them.",
            (*_QUEUE, "provider"),
            registry=registry,
        )
        self._devices = Gauge(
            "equipoise_device_info", "1 for every device that graphs run on.", ("device", "provider"), registry=registry
        )
        self._fallback = Gauge(
            "equipoise_device_fallback",
            "1 where ONNX Runtime's CUDA build found no GPU and the CPU has to do.",
            registry=registry,
        )
        self._providers: dict[tuple[str, str, str], list[str]] = {}
        self.drift = Drift(registry)
        self._of_queues = (self._images, self._batch_images, self._batch_seconds, self._depth)
        self.refused_models = Gauge("equipoise_models_refused", "Model folders that were refused.", registry=registry)
        for name, text, value in (
            ("accepted_images", "Pictures accepted and not yet answered.", lambda: budget.images),
            (
                "accepted_bytes",
                "Bytes of bodies and of decoded pictures, accepted and not yet answered.",
                lambda: budget.bytes,
            ),
            ("requests_in_flight", "Requests not yet answered.", lambda: self.in_flight),
        ):
            Gauge(f"equipoise_{name}", text, registry=registry).set_function(value)
        self._tasks = Gauge(
            "equipoise_event_loop_tasks",
            "Tasks of the event loop, that of the asking request included.",
            registry=registry,
        )
        self._answers: dict[tuple[str, int], tuple[Counter, Series]] = {}

    async def text(self, writer: Executor) -> bytes:
        """All of it as Prometheus reads it. Written in a thread, but for what the event loop alone may touch: with
        thirty graphs the loop would stand still for longer than most requests take.
        """
        self.registry.fold()
        self._tasks.set(len(asyncio.all_tasks()))
        return await asyncio.get_running_loop().run_in_executor(writer, generate_latest, self.registry)

    def devices(self, devices: Devices) -> None:
        self._fallback.set(devices.fell_back)
        for device in devices.found:
            self._devices.labels(device.name, device.provider).set(1)

    def watch_connections(self, connections: Connections) -> None:
        connections.on_problem = self.problem
        self.registry.register(_ConnectionCollector(connections))

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answer; endpoints and statuses are small and fixed sets."""
        children = self._answers.get((endpoint, status))
        if children is None:
            children = self._requests.labels(endpoint, str(status)), self._seconds.series(endpoint)
            self._answers[endpoint, status] = children
        counter, series = children
        counter.inc()
        series.observe(seconds)

    def problem(self, slug: str) -> None:
        self._problems[slug].inc()

    def model_loaded(self, model: str, version: int, kind: str) -> None:
        self._model_info.labels(model, str(version), kind).set(1)

    def model_closed(self, model: str, version: int, kind: str, capabilities: Iterable[str]) -> None:
        """Forget a version's series, so that their number does not grow with every version that ever served."""
        self._model_info.remove(model, str(version), kind)
        for capability in capabilities:
            for family in self._of_queues:
                family.remove(model, str(version), capability)
            for reason in _DROP_REASONS:
                self._dropped.remove(model, str(version), capability, reason)
            for provider in self._providers.pop((model, str(version), capability), ()):
                self._nodes.remove(model, str(version), capability, provider)
        self.drift.forget(model, version)

    def queue(self, model: str, version: int, capability: str) -> "QueueMetrics":
        names = (model, str(version), capability)
        self.drift.know(model, version)
        return QueueMetrics(
            partial(self.drift.observe, model, version),
            self._images.labels(*names),
            self._batch_images.series(*names),
            self._batch_seconds.series(*names),
            {reason: self._dropped.labels(*names, reason) for reason in _DROP_REASONS},
        )

    def watch(self, batcher: Batcher, model: str, version: int, capability: str) -> None:
        """Report a queue's depth. The gauge is a cycle of references, and must not keep a closed model alive."""
        watched = weakref.ref(batcher)

        def depth() -> int:
            there = watched()
            return there.depth if there is not None else 0

        names = (model, str(version), capability)
        self._depth.labels(*names).set_function(depth)
        self._providers[names] = list(batcher.engine.nodes)  # the same on every device
        for provider, count in batcher.engine.nodes.items():
            self._nodes.labels(*names, provider).set(count)


class _ConnectionCollector(Collector):
    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("equipoise_connections_open", "Open connections.", self._connections.open)
        refused = self._connections.refused
        yield CounterMetricFamily("equipoise_connections_refused", "Connections past the limit.", refused)


class QueueMetrics:
    """What a queue tells: `batching.BatchObserver`."""

    def __init__(
        self,
        drift: Callable[[Mapping[str, Array]], None],
        images: Counter,
        batches: Series,
        seconds: Series,
        dropped: Mapping[DropReason, Counter],
    ) -> None:
        self._drift = drift
        self._images = images
        self._batches = batches
        self._seconds = seconds
        self._dropped = dropped

    def batch(self, images: int, seconds: float, outputs: Mapping[str, Array]) -> None:
        self._drift(outputs)
        self._images.inc(images)
        self._batches.observe(images)
        self._seconds.observe(seconds)

    def dropped(self, images: int, reason: DropReason) -> None:
        self._dropped[reason].inc(images)
