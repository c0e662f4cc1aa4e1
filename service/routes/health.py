"""GET /startupz: every model of the store was loaded or refused, once; from then on for good. GET /healthz: the process
answers, and no run hangs. GET /readyz: a model is loaded, verified and warm.
"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.call import CALL
from service.devices import Devices
from service.errors import NotAlive, NotReady
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
        serving = store.serving.models.values()
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

    for answers, model, problem, summary in (
        (startupz, Started, NotReady, "Whether the first look through the model store has ended, whatever came of it"),
        (healthz, Alive, NotAlive, "Whether the process is alive"),
        (readyz, Ready, NotReady, "Whether requests can be answered"),
    ):
        router.add_api_route(
            f"/{answers.__name__}",
            answers,
            name=answers.__name__,
            summary=summary,
            response_model=model,
            responses=problem_responses(problem),
            route_class_override=DirectRoute,
        )
