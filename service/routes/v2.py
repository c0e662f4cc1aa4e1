"""POST /v2/models/<graph>/infer: tensors as they are, or pictures prepared as everywhere else."""

import time
from collections.abc import Mapping
from itertools import islice

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contract.manifest import GraphSpec
from contract.picture import EncodedPicture
from service import errors
from service.batching import Row
from service.call import PROTOCOL_ENDPOINT, Call
from service.engine import Array
from service.errors import InvalidParameter, Problem
from service.inference import INLINE_BODY_BYTES, Inference, all_good
from service.routes.direct import (
    BINARY,
    DirectRoute,
    protocol_responses,
    query_parameters,
    schema_reference,
    timeout_parameter,
)
from service.routes.v2_models import NOT_FOUND, find_graph, of_model, path_parameters
from service.schemas import EXAMPLE_PNG
from service.tensors import (
    JSON_LENGTH_HEADER,
    InferAnswer,
    InferRequest,
    Tensors,
    json_size,
    read_infer,
    write_answer,
)

_PROBLEMS = (
    *NOT_FOUND,
    errors.EmptyBody,
    errors.InvalidJson,
    errors.InvalidTensor,
    errors.InvalidBase64,
    errors.EmptyImage,
    errors.NotAnImage,
    errors.CorruptImage,
    errors.BodyTimeout,
    errors.BodyTooLarge,
    errors.TooManyPixels,
    errors.TooManyImages,
    errors.UnsupportedMediaType,
    errors.UnsupportedImage,
    errors.UnknownParameter,
    errors.InvalidParameter,
    errors.ImageTooSmall,
    errors.ImageTooNarrow,
    errors.NoContent,
    errors.InvalidHeader,
    errors.QueueFull,
    errors.DeadlineExceeded,
)
_PIXELS_A_NUMBER = 2  # decoded in the time that a number takes to be written as JSON
_NUMBERS_AS_BINARY = 8  # numbers that are written as binary data in that time
NAME = "picture {}".format
_EXAMPLE = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [EXAMPLE_PNG]}]}
_PARAMETERS = [
    {
        "name": JSON_LENGTH_HEADER,
        "in": "header",
        "required": False,
        "description": "Bytes of JSON before binary tensor data; 0: the body is one raw FP32 tensor.",
        "schema": {"type": "integer", "minimum": 0},
    },
    timeout_parameter(),
    *(parameter for parameter in query_parameters() if parameter["name"] not in ("model", "version")),
]


def _read(inference: Inference, call: Call, body: bytes, json_bytes: int, graph: GraphSpec) -> Tensors:
    asked = read_infer(body, json_bytes, graph, inference.max_images)
    if asked.timeout_seconds is not None:
        call.deadline.shorten(asked.timeout_seconds)
    return asked


def _accept(inference: Inference, call: Call, asked: Tensors) -> list[EncodedPicture | Problem]:
    """See `Inference.accept` and `Tensors.take_files`."""
    return inference.accept(asked.take_files(), call.deadline)


def _read_and_accept(
    inference: Inference, call: Call, body: bytes, json_bytes: int, graph: GraphSpec
) -> tuple[Tensors, list[EncodedPicture | Problem]]:
    asked = _read(inference, call, body, json_bytes, graph)
    return asked, _accept(inference, call, asked)


def _work(asked: Tensors, outputs: Mapping[str, Array]) -> int:
    """Pixels that are decoded in the time that the answer takes to be written."""
    return sum(
        _PIXELS_A_NUMBER * outputs[name].size // (_NUMBERS_AS_BINARY if binary else 1) for name, binary in asked.outputs
    )


def add(router: APIRouter, inference: Inference) -> None:
    async def infer(request: Request) -> Response:
        call, options, body = await inference.begin(request, PROTOCOL_ENDPOINT)
        start = time.perf_counter()
        if options.model is not None or options.version is not None:
            raise InvalidParameter("model and version stand in the path here")
        name = request.path_params["model"]
        model, capability = find_graph(inference.store, name, request.path_params.get("version"))
        inference.hold(call, model, capability)
        graph = model.batchers[capability].engine.spec
        size, json_bytes = len(body), json_size(call.headers, body)
        if json_bytes > INLINE_BODY_BYTES:
            asked, encoded = await inference.pooled(call, _read_and_accept, inference, call, body, json_bytes, graph)
        else:
            asked = _read(inference, call, body, json_bytes, graph)
            if size > INLINE_BODY_BYTES and asked.has_files:
                encoded = await inference.pooled(call, _accept, inference, call, asked)
            else:
                encoded = _accept(inference, call, asked)
        del body
        arrays = sum(given.nbytes for given in asked.inputs if not isinstance(given, list))
        with inference.permit(all_good(encoded, NAME), size, rows=asked.rows, size=arrays):
            prepared = iter(all_good(await inference.prepare(call, encoded, model, options), NAME) if encoded else ())
            columns = [
                [picture.image for picture in islice(prepared, asked.rows)] if isinstance(given, list) else given
                for given in asked.inputs
            ]
            rows: list[Row] = list(zip(*columns, strict=True))
            inference.record(call, "decode", time.perf_counter() - start)
            outputs = await inference.run(request, model, capability, rows)
            start = time.perf_counter()
            arguments = asked, name, model.version, outputs
            answer, json_length = await inference.placed(call, _work(asked, outputs), 1, write_answer, *arguments)
            inference.record(call, "encode", time.perf_counter() - start)
        if json_length is None:
            return Response(answer, media_type="application/json")
        headers = {JSON_LENGTH_HEADER: str(json_length)}
        return Response(answer, media_type="application/octet-stream", headers=headers)

    for path in of_model("/infer"):
        router.add_api_route(
            path,
            infer,
            methods=["POST"],
            name=f"v2_infer{'_version' if '{version}' in path else ''}",
            summary="Inference protocol: run a graph",
            response_model=InferAnswer,
            response_description=f"JSON, or JSON of {JSON_LENGTH_HEADER} bytes with the binary tensor data behind it.",
            responses={200: {"content": {"application/octet-stream": BINARY}}, **protocol_responses(*_PROBLEMS)},
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": schema_reference(InferRequest), "example": _EXAMPLE},
                        "application/octet-stream": BINARY,
                    },
                },
                "parameters": [*path_parameters(path), *_PARAMETERS],
            },
            route_class_override=DirectRoute,
        )
