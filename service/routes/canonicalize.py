"""POST /canonicalize: the content of a picture upright, and the picture itself upright at its own resolution."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contract.geometry import Canvas
from contract.picture import EncodedPicture, Original
from service import errors, upright
from service.batching import Row
from service.catalogue import LoadedModel
from service.engine import Array
from service.errors import Problem
from service.images import PICTURE_TYPES, ModelInput, decoding_cost
from service.inference import Inference, JsonAnswer, head, picture_answer, raise_of_single, to_base64, to_json
from service.negotiation import choose
from service.payloads import Payload
from service.queries import UprightOptions
from service.routes import transform
from service.routes.direct import (
    BINARY,
    DirectRoute,
    pictures_body,
    problem_responses,
    query_parameters,
    timeout_parameter,
    upright_parameters,
)
from service.routes.pictures import PICTURE_ROUTE_PROBLEMS
from service.schemas import Batch, CanonicalizeAnswer

_JSON = "application/json"


class _Job(NamedTuple):
    """A picture whose transform is known and whose canvas is within the limits. canonical: [C,H,W]"""

    item: ModelInput
    original: Original
    transform: dict[str, Any]
    canonical: Array
    canvas: Canvas


def _plan_all(
    model: LoadedModel,
    inputs: Sequence[ModelInput | Problem],
    outputs: dict[str, Array],
    options: UprightOptions,
    most_pixels: int,
) -> list[_Job | Problem]:
    jobs: list[_Job | Problem] = []
    row = 0
    for item in inputs:
        if isinstance(item, Problem):
            jobs.append(item)
            continue
        try:
            found = transform.render(model, item, outputs, row)
            given = len(found["modes"])
            if options.mode >= given:
                raise errors.NoSuchMode(
                    f"mode is {options.mode}, counted from 0: this picture has {_modes(given)}", modes=given
                )
            assert item.original is not None  # it was asked for
            matrix = found["modes"][options.mode]["matrix"]
            canvas = upright.plan(item.original, item.frame, matrix, options, most_pixels)
            jobs.append(_Job(item, item.original, found, outputs["canonical"][row], canvas))
        except Problem as problem:
            jobs.append(problem.without_traceback())
        row += 1
    return jobs


def _make(
    model: LoadedModel, job: _Job, options: UprightOptions, media_type: str, fallback_type: str | None
) -> tuple[upright.Upright, dict[str, Any]]:
    """The upright picture, and the answer with it as schemas.CanonicalizeAnswer; empty where the picture is it.

    fallback_type: of the answer where `media_type` is a picture's and cannot hold this one: image/png, JSON or None.
    """
    wanted = upright.own_type(job.item.description["format"]) if media_type == _JSON else media_type
    made = upright.make(job.original, job.canvas, options, wanted, strict=fallback_type is None)
    if media_type != _JSON and (made.media_type == media_type or fallback_type != _JSON):
        return made, {}
    start = time.perf_counter()
    document = head(model, job.item) | {
        "transform": job.transform,
        "canonical": picture_answer(job.canonical),
        "upright": {
            "media_type": made.media_type,
            "width": job.canvas.width,
            "height": job.canvas.height,
            "data": to_base64(made.data),
            "matrix": job.canvas.matrix,
        },
    }
    return made._replace(encode_seconds=made.encode_seconds + time.perf_counter() - start), document


def _offered(payload: Payload, first: EncodedPicture | Problem) -> tuple[str, ...]:
    """JSON, and for a single picture the picture itself, best in the type that it was sent in."""
    if not payload.single or isinstance(first, Problem):
        return (_JSON,)
    own = upright.own_type(first.format)
    return (_JSON, own, *(kind for kind in PICTURE_TYPES if kind != own))


def _check_mode(model: LoadedModel, mode: int) -> None:
    """
    Raises:
        InvalidParameter: the model has no such mode.
    """
    graph = model.batchers["canonicalize"].engine.spec
    modes = next(spec.row_shape[0] for spec in graph.outputs if spec.name == "modes")
    if mode >= modes:
        raise errors.InvalidParameter(
            f"mode is {mode}, counted from 0: {model.name} gives {_modes(modes)}", parameter="mode"
        )


def _modes(count: int) -> str:
    return "one mode" if count == 1 else f"{count} modes"


def _fallback_type(accept: bytes) -> str | None:
    """The accepted type that can hold every picture, if there is one."""
    try:
        return choose(accept, ("image/png", _JSON))
    except errors.NotAcceptable:
        return None


def add(router: APIRouter, inference: Inference) -> None:
    async def canonicalize(request: Request) -> Response:
        call, options, body = await inference.begin(request, "canonicalize")
        start = time.perf_counter()
        model = inference.select(call, "canonicalize", options.model, options.version)
        _check_mode(model, options.upright.mode)
        size = len(body)
        payload, encoded = await inference.receive(call, body)
        del body
        accept = call.headers.get(b"accept", b"")
        media_type = choose(accept, _offered(payload, encoded[0]))
        fallback_type = _fallback_type(accept)
        kept = upright.kept_bytes(encoded)
        with inference.permit(encoded, size, size=kept) as permit:
            inputs = await inference.prepare(call, encoded, model, options, keep_original=True)
            raise_of_single(payload, inputs)
            inference.record(call, "decode", time.perf_counter() - start)
            rows: list[Row] = [(item.image,) for item in inputs if not isinstance(item, Problem)]
            outputs = await inference.run(request, model, "canonicalize", rows) if rows else {}
            start = time.perf_counter()
            most = inference.limits.pixels
            jobs = await inference.placed(call, 0, len(rows), _plan_all, model, inputs, outputs, options.upright, most)
            raise_of_single(payload, jobs)
            good = [job for job in jobs if not isinstance(job, Problem)]
            warping, encoding = time.perf_counter() - start, 0.0
            results: list[dict[str, Any]] = []
            drawing = upright.drawing_bytes([(job.original, job.canvas) for job in good], options.upright)
            permit.grow(max(0, drawing - decoding_cost(encoded)[1] - kept))  # decoding is over
            for job in jobs:
                if isinstance(job, Problem):
                    results.append(inference.in_place(call, job))
                    continue
                pixels = job.canvas.width * job.canvas.height
                made, document = await inference.placed(
                    call, pixels, len(jobs), _make, model, job, options.upright, media_type, fallback_type
                )
                warping, encoding = warping + made.warp_seconds, encoding + made.encode_seconds
                if not document:  # of a single picture
                    inference.record(call, "warp", warping)
                    inference.record(call, "encode", encoding)
                    return _picture(made, transform.of_mode(job.transform, options.upright.mode))
                results.append(document)
            inference.record(call, "warp", warping)
            start = time.perf_counter()
            answer = results[0] if payload.single else {"results": results}
            pixels = sum(job.canvas.width * job.canvas.height for job in good)
            content = await inference.placed(call, pixels, len(jobs), to_json, answer)
            inference.record(call, "encode", encoding + time.perf_counter() - start)
        return JsonAnswer(content, (b"vary", b"Accept"))

    router.add_api_route(
        "/canonicalize",
        canonicalize,
        methods=["POST"],
        name="canonicalize",
        summary="Bring pictures upright",
        response_model=CanonicalizeAnswer | Batch[CanonicalizeAnswer],
        response_description="One object for a single picture, or the upright picture alone by `Accept`, with the "
        "transform that was undone as JSON in `X-Transform` (its `uncertainty` is the best mode's) and the matrix of "
        "its pixels in `X-Upright-Matrix`; `results` for JSON and for form parts `images`.",
        responses={
            200: {"content": dict.fromkeys(PICTURE_TYPES, BINARY)},
            **problem_responses(*PICTURE_ROUTE_PROBLEMS, errors.NotAcceptable, errors.NoSuchMode),
        },
        openapi_extra={
            "requestBody": pictures_body(),
            "parameters": [*query_parameters(), *upright_parameters(), timeout_parameter()],
        },
        route_class_override=DirectRoute,
    )


def _picture(made: upright.Upright, undone: dict[str, Any]) -> Response:
    headers = {
        "Vary": "Accept",
        "X-Transform": to_json(undone).decode(),
        "X-Upright-Matrix": to_json(made.canvas.matrix).decode(),
    }
    return Response(made.data, media_type=made.media_type, headers=headers)
