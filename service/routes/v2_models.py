"""/v2 of the Open Inference Protocol but for inference: the server, its health, its models.

One model of the protocol is one graph, `<model>.<capability>`; plain `<model>` is its classify graph, else its
canonicalize graph.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from contract.manifest import TensorSpec
from service.call import CALL
from service.catalogue import CAPABILITIES, LoadedModel
from service.errors import (
    CapabilityNotFound,
    InternalError,
    ModelNotFound,
    NotAlive,
    NotReady,
    Problem,
    VersionNotFound,
)
from service.model_store import ModelStore
from service.routes.direct import DirectRoute, protocol_responses
from service.tensors import Message

EXTENSIONS = ["binary_tensor_data", "model_repository"]
PLATFORM = "onnx_onnxv1"
PLAIN = ("classify", "canonicalize")  # what a model's own name stands for, the first that it has

NOT_FOUND = (ModelNotFound, VersionNotFound, CapabilityNotFound, NotReady, InternalError)


class ServerMetadata(Message):
    name: str = Field(examples=["equipoise"])
    version: str
    extensions: list[str]


class Live(Message):
    live: bool


class ServerReady(Message):
    ready: bool


class ModelReady(Message):
    name: str
    ready: bool


class TensorMetadata(Message):
    name: str
    datatype: str = Field(examples=["FP32"])
    shape: list[int] = Field(description="-1 is the batch.", examples=[[-1, 1, 28, 28]])


class ModelMetadata(Message):
    name: str
    versions: list[str]
    platform: str = Field(examples=[PLATFORM])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def find_graph(store: ModelStore, name: str, version: str | None) -> tuple[LoadedModel, str]:
    """The model and the capability behind a name of the protocol.

    Raises:
        NotReady, ModelNotFound, VersionNotFound, CapabilityNotFound: with what there is.
    """
    number = None
    if version is not None:
        if not (version.isascii() and version.isdigit() and len(version) <= 9):
            raise VersionNotFound(f"version {version[:40]!r} of {name[:100]} is not loaded")
        number = int(version)
    model = store.serving.models.get(name)
    if model is not None:
        capability = next((plain for plain in PLAIN if plain in model.batchers), None)
        if capability is None:
            graphs = ", ".join(f"{name}.{graph}" for graph in model.batchers)
            raise CapabilityNotFound(f"{name} is no graph by itself; there are {graphs}")
        return store.select(capability, name, number), capability
    base, _, capability = name.rpartition(".")
    if base in store.serving.models and capability in CAPABILITIES:
        return store.select(capability, base, number), capability
    if not store.serving.models:
        store.check_ready()
    graphs = ", ".join(f"{other.name}.{graph}" for other in store.serving.models.values() for graph in other.batchers)
    raise ModelNotFound(f"the model {name[:100]!r} is not loaded; there are {graphs}")


def describe(name: str, model: LoadedModel, capability: str) -> ModelMetadata:
    graph = model.batchers[capability].engine.spec

    def tensors(specs: Sequence[TensorSpec]) -> list[TensorMetadata]:
        return [TensorMetadata(name=spec.name, datatype="FP32", shape=[-1, *spec.row_shape]) for spec in specs]

    return ModelMetadata(
        name=name,
        versions=[str(model.version)],
        platform=PLATFORM,
        inputs=tensors(graph.inputs),
        outputs=tensors(graph.outputs),
    )


def path_parameters(path: str) -> list[dict[str, Any]]:
    """OpenAPI's `parameters` for the placeholders of a path."""
    described = {
        "model": ("`<model>.<capability>`, or `<model>`.", "equivae-mnist.classify"),
        "version": ("A positive integer.", "4"),
    }
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": text,
            "schema": {"type": "string"},
            "example": example,
        }
        for name, (text, example) in described.items()
        if f"{{{name}}}" in path
    ]


def of_model(path: str) -> tuple[str, str]:
    """The path below a model, and below a version of it."""
    return f"/v2/models/{{model}}{path}", f"/v2/models/{{model}}/versions/{{version}}{path}"


def json_answer(message: Message) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def add(router: APIRouter, store: ModelStore, version: str) -> None:
    async def server(request: Request) -> Response:
        request.scope[CALL].endpoint = "v2_server"
        return json_answer(ServerMetadata(name="equipoise", version=version, extensions=EXTENSIONS))

    async def live(request: Request) -> Response:
        request.scope[CALL].endpoint = "v2_live"
        store.check_alive()
        return json_answer(Live(live=True))

    async def ready(request: Request) -> Response:
        request.scope[CALL].endpoint = "v2_ready"
        store.check_ready()
        return json_answer(ServerReady(ready=True))

    async def metadata(request: Request) -> Response:
        request.scope[CALL].endpoint = "v2_model"
        parameters = request.path_params
        return json_answer(
            describe(parameters["model"], *find_graph(store, parameters["model"], parameters.get("version")))
        )

    async def model_ready(request: Request) -> Response:
        request.scope[CALL].endpoint = "v2_model_ready"
        parameters = request.path_params
        find_graph(store, parameters["model"], parameters.get("version"))
        return json_answer(ModelReady(name=parameters["model"], ready=True))

    def get(path: str, endpoint: Any, answer: type[Message], summary: str, *problems: type[Problem]) -> None:
        router.add_api_route(
            path,
            endpoint,
            name=f"v2_{endpoint.__name__}{'_version' if '{version}' in path else ''}",
            summary=summary,
            response_model=answer,
            responses=protocol_responses(*problems),
            openapi_extra={"parameters": path_parameters(path)},
            route_class_override=DirectRoute,
        )

    get("/v2", server, ServerMetadata, "Inference protocol: what this server is")
    get("/v2/health/live", live, Live, "Inference protocol: whether the process is alive", NotAlive)
    get("/v2/health/ready", ready, ServerReady, "Inference protocol: whether requests can be answered", NotReady)
    for path in of_model(""):
        get(path, metadata, ModelMetadata, "Inference protocol: what a graph takes and gives", *NOT_FOUND)
    for path in of_model("/ready"):
        get(path, model_ready, ModelReady, "Inference protocol: whether a graph is loaded and warm", *NOT_FOUND)
