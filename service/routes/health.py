"""GET /startupz: every model of the store was loaded or refused, once; from then on for good. GET /healthz: the process
answers, and no run hangs. GET /readyz: a model is loaded, verified and warm.
"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.devices import Devices
from service.errors import NotAlive, NotReady
from service.middleware import CALL
from service.model_store import ModelStore
from service.routes.direct import DirectRoute, problem_responses
from service.schemas import Alive, Ready, Started


def add(router: APIRouter, store: ModelStore, devices: Devices) -> None:
    async def startupz(request: Request) -> Response:
        request.scope[CALL].endpoint = "startupz"
        store.check_started()
        return Response(Started().model_dump_json(), media_type="application/json")

    async def healthz(request: Request) -> Response:
        request.scope[CALL].endpoint = "healthz"
        store.check_alive()
        return Response(Alive().model_dump_json(), media_type="application/json")

    async def readyz(request: Request) -> Response:
        request.scope[CALL].endpoint = "readyz"
        store.check_ready()
        serving = store.models.values()
        answer = Ready(
            models=[f"{model.name}/{model.version}" for model in serving],
            devices=[device.name for device in devices.found],
            fallback=devices.reason or None,
            strays=[
                f"{model.name}/{model.version}.{graph}: {node}"
                for model in serving
                for graph, batcher in model.batchers.items()
                for node in batcher.engine.strays
            ],
        )
        return Response(answer.model_dump_json(), media_type="application/json")

    router.add_api_route(
        "/startupz",
        startupz,
        name="startupz",
        summary="Whether the first look through the model store has ended, whatever came of it",
        response_model=Started,
        responses=problem_responses(NotReady),
        route_class_override=DirectRoute,
    )
    router.add_api_route(
        "/healthz",
        healthz,
        name="healthz",
        summary="Whether the process is alive",
        response_model=Alive,
        responses=problem_responses(NotAlive),
        route_class_override=DirectRoute,
    )
    router.add_api_route(
        "/readyz",
        readyz,
        name="readyz",
        summary="Whether requests can be answered",
        response_model=Ready,
        responses=problem_responses(NotReady),
        route_class_override=DirectRoute,
    )
