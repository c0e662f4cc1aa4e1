"""The app: its parts, made from settings and wired together."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from service import schemas, tensors
from service.access_log import AccessLog
from service.admission import Admission, Door
from service.batching import Batcher
from service.budget import Budget
from service.catalogue import CAPABILITIES
from service.connection import DOOR, Connections
from service.cpus import usable_cpus
from service.deadlines import TIMEOUT_HEADER
from service.devices import Devices, find_devices
from service.engine import Engine, EngineOptions
from service.errors import (
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Problem,
    problem_types,
    render,
)
from service.images import limits_of
from service.inference import Inference
from service.keys import KeyGate, Keys
from service.life import Life
from service.middleware import CALL, PROBE_PATHS, BodyLimits, Note, RequestEdge, RequestIds, TwoPorts, unexpected
from service.model_store import ModelStore
from service.observability import Metrics, say
from service.pool import Pool
from service.routes import (
    augment,
    canonicalize,
    classify,
    docs,
    embed,
    health,
    metrics,
    models,
    recombine,
    transform,
    v2,
    v2_models,
    v2_repository,
)
from service.routes.direct import DirectPaths, describe_keys
from service.settings import MOST_THREADS_BY_DEFAULT, Settings
from service.store_watch import StoreLog, serve_store
from service.tensors import JSON_LENGTH_HEADER
from service.tracing import Tracing

# A load goes on to the end of its model, which takes seconds of some, and nobody waits for it.
_LAST_LOAD_SECONDS = 0.5
OPEN_PATHS = PROBE_PATHS | docs.PATHS | {"/openapi.json"}


def create_app(
    settings: Settings,
    on_loaded: Callable[[], None] = lambda: None,
    connections: Connections | None = None,
    probe_port: int | None = None,
    life: Life | None = None,
) -> ASGIApp:
    """An app that loads its models when it starts, then calls `on_loaded`; nothing is shared between two apps.

    connections: the server's, for metrics. probe_port: the port of the server's second socket. life: the process's,
    where it ends by more than the lifespan's end.

    Raises:
        KeyFileError: the file of keys cannot be used. DeviceUnavailable: the device that is asked for cannot be had.
        TracingUnavailable: traces are asked for without the extra otel.
    """
    keys = Keys(settings.api_keys)
    life = life or Life()
    notes: list[Note] = [AccessLog(settings.access_log_every)] if settings.access_log_every else []
    devices = find_devices(settings.device, settings.gpu_memory_bytes, settings.gpu_conv_search)
    # After all that may refuse: it has a thread that is to be ended.
    tracing = Tracing(settings.otel_endpoint, settings.otel_share, _version()) if settings.otel_endpoint else None
    if tracing is not None:
        notes.append(tracing)
    at_once = settings.max_batch * len(devices.found)
    budget = Budget(settings.queue_images, settings.queue_bytes, settings.queue_seconds or math.inf, at_once)
    observed = Metrics(budget)
    if connections is not None:
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

    ids = RequestIds()
    door = Door(budget, life, observed, ids, notes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        watching = asyncio.create_task(serve_store(store, settings.model_poll_seconds, on_loaded), name="model store")
        # A browser reads no refusal without the headers of its own that the app adds.
        yield {} if settings.cors_origins else {DOOR: door}
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        life.hung = store.running_seconds() > 0
        life.loading = not await _has_idled(loader, _LAST_LOAD_SECONDS)
        pool.shutdown()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
        for executor in (loader, writer, *runners):
            executor.shutdown(wait=False, cancel_futures=True)

    async def refused(request: Request, error: Exception) -> Response:
        problem = _as_problem(request.scope["path"], error)
        if isinstance(problem, MethodNotAllowed):
            request.scope[CALL].name_endpoint(request.scope["path"])
        return _problem_response(problem, request, observed)

    async def failed(request: Request, error: Exception) -> Response:
        return _problem_response(unexpected(), request, observed)

    app = FastAPI(
        title="Equipoise",
        version=_version(),
        description=_description(),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        exception_handlers={HTTPException: refused, Exception: failed},
    )
    for route in (classify, embed, transform, canonicalize, augment, recombine):
        route.add(app.router, inference)
    models.add(app.router, store)
    v2_models.add(app.router, store, app.version)
    v2_repository.add(app.router, store, keys)
    v2.add(app.router, inference)
    health.add(app.router, store, devices)
    metrics.add(app.router, observed, writer)
    docs.add(app.router)
    app.openapi = lambda: _openapi(app, keys)  # type: ignore[method-assign]
    layered: ASGIApp = BodyLimits(DirectPaths(app), settings.max_body_bytes, settings.body_timeout_seconds, budget)
    if keys.needed:
        layered = KeyGate(layered, keys, OPEN_PATHS)
    layered = Admission(layered, budget)
    if probe_port is not None:
        layered = TwoPorts(layered, probe_port)
    edge: ASGIApp = RequestEdge(layered, life, observed, ids, 2 * settings.max_body_bytes, notes)
    return allow_origins(edge, settings.cors_origins) if settings.cors_origins else edge


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


async def _has_idled(executor: Executor, seconds: float) -> bool:
    """Whether what an executor of one thread was given ends within so many seconds."""
    try:
        await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(executor, int), seconds)
    except TimeoutError:
        return False
    return True


def _as_problem(path: str, error: Exception) -> Problem:
    """Starlette's own refusals as problems of the table."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return NotFound(f"{path[:200]!r} is not known; /docs lists what is")
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        if allowed.get("Allow") == "GET":
            allowed["Allow"] = "GET, HEAD"
        return MethodNotAllowed(f"{path} takes {allowed.get('Allow', 'other methods')}", headers=allowed)
    return InvalidRequest(str(error.detail))


def _problem_response(problem: Problem, request: Request, observed: Metrics) -> Response:
    observed.problem(problem.slug)
    body, media_type = render(problem, request.scope["path"], request.scope[CALL].request_id)
    return Response(body, problem.status, problem.headers, media_type)


def _version() -> str:
    try:
        return metadata.version("equipoise")
    except metadata.PackageNotFoundError:  # run from the source tree without being installed
        return "unknown"


def _description() -> str:
    rows = "\n".join(f"| `{kind.slug}` | {kind.status} | {kind.title} |" for kind in problem_types())
    return (
        "Invariant and equivariant representations of pictures.\n\nEvery error is an RFC 9457 problem; its `type` is "
        "`urn:equipoise:problem:` and one of these names. Below `/v2` errors have the same statuses, and the inference "
        f"protocol's own shape.\n\n| type | status | title |\n|---|---|---|\n{rows}"
    )


def _openapi(app: FastAPI, keys: Keys) -> dict[str, Any]:
    """FastAPI's document, and the schemas that it cannot see: requests are read without its machinery."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        _, definitions = models_json_schema(
            [
                (schemas.ImagesRequest, "validation"),
                (schemas.RecombineRequest, "validation"),
                (schemas.Problem, "validation"),
                (schemas.ProtocolError, "validation"),
                (tensors.InferRequest, "validation"),
                (v2_repository.IndexRequest, "validation"),
                (v2_repository.LoadRequest, "validation"),
            ],
            ref_template="#/components/schemas/{model}",
        )
        document["components"]["schemas"] |= definitions["$defs"]
        if keys.needed:
            describe_keys(document, OPEN_PATHS)
        app.openapi_schema = document
    return app.openapi_schema
