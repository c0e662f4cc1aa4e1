"""/v2/repository of the Open Inference Protocol: what the model store has; loading and unloading with an admin key."""

from fastapi import APIRouter
from pydantic import Field, StrictBool
from starlette.requests import Request
from starlette.responses import Response

from service.body import read_body
from service.call import CALL
from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    Forbidden,
    InternalError,
    InvalidJson,
    InvalidTensor,
    ModelNotFound,
    ModelRefused,
    NotReady,
    Unauthorized,
)
from service.inference import INLINE_BODY_BYTES
from service.keys import Keys
from service.model_store import ModelStore
from service.routes.direct import DirectRoute, protocol_responses, schema_reference
from service.routes.v2_models import PLAIN
from service.tensors import Message, Parameters, Read, read_message

_LOAD_PROBLEMS = (
    ModelNotFound,
    ModelRefused,
    Unauthorized,
    Forbidden,
    InvalidJson,
    InvalidTensor,
    BodyTooLarge,
    BodyTimeout,
    NotReady,
    InternalError,
)


class IndexRequest(Message):
    ready: StrictBool = Field(default=False, description="Only what is ready.")


class IndexEntry(Message):
    name: str
    version: str
    state: str = Field(examples=["READY", "UNAVAILABLE"])
    reason: str = ""


class LoadRequest(Message):
    parameters: Parameters = Field(default={}, description="None is needed; a configuration is refused.")


def index(store: ModelStore) -> list[IndexEntry]:
    entries = []
    for model in store.serving.models.values():
        names = [model.name] if any(plain in model.batchers for plain in PLAIN) else []
        names += [f"{model.name}.{graph}" for graph in model.batchers]
        entries += [IndexEntry(name=name, version=str(model.version), state="READY") for name in names]
    for refusal in store.refused:
        version = "" if refusal.version is None else str(refusal.version)
        entries.append(IndexEntry(name=refusal.model, version=version, state="UNAVAILABLE", reason=refusal.reason))
    return entries


def add(router: APIRouter, store: ModelStore, keys: Keys) -> None:
    async def repository(request: Request) -> Response:
        request.scope[CALL].endpoint = "v2_index"
        asked = await _read(request, IndexRequest)
        entries = [entry for entry in index(store) if entry.state == "READY" or not asked.ready]
        listed = ",".join(entry.model_dump_json() for entry in entries)
        return Response(f"[{listed}]", media_type="application/json")

    async def load(request: Request) -> Response:
        await _begin(request, keys, "v2_load")
        await store.load(request.path_params["model"])
        return Response("{}", media_type="application/json")

    async def unload(request: Request) -> Response:
        await _begin(request, keys, "v2_unload")
        await store.unload(request.path_params["model"])
        return Response("{}", media_type="application/json")

    router.add_api_route(
        "/v2/repository/index",
        repository,
        methods=["POST"],
        name="v2_repository_index",
        summary="Inference protocol: every graph that serves, every model folder that was refused",
        response_model=list[IndexEntry],
        responses=protocol_responses(InvalidJson, InvalidTensor, BodyTooLarge, BodyTimeout),
        openapi_extra={
            "requestBody": {"content": {"application/json": {"schema": schema_reference(IndexRequest), "example": {}}}},
        },
        route_class_override=DirectRoute,
    )
    for endpoint, summary in (
        (load, "Inference protocol: let a model's highest version serve, newly read from its folder"),
        (unload, "Inference protocol: take a model out of service until it is loaded again"),
    ):
        name = endpoint.__name__
        router.add_api_route(
            f"/v2/repository/models/{{model}}/{name}",
            endpoint,
            methods=["POST"],
            name=f"v2_repository_{name}",
            summary=summary,
            description="Needs an admin key; is off where the service has none.",
            response_description="Done: an empty object.",
            responses=protocol_responses(*_LOAD_PROBLEMS),
            openapi_extra={
                "parameters": [
                    {
                        "name": "model",
                        "in": "path",
                        "required": True,
                        "description": "The model's own name, without a capability: all of its graphs.",
                        "schema": {"type": "string"},
                        "example": "equivae-mnist",
                    },
                ],
                "requestBody": {"content": {"application/json": {"schema": schema_reference(LoadRequest)}}},
            },
            route_class_override=DirectRoute,
        )


async def _read(request: Request, model: type[Read]) -> Read:
    """The request's message, which may be none at all.

    Raises:
        BodyTooLarge: it is longer than the event loop may stand to parse. InvalidJson, InvalidTensor: it is none.
    """
    body = await read_body(request.receive)
    if len(body) > INLINE_BODY_BYTES:
        raise BodyTooLarge(
            f"the message has {len(body):,} bytes, at most {INLINE_BODY_BYTES:,} are read", max_bytes=INLINE_BODY_BYTES
        )
    return read_message(body, model) if body else model()


async def _begin(request: Request, keys: Keys, endpoint: str) -> None:
    call = request.scope[CALL]
    call.endpoint = endpoint
    keys.check_admin(call.headers)
    for name in (await _read(request, LoadRequest)).parameters:
        if name == "config" or name.startswith("file:"):
            raise InvalidTensor(f"{name[:64]!r} is not taken over the network: a model is what its folder has")
