"""GET /metrics: for Prometheus."""

from concurrent.futures import Executor

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service.call import CALL
from service.observability import Metrics
from service.routes.direct import DirectRoute


def add(router: APIRouter, metrics: Metrics, writer: Executor) -> None:
    """writer: a thread for what takes longer than the event loop may stand."""

    async def scrape(request: Request) -> Response:
        request.scope[CALL].endpoint = "metrics"
        return Response(await metrics.text(writer), headers={"Content-Type": CONTENT_TYPE_LATEST})

    router.add_api_route(
        "/metrics",
        scrape,
        name="metrics",
        summary="Metrics in Prometheus' text format",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        route_class_override=DirectRoute,
    )
