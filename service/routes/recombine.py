"""POST /recombine: the content of one picture in the style of another."""

import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service import errors, images
from service.engine import Array
from service.inference import Inference, all_good, picture_answer, to_json
from service.negotiation import choose
from service.payloads import PAIR
from service.routes.direct import BINARY, DirectRoute, pair_body, problem_responses, query_parameters, timeout_parameter
from service.routes.pictures import PICTURE_ROUTE_PROBLEMS
from service.schemas import RecombineAnswer

_PIXELS_A_VALUE = 10  # decoded in the time that one value of a picture takes to encode, as lossless WebP


def _write(image: Array, media_type: str, document: dict[str, Any]) -> bytes:
    """The picture [C,H,W] as a file, or as JSON: the document with the picture in it."""
    if media_type != "application/json":
        return images.write_picture(image, media_type)
    return to_json(document | {"image": picture_answer(image)})


def add(router: APIRouter, inference: Inference) -> None:
    async def recombine(request: Request) -> Response:
        call, options, body = await inference.begin(request, "recombine")
        media_type = choose(call.headers.get(b"accept", b""), ("application/json", *images.PICTURE_TYPES))
        start = time.perf_counter()
        model = inference.select(call, "recombine", options.model, options.version)
        size = len(body)
        _, encoded = await inference.receive(call, body, pair=True)
        del body
        with inference.permit(encoded, size):
            content, style = all_good(await inference.prepare(call, encoded, model, options), PAIR.__getitem__)
            inference.record(call, "decode", time.perf_counter() - start)
            outputs = await inference.run(request, model, "recombine", [(content.image, style.image)])
            start = time.perf_counter()
            image = outputs["image"][0]
            document = {
                "model": model.name,
                "version": model.version,
                "input": {"content": content.description, "style": style.description},
            }
            pixels = _PIXELS_A_VALUE * image.size
            answer = await inference.placed(call, pixels, 1, _write, image, media_type, document)
            inference.record(call, "encode", time.perf_counter() - start)
        return Response(answer, media_type=media_type, headers={"Vary": "Accept"})

    router.add_api_route(
        "/recombine",
        recombine,
        methods=["POST"],
        name="recombine",
        summary="Show one picture's content in another's style",
        response_model=RecombineAnswer,
        response_description="JSON, or the picture alone by `Accept`.",
        responses={
            200: {"content": dict.fromkeys(images.PICTURE_TYPES, BINARY)},
            **problem_responses(*PICTURE_ROUTE_PROBLEMS, errors.NotAcceptable),
        },
        openapi_extra={"requestBody": pair_body(), "parameters": [*query_parameters(), timeout_parameter()]},
        route_class_override=DirectRoute,
    )
