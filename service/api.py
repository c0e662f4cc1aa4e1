"""The HTTP API: its routes, what it knows nothing of, its OpenAPI document.

Apart from the app's other parts because of FastAPI, which takes a good part of a start to import: meanwhile models are
read.
"""

from concurrent.futures import Executor
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Lifespan

from service import schemas, tensors
from service.call import CALL
from service.devices import Devices
from service.errors import InvalidRequest, MethodNotAllowed, NotFound, Problem, problem_types
from service.inference import Inference
from service.keys import Keys
from service.middleware import PROBE_PATHS
from service.observability import Metrics
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

OPEN_PATHS = PROBE_PATHS | docs.PATHS | {"/openapi.json"}


def create_api(
    inference: Inference,
    keys: Keys,
    devices: Devices,
    observed: Metrics,
    writer: Executor,
    version: str,
    lifespan: Lifespan[FastAPI],
) -> ASGIApp:
    """writer: the thread in which metrics are written."""

    # Both are answered where all problems are, in `RequestEdge`.

    async def refused(request: Request, error: Exception) -> Response:
        problem = _as_problem(request.scope["path"], error)
        if isinstance(problem, MethodNotAllowed):
            request.scope[CALL].name_endpoint(request.scope["path"])
        raise problem

    async def failed(request: Request, error: Exception) -> Response:
        raise error

    app = FastAPI(
        title="Equipoise",
        version=version,
        description=_description(),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        exception_handlers={HTTPException: refused, Exception: failed},
    )
    for route in (classify, embed, transform, canonicalize, augment, recombine):
        route.add(app.router, inference)
    models.add(app.router, inference.store)
    v2_models.add(app.router, inference.store, app.version)
    v2_repository.add(app.router, inference.store, keys)
    v2.add(app.router, inference)
    health.add(app.router, inference.store, devices)
    metrics.add(app.router, observed, writer)
    docs.add(app.router)
    app.openapi = lambda: _openapi(app, keys)  # type: ignore[method-assign]
    return DirectPaths(app)


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
