"""Metrics for Prometheus and logs, one line a start, a load, an error; no record a request.

Label values come from the routes, the model folders and the table of problems, never from what a client sends, so the
number of series is bounded. Children of a label set are resolved once, since the look-up costs more than the count.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from functools import cache
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.batching import Batcher
from service.budget import Budget
from service.errors import problem_types

STAGES = ("decode", "queue", "infer", "encode")
# 50 microseconds to 13 seconds, doubling
_SECONDS = tuple(50e-6 * 2**power for power in range(19))
_IMAGES = tuple(float(2**power) for power in range(11))

log = logging.getLogger("equipoise")


class Metrics:
    """One app's metrics in a registry of its own."""

    def __init__(self, budget: Budget) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("equipoise_requests", "Answered requests.", ("endpoint", "status"), registry=registry)
        self._seconds = Histogram(
            "equipoise_request_duration_seconds",
            "From the request's head to its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "equipoise_stage_duration_seconds",
            "Parts of a request: decode (body to model input), queue, infer (its batch), encode (answer to bytes).",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._problems = Counter(
            "equipoise_problems",
            "Problems by type, those of single pictures in a batch included.",
            ("type",),
            registry=registry,
        )
        self._images = Counter(
            "equipoise_images", "Pictures answered.", ("model", "version", "capability"), registry=registry
        )
        self._batch_images = Histogram(
            "equipoise_batch_images",
            "Pictures in one run of a graph.",
            ("model", "version", "capability"),
            buckets=_IMAGES,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "equipoise_batch_duration_seconds",
            "One run of a graph.",
            ("model", "version", "capability"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._dropped = Counter(
            "equipoise_dropped_images",
            "Pictures whose caller left before their run.",
            ("model", "version", "capability"),
            registry=registry,
        )
        self._depth = Gauge(
            "equipoise_queue_depth_images",
            "Pictures that wait for a run.",
            ("model", "version", "capability"),
            registry=registry,
        )
        self._model_info = Gauge(
            "equipoise_model_info",
            "1 for every version that serves.",
            ("model", "version", "kind"),
            registry=registry,
        )
        accepted = Gauge("equipoise_accepted_images", "Pictures accepted and not yet answered.", registry=registry)
        accepted.set_function(lambda: budget.images)
        held = Gauge("equipoise_accepted_bytes", "Decoded bytes of the accepted pictures.", registry=registry)
        held.set_function(lambda: budget.bytes)
        self.in_flight = Gauge("equipoise_requests_in_flight", "Requests not yet answered.", registry=registry)
        self.refused_models = Gauge("equipoise_models_refused", "Model folders that were refused.", registry=registry)
        self.stages = {stage: self._stages.labels(stage) for stage in STAGES}
        self._problem_children = {kind.slug: self._problems.labels(kind.slug) for kind in problem_types()}
        self.request_children = cache(self._request_children)
        self._image_children: dict[tuple[str, int, str], Counter] = {}

    def _request_children(self, endpoint: str, status: int) -> tuple[Counter, Histogram]:
        """The two children of an endpoint and a status; both sets are small and fixed."""
        return self._requests.labels(endpoint, str(status)), self._seconds.labels(endpoint)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        counter, histogram = self.request_children(endpoint, status)
        counter.inc()
        histogram.observe(seconds)

    def images(self, model: str, version: int, capability: str, count: int) -> None:
        key = (model, version, capability)
        if (child := self._image_children.get(key)) is None:
            child = self._image_children[key] = self._images.labels(model, str(version), capability)
        child.inc(count)

    def problem(self, slug: str) -> None:
        self._problem_children[slug].inc()

    def model_loaded(self, model: str, version: int, kind: str) -> None:
        self._model_info.labels(model, str(version), kind).set(1)

    def queue(self, model: str, version: int, capability: str) -> "QueueMetrics":
        names = (model, str(version), capability)
        return QueueMetrics(
            self._batch_images.labels(*names),
            self._batch_seconds.labels(*names),
            self._dropped.labels(*names),
            self._depth.labels(*names),
        )


class QueueMetrics:
    """What a queue tells: `batching.BatchObserver`."""

    def __init__(self, images: Histogram, seconds: Histogram, dropped: Counter, depth: Gauge) -> None:
        self._images = images
        self._seconds = seconds
        self._dropped = dropped
        self._depth = depth

    def watch(self, batcher: Batcher) -> None:
        self._depth.set_function(lambda: batcher.depth)

    def batch(self, images: int, seconds: float) -> None:
        self._images.observe(images)
        self._seconds.observe(seconds)

    def dropped(self, images: int) -> None:
        self._dropped.inc(images)


class _PlainFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO message key=value ...`, one line always."""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {key}={value}" for key, value in _facts(record).items())
        line = f"{_stamp(record)} {record.levelname} {record.getMessage()}{facts}"
        return line.replace("\n", " | ")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        members = {"time": _stamp(record), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(members | _facts(record), default=str)


def _stamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _facts(record: logging.LogRecord) -> dict[str, object]:
    facts = dict(getattr(record, "facts", {}))
    if record.exc_info and record.exc_info[1] is not None:
        facts["traceback"] = "".join(traceback.format_exception(record.exc_info[1])).strip()
    return facts


def set_up_logging(form: Literal["plain", "json"], level: str) -> None:
    """All loggers to standard error, one line a record; uvicorn's own start and stop notices are left out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _PlainFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def say(level: int, message: str, error: BaseException | None = None, **facts: object) -> None:
    """One log record with machine-readable facts."""
    log.log(level, message, exc_info=error, extra={"facts": facts})
