"""The app: its parts, made from settings and wired together."""

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.access_log import AccessLog
from service.admission import Admission, QueueGate
from service.batching import Batcher
from service.body import BodyLimits
from service.budget import Budget
from service.call import RequestObserver
from service.catalogue import CAPABILITIES
from service.connection import HEAD_GATE
from service.connections import Connections
from service.cpus import usable_cpus
from service.deadlines import TIMEOUT_HEADER
from service.devices import Devices, find_devices
from service.engine import Engine, EngineOptions
from service.images import limits_of
from service.inference import Inference
from service.keys import KeyGate, Keys
from service.life import Life
from service.logs import say
from service.middleware import RequestEdge, TwoPorts
from service.model_store import ModelStore
from service.observability import Metrics
from service.pool import Pool
from service.settings import MOST_THREADS_BY_DEFAULT, Settings
from service.store_watch import StoreLog, load_at_start, serve_store
from service.tensors import JSON_LENGTH_HEADER
from service.tracing import Tracing

if TYPE_CHECKING:
    from fastapi import FastAPI

# A thread goes on to the end of what it does, a model to load, a run, a drawing, and nobody waits for it any more.
_LAST_WORK_SECONDS = 0.5


def app_factory(
    settings: Settings,
    on_loaded: Callable[[], None],
    connections: Connections,
    probe_port: int | None,
    life: Life,
) -> Callable[[], ASGIApp]:
    """What refuses to start does so here. The answer, to be called once, makes the app, and models are being loaded
    from that call on; when they are, the app calls `on_loaded`.

    connections: the server's, for metrics. probe_port: the port of the server's second socket. life: the process's.

    Raises:
        KeyFileError: the file of keys cannot be used. DeviceUnavailable: the device that is asked for cannot be had.
        TracingUnavailable: traces are asked for without the extra otel.
    """
    keys = Keys(settings.api_keys)
    observers: list[RequestObserver] = [AccessLog(settings.access_log_every)] if settings.access_log_every else []
    devices = find_devices(settings.device, settings.gpu_memory_bytes, settings.gpu_conv_search)
    # After all that may refuse: it has a thread that is to be ended.
    tracing = Tracing(settings.otel_endpoint, settings.otel_share, _version()) if settings.otel_endpoint else None
    if tracing is not None:
        observers.append(tracing)
    at_once = settings.max_batch * len(devices.found)
    budget = Budget(settings.queue_images, settings.queue_bytes, settings.queue_seconds or math.inf, at_once)
    observed = Metrics(budget)
    observed.watch_connections(connections)
    pool = Pool(settings.decode_threads)
    observed.devices(devices)
    if devices.fell_back:
        say(logging.WARNING, "graphs run on the CPU", reason=devices.reason)
    runners = [ThreadPoolExecutor(1, f"device {device.name}") for device in devices.found]
    loader, writer = ThreadPoolExecutor(1, "loader"), ThreadPoolExecutor(1, "metrics")
    store = create_store(settings, observed, devices, runners, loader, life)
    inference = Inference(
        store,
        budget,
        observed,
        pool,
        limits_of(settings),
        max_images=settings.max_images,
        timeout_seconds=settings.request_timeout_seconds,
    )
    ids = connections.ids
    gate = QueueGate(budget, life, observed, ids, observers)

    def make() -> ASGIApp:
        loading = loader.submit(load_at_start, store)
        from service.api import OPEN_PATHS, create_api  # a good part of a start: ONNX Runtime makes sessions meanwhile

        @asynccontextmanager
        async def lifespan(app: "FastAPI") -> AsyncIterator[dict[str, Any]]:
            serving = serve_store(store, loading, settings.model_poll_seconds, on_loaded)
            watching = asyncio.create_task(serving, name="model store")
            # A browser reads no refusal without the headers of its own that the app adds.
            yield {} if settings.cors_origins else {HEAD_GATE: gate}
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            life.busy = not await _have_ended((loader, writer, *runners, pool.executor), _LAST_WORK_SECONDS)
            life.hung = store.hangs
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

        api = create_api(inference, keys, devices, observed, writer, _version(), lifespan)
        layered: ASGIApp = BodyLimits(api, settings.max_body_bytes, settings.body_timeout_seconds, budget)
        if keys.needed:
            layered = KeyGate(layered, keys, OPEN_PATHS)
        layered = Admission(layered, budget)
        if probe_port is not None:
            layered = TwoPorts(layered, probe_port)
        edge: ASGIApp = RequestEdge(layered, life, observed, ids, 2 * settings.max_body_bytes, observers)
        return allow_origins(edge, settings.cors_origins) if settings.cors_origins else edge

    return make


def allow_origins(app: ASGIApp, origins: str) -> ASGIApp:
    """`app` for browsers on pages of these origins as well, separated by commas; `*`: of any."""
    return CORSMiddleware(
        app,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-ID", TIMEOUT_HEADER, JSON_LENGTH_HEADER],
        expose_headers=[
            "Retry-After",
            "Server-Timing",
            "X-Request-ID",
            "X-Transform",
            "X-Upright-Matrix",
            JSON_LENGTH_HEADER,
        ],
    )


def create_store(
    settings: Settings, observed: Metrics, devices: Devices, runners: Sequence[Executor], loader: Executor, life: Life
) -> ModelStore:
    """runners: a thread for each device."""

    def queue(engines: Sequence[Engine], key: tuple[str, int, str]) -> Batcher:
        batcher = Batcher(list(zip(engines, runners, strict=True)), observed.queue(*key))
        observed.watch(batcher, *key)
        return batcher

    store = ModelStore(
        root=settings.model_store,
        options=[
            EngineOptions(
                threads=settings.inference_threads or min(usable_cpus(), MOST_THREADS_BY_DEFAULT),
                max_batch=settings.max_batch,
                inline_seconds=settings.inline_milliseconds / 1e3,
                device=device,
            )
            for device in devices.found
        ],
        defaults={capability: settings.default_model(capability) for capability in CAPABILITIES},
        queue=queue,
        observer=StoreLog(observed),
        loader=loader,
        life=life,
        hang_seconds=settings.hang_seconds,
    )
    observed.refused_models.set_function(lambda: len(store.refused))
    return store


async def _have_ended(executors: Sequence[Executor], seconds: float) -> bool:
    """Whether all that their threads do ends within so many seconds; what waits for a thread is never begun."""
    for executor in executors:
        executor.shutdown(wait=False, cancel_futures=True)

    def wait() -> None:
        for executor in executors:
            executor.shutdown()

    waiting = threading.Thread(target=wait, name="last work", daemon=True)
    waiting.start()
    await asyncio.to_thread(waiting.join, seconds)
    return not waiting.is_alive()


def _version() -> str:
    try:
        return metadata.version("equipoise")
    except metadata.PackageNotFoundError:  # run from the source tree without being installed
        return "unknown"
