"""GET /docs: Swagger UI for the OpenAPI document, from this machine alone: no script comes from a network."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.call import CALL
from service.routes.direct import DirectRoute

# Swagger UI writes styles into the page; scripts come from here only.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)
_HEADERS = {"X-Content-Type-Options": "nosniff"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Equipoise</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});\n'
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
PATHS = frozenset({"/docs", "/docs/start.js", *(f"/docs/{name}" for name in _FILES)})


def add(router: APIRouter) -> None:
    def page(path: str, content: str, media_type: str) -> None:
        async def answer(request: Request) -> Response:
            request.scope[CALL].endpoint = "docs"
            return Response(content, media_type=media_type, headers=_HEADERS | {"Content-Security-Policy": _POLICY})

        _add(router, path, answer)

    async def file(request: Request) -> Response:
        request.scope[CALL].endpoint = "docs"
        name = request.scope["path"].rpartition("/")[2]
        return Response(_read(name), media_type=_FILES[name], headers=_HEADERS | {"Cache-Control": "max-age=86400"})

    page("/docs", _PAGE, "text/html")
    page("/docs/start.js", _START, "text/javascript")
    for name in _FILES:
        _add(router, f"/docs/{name}", file)


@cache
def _read(name: str) -> bytes:
    """Once: of as many as may download it at a time, none holds megabytes of its own."""
    return (files("fastapi_swagger.resources") / name).read_bytes()


def _add(router: APIRouter, path: str, endpoint: object) -> None:
    router.add_api_route(
        path,
        endpoint,  # type: ignore[arg-type]
        include_in_schema=False,
        response_class=Response,
        route_class_override=DirectRoute,
    )
