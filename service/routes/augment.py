"""POST /augment: plausible variants of a picture, at its own resolution."""

import secrets
import time
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contract.geometry import Canvas
from contract.picture import Original
from service import upright
from service.batching import Row
from service.catalogue import LoadedModel
from service.deadlines import Deadline
from service.engine import Array
from service.errors import Problem, TooManyPixels
from service.images import ModelInput, decoding_cost
from service.inference import Inference, JsonAnswer, head, raise_of_single, to_base64, to_json
from service.queries import Options, UprightOptions
from service.routes.direct import (
    DirectRoute,
    augment_parameters,
    pictures_body,
    problem_responses,
    query_parameters,
    timeout_parameter,
)
from service.routes.pictures import PICTURE_ROUTE_PROBLEMS
from service.schemas import AugmentAnswer, Batch

_NONE: Array = np.zeros((0, 0, 2, 3), np.float32)
_LIKE_A_PICTURE = 8  # variants that are planned in the time that a small picture takes
_SEEDS = 2**31  # those that are drawn where a request names none: exact in the JSON of every client


class _Job(NamedTuple):
    """A picture whose variants are known."""

    item: ModelInput
    original: Original
    canvases: list[Canvas]


def _noise(
    model: LoadedModel, inputs: Sequence[ModelInput | Problem], n: int, seed: int, most_pixels: int
) -> list[list[Row] | Problem]:
    """The graph's rows for n variants of each picture; what they draw beyond n is left out later.

    The noise depends on the seed and the picture alone, so that a picture's variants do not on its neighbours.
    """
    _, spec = model.batchers["augment"].engine.spec.inputs
    samples, dimensions = spec.row_shape
    rows: list[list[Row] | Problem] = []
    for item in inputs:
        if isinstance(item, Problem):
            rows.append(item)
            continue
        width, height = item.description["width"], item.description["height"]
        pixels = n * width * height
        profiles = n * len((item.original and item.original.icc_profile) or b"")  # each variant's is compressed anew
        if pixels + profiles > most_pixels:
            rows.append(
                TooManyPixels(
                    f"{n} variants of {width} x {height} would be {pixels:,} pixels and {profiles:,} bytes of colour "
                    f"profiles, the limit is {most_pixels:,}: ask for fewer, or send a smaller picture"
                )
            )
            continue
        source = np.random.default_rng((seed, zlib.crc32(item.image.tobytes())))
        noise = source.standard_normal((-(-n // samples), samples, dimensions), np.float32)
        rows.append([(item.image, part) for part in noise])
    return rows


def _plan(
    inputs: Sequence[ModelInput | Problem],
    rows: Sequence[list[Row] | Problem],
    matrices: Array,
    n: int,
    options: UprightOptions,
    deadline: Deadline,
) -> tuple[list[_Job | Problem], int]:
    """The drawings of each picture, and the bytes that all of them take. matrices [R,S,2,3] of all rows, one after the
    other.
    """
    jobs: list[_Job | Problem] = []
    first = 0
    for item, own in zip(inputs, rows, strict=True):
        if isinstance(item, Problem) or isinstance(own, Problem):
            jobs.append(own if isinstance(own, Problem) else item)  # type: ignore[arg-type]
            continue
        deadline.check()
        assert item.original is not None  # it was asked for
        found = matrices[first : first + len(own)].reshape(-1, 2, 3)[:n]
        first += len(own)
        try:
            canvases = [upright.variant(item.original, item.frame, matrix) for matrix in found]
            jobs.append(_Job(item, item.original, canvases))
        except Problem as problem:
            jobs.append(problem.without_traceback())
    good = [job for job in jobs if isinstance(job, _Job)]
    return jobs, upright.drawing_bytes([(job.original, canvas) for job in good for canvas in job.canvases], options)


def _draw(model: LoadedModel, job: _Job, options: Options, seed: int) -> tuple[dict[str, Any], float, float]:
    """The answer as schemas.AugmentAnswer; how long warping and encoding took."""
    wanted = upright.own_type(job.item.description["format"])
    made = [upright.make(job.original, canvas, options.upright, wanted, strict=False) for canvas in job.canvases]
    start = time.perf_counter()
    document = head(model, job.item) | {
        "seed": seed,
        "variants": [
            {
                "media_type": picture.media_type,
                "width": picture.canvas.width,
                "height": picture.canvas.height,
                "data": to_base64(picture.data),
                "matrix": picture.canvas.matrix,
            }
            for picture in made
        ],
    }
    warping = sum(picture.warp_seconds for picture in made)
    return document, warping, sum(picture.encode_seconds for picture in made) + time.perf_counter() - start


def add(router: APIRouter, inference: Inference) -> None:
    async def augment(request: Request) -> Response:
        call, options, body = await inference.begin(request, "augment")
        start = time.perf_counter()
        model = inference.select(call, "augment", options.model, options.version)
        n, seed = options.augment.n, options.augment.seed
        seed = secrets.randbelow(_SEEDS) if seed is None else seed
        size = len(body)
        payload, encoded = await inference.receive(call, body)
        del body
        kept = upright.kept_bytes(encoded)
        with inference.permit(encoded, size, size=kept) as permit:
            inputs = await inference.prepare(call, encoded, model, options, keep_original=True)
            many = n * len(inputs) // _LIKE_A_PICTURE
            own = await inference.placed(call, 0, many, _noise, model, inputs, n, seed, inference.limits.pixels)
            raise_of_single(payload, own)
            inference.record(call, "decode", time.perf_counter() - start)
            rows = [row for part in own if not isinstance(part, Problem) for row in part]
            outputs = await inference.run(request, model, "augment", rows) if rows else {}
            planned = inputs, own, outputs.get("matrices", _NONE), n, options.upright, call.deadline
            jobs, drawn = await inference.placed(call, 0, many, _plan, *planned)
            raise_of_single(payload, jobs)
            results: list[dict[str, Any]] = []
            warping = encoding = 0.0
            pixels_of_all = 0
            permit.grow(max(0, drawn - decoding_cost(encoded)[1] - kept))  # decoding is over
            for job in jobs:
                if isinstance(job, Problem):
                    results.append(inference.in_place(call, job))
                    continue
                pixels = sum(canvas.width * canvas.height for canvas in job.canvases)
                pixels_of_all += pixels
                arguments = model, job, options, seed
                document, warp, encode = await inference.placed(call, pixels, len(jobs), _draw, *arguments)
                warping, encoding = warping + warp, encoding + encode
                results.append(document)
            inference.record(call, "warp", warping)
            start = time.perf_counter()
            answer = results[0] if payload.single else {"results": results}
            content = await inference.placed(call, pixels_of_all, len(jobs), to_json, answer)
            inference.record(call, "encode", encoding + time.perf_counter() - start)
        return JsonAnswer(content)

    router.add_api_route(
        "/augment",
        augment,
        methods=["POST"],
        name="augment",
        summary="Draw plausible variants of pictures",
        response_model=AugmentAnswer | Batch[AugmentAnswer],
        response_description="One object for a single picture; `results` for JSON and for form parts `images`.",
        responses=problem_responses(*PICTURE_ROUTE_PROBLEMS),
        openapi_extra={
            "requestBody": pictures_body(),
            "parameters": [*query_parameters(), *augment_parameters(), timeout_parameter()],
        },
        route_class_override=DirectRoute,
    )
