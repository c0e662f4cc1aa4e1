"""Shared by the routes that judge pictures one by one: how they are added to the app and described."""

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service import errors
from service.inference import Inference, Render
from service.routes.direct import DirectRoute, pictures_body, problem_responses, query_parameters, timeout_parameter

PICTURE_ROUTE_PROBLEMS = (
    errors.EmptyBody,
    errors.InvalidHeader,
    errors.InvalidJson,
    errors.JsonTooDeep,
    errors.NonFiniteNumber,
    errors.InvalidMultipart,
    errors.InvalidBase64,
    errors.EmptyImage,
    errors.NotAnImage,
    errors.CorruptImage,
    errors.ModelNotFound,
    errors.VersionNotFound,
    errors.CapabilityNotFound,
    errors.BodyTimeout,
    errors.BodyTooLarge,
    errors.TooManyPixels,
    errors.TooManyImages,
    errors.UnsupportedMediaType,
    errors.UnsupportedImage,
    errors.InvalidRequest,
    errors.UnknownField,
    errors.UnexpectedPart,
    errors.MissingPart,
    errors.UnknownParameter,
    errors.InvalidParameter,
    errors.ImageTooSmall,
    errors.ImageTooNarrow,
    errors.NoContent,
    errors.QueueFull,
    errors.InternalError,
    errors.NotReady,
    errors.DeadlineExceeded,
)


def add_picture_route(
    router: APIRouter,
    inference: Inference,
    capability: str,
    render: Render,
    *,
    one: type[BaseModel],
    batch: type[BaseModel],
    summary: str,
) -> None:
    """Add `POST /<capability>`; `one` is the answer for one picture, `batch` for several."""

    async def endpoint(request: Request) -> Response:
        return await inference.answer_pictures(request, capability, render)

    router.add_api_route(
        f"/{capability}",
        endpoint,
        methods=["POST"],
        name=capability,
        summary=summary,
        response_model=one | batch,
        response_description="One object for a single picture; `results` for JSON and for form parts `images`.",
        responses=problem_responses(*PICTURE_ROUTE_PROBLEMS),
        openapi_extra={"requestBody": pictures_body(), "parameters": [*query_parameters(), timeout_parameter()]},
        route_class_override=DirectRoute,
    )
