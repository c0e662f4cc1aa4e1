"""Routes without FastAPI's machinery: an endpoint takes the `Request` and gives a `Response`.

They are FastAPI routes to OpenAPI, which describes them by `responses` and `openapi_extra`, but a request reaches them
by one look-up of its path. FastAPI's own way, from its telemetry to its exit stacks, costs a third of the whole time
of a small picture.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service import schemas
from service.deadlines import MOST_MILLISECONDS, TIMEOUT_HEADER
from service.errors import PROBLEM_MEDIA_TYPE, PROTOCOL_PATH, Problem, Unauthorized
from service.queries import CHOICES, MOST_SEED, MOST_VARIANTS, AugmentOptions

Endpoint = Callable[[Request], Awaitable[Response]]

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
"""OpenAPI's description of a body that is a file."""
# The first is for makers of clients, which take a part without it for text; OpenAPI 3.1 itself asks for the second.
_MULTIPART = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}


class DirectRoute(APIRoute):
    """The endpoint is called with the request and nothing else; its exceptions reach the caller as they are."""

    def __init__(self, path: str, endpoint: Endpoint, **described: Any) -> None:
        super().__init__(path, endpoint, **described)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive))
            await response(scope, receive, send)

        self.app = app


class DirectPaths:
    """Calls a `DirectRoute` of `app` by its path, and `app` for everything else: documentation, 404, 405, lifespan.

    HEAD is answered as GET is; the server leaves the body out.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._routes: dict[tuple[str, str], ASGIApp] = {}
        self._patterns: list[tuple[str, re.Pattern[str], ASGIApp]] = []
        for route in app.routes:
            if not isinstance(route, DirectRoute):
                continue
            for method in route.methods or ():
                if route.param_convertors:
                    self._patterns.append((method, route.path_regex, route.app))
                else:
                    self._routes[method, route.path] = route.app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        route = self._find(scope) if scope["type"] == "http" else None
        return (route or self._app)(scope, receive, send)

    def _find(self, scope: Scope) -> ASGIApp | None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        path = scope["path"]
        if route := self._routes.get((method, path)):
            return route
        for wanted, pattern, route in self._patterns:
            if wanted == method and (found := pattern.match(path)):
                scope["path_params"] = found.groupdict()
                return route
        return None


def problem_responses(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for the problems that a route can answer, one entry a status."""
    by_status: dict[int | str, list[type[Problem]]] = {}
    for problem in problems:
        by_status.setdefault(problem.status, []).append(problem)
    return {
        status: {
            "description": "; ".join(f"`{kind.slug}`: {kind.title}" for kind in kinds),
            "content": {PROBLEM_MEDIA_TYPE: {"schema": schema_reference(schemas.Problem)}},
        }
        for status, kinds in sorted(by_status.items())
    }


def protocol_responses(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The same for a route of the inference protocol, whose errors have the protocol's own shape."""
    described = problem_responses(*problems)
    for response in described.values():
        response["content"] = {"application/json": {"schema": schema_reference(schemas.ProtocolError)}}
    return described


def describe_keys(document: dict[str, Any], open_paths: frozenset[str]) -> None:
    """Say in an OpenAPI document that all but these paths need a key."""
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path in open_paths:
            continue
        respond = protocol_responses if path.startswith(PROTOCOL_PATH) else problem_responses
        for operation in operations.values():
            operation["security"] = [{"key": []}]
            operation["responses"] |= {str(status): text for status, text in respond(Unauthorized).items()}


def schema_reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def pictures_body() -> dict[str, Any]:
    """OpenAPI's `requestBody` for an endpoint that judges each picture by itself."""
    return {
        "required": True,
        "content": {
            "image/*": BINARY,
            "application/octet-stream": BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": "One part `image`, or several parts `images`.",
                    "properties": {"image": _MULTIPART, "images": {"type": "array", "items": _MULTIPART}},
                    "additionalProperties": False,
                }
            },
            "application/json": {
                "schema": schema_reference(schemas.ImagesRequest),
                "example": {"images": [{"data": schemas.EXAMPLE_PNG}]},
            },
        },
    }


def pair_body() -> dict[str, Any]:
    """OpenAPI's `requestBody` for recombination."""
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"content": _MULTIPART, "style": _MULTIPART},
                    "required": ["content", "style"],
                    "additionalProperties": False,
                }
            },
            "application/json": {
                "schema": schema_reference(schemas.RecombineRequest),
                "example": {name: {"data": schemas.EXAMPLE_PNG} for name in ("content", "style")},
            },
        },
    }


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _choice(name: str, description: str) -> dict[str, Any]:
    words = list(CHOICES[name])
    return _parameter(name, description, type="string", enum=words, default=words[0])


def query_parameters() -> list[dict[str, Any]]:
    """OpenAPI's `parameters` of every inference route; `queries.read_options` reads them."""
    return [
        _parameter("model", "Name of a loaded model; else the default of this capability.", type="string"),
        _parameter("version", "Version of the model; else the one that serves.", type="integer", minimum=1),
        _choice(
            "polarity",
            "Brightness of the ink; auto finds it, but in a picture that is left as it is (see fit); none takes it to "
            "be that of the model's training data.",
        ),
        _choice(
            "fit",
            "content looks for the content and fits it to the model's frame, image takes the whole picture; auto does "
            "as the model's training data, and leaves a picture of the model's own size as it is, unless the "
            "training's were framed from pictures of any size.",
        ),
        _choice("exif", "Whether an EXIF orientation is applied first."),
    ]


def timeout_parameter() -> dict[str, Any]:
    """OpenAPI's description of the header that `deadlines.read_deadline` reads."""
    return {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "required": False,
        "description": "Milliseconds from the request's head within which its answer is of use, at most the service's "
        "own limit. Where it cannot be kept the request is refused at once, and work that is late is not begun.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MOST_MILLISECONDS},
    }


def upright_parameters() -> list[dict[str, Any]]:
    """Those of a route that brings pictures upright, besides; see `queries.UprightOptions`."""
    return [
        _choice("undo", "rotation turns the picture about its content's centre, all undoes the whole transform."),
        _choice(
            "expand",
            "true grows the canvas so that all of the picture is on it, which counts against the limit of pixels; "
            "false keeps the picture's size.",
        ),
        _parameter(
            "mode",
            "Which of the transform's `modes` is undone, counted from 0, the best; not every picture has as many.",
            type="integer",
            minimum=0,
            default=0,
        ),
        *drawing_parameters(),
    ]


def augment_parameters() -> list[dict[str, Any]]:
    """Those of a route that gives variants, besides; see `queries.AugmentOptions`."""
    return [
        _parameter(
            "n",
            "Variants of each picture; the pixels of all of them together count against the limit of pixels.",
            type="integer",
            minimum=1,
            maximum=MOST_VARIANTS,
            default=AugmentOptions().n,
        ),
        _parameter(
            "seed",
            "Of the noise that the variants are drawn from: the same seed, picture and model give the same variants. "
            "Else one is drawn; the answer tells it.",
            type="integer",
            minimum=0,
            maximum=MOST_SEED,
        ),
        *drawing_parameters(),
    ]


def drawing_parameters() -> list[dict[str, Any]]:
    """Those of a route that draws the user's own picture anew."""
    return [
        _parameter(
            "fill",
            "What shows where there is no picture: auto is the median colour of its border. A colour is written "
            "%23rrggbb or rrggbb.",
            type="string",
            pattern="^(auto|transparent|#?[0-9a-fA-F]{6})$",
            default="auto",
        ),
        _choice("resample", "How values between pixels are found."),
    ]
