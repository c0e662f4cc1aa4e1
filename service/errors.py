"""Every way a request can fail, as one table of types, and their RFC 9457 `application/problem+json` form.

An error is raised where the fact is known and becomes an HTTP answer in one place, `answer_to`. A type's slug,
title and status never change; what happened this time stands in `detail`, machine-readable facts in extension members.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import orjson

PROBLEM_MEDIA_TYPE = "application/problem+json"
PROTOCOL_PATH = "/v2"
_IN_JSON = {"model_type": "object", "dict_type": "object", "list_type": "array", "string_type": "string"}
TYPE_PREFIX = "urn:equipoise:problem:"


class Problem(Exception):
    """Base of the table; `extensions` become members of the document beside the standard ones."""

    slug: ClassVar[str]
    title: ClassVar[str]
    status: ClassVar[int]

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = headers or {}
        self.extensions = extensions

    def without_traceback(self) -> Self:
        """Drop the traceback, so that this can be kept in a list of results. Its frames refer to that list: a cycle
        that would keep every picture in memory until the garbage collector runs.
        """
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    def document(self, request_id: str | None = None) -> dict[str, Any]:
        """The members of RFC 9457, section 3.1, then the extensions."""
        members = {
            "type": TYPE_PREFIX + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if request_id is not None:
            members["instance"] = f"urn:request:{request_id}"
        return members | self.extensions


# The head: answered by the server itself, before there is a request


class MalformedRequest(Problem):
    slug, title, status = "malformed-request", "The bytes are no HTTP request", 400


class HeadTooLarge(Problem):
    slug, title, status = "head-too-large", "The head of the request is larger than the limit", 431


class HeadTimeout(Problem):
    slug, title, status = "head-timeout", "The head of the request did not arrive in time", 408


# The body and its framing


class EmptyBody(Problem):
    slug, title, status = "empty-body", "The request has no body", 400


class UnsupportedMediaType(Problem):
    slug, title, status = "unsupported-media-type", "This content type is not accepted here", 415


class BodyTooLarge(Problem):
    slug, title, status = "body-too-large", "The body is larger than the limit", 413


class BodyTimeout(Problem):
    slug, title, status = "body-timeout", "The body did not arrive in time", 408


class InvalidJson(Problem):
    slug, title, status = "invalid-json", "The body is not JSON", 400


class JsonTooDeep(Problem):
    slug, title, status = "json-too-deep", "The JSON is nested too deeply", 400


class NonFiniteNumber(Problem):
    slug, title, status = "non-finite-number", "JSON has no NaN and no Infinity", 400


class InvalidMultipart(Problem):
    slug, title, status = "invalid-multipart", "The body is not well-formed multipart/form-data", 400


# What the request says


class InvalidRequest(Problem):
    slug, title, status = "invalid-request", "The request does not have the documented shape", 422


class UnknownField(Problem):
    slug, title, status = "unknown-field", "The JSON has a field that is not known here", 422


class InvalidTensor(Problem):
    """Under /v2: a tensor that the graph does not take, or a message that the inference protocol does not have."""

    slug, title, status = "invalid-tensor", "The inference request does not fit the graph", 400


class UnexpectedPart(Problem):
    slug, title, status = "unexpected-part", "The form has a part that is not expected here", 422


class MissingPart(Problem):
    slug, title, status = "missing-part", "A picture that this endpoint needs is missing", 422


class UnknownParameter(Problem):
    slug, title, status = "unknown-parameter", "The query has a parameter that is not known here", 422


class InvalidParameter(Problem):
    slug, title, status = "invalid-parameter", "A query parameter has a value that is not allowed", 422


class InvalidHeader(Problem):
    slug, title, status = "invalid-header", "A request header has a value that is not allowed", 400


class TooManyImages(Problem):
    slug, title, status = "too-many-images", "The request has more pictures than the limit", 413


class NotAcceptable(Problem):
    slug, title, status = "not-acceptable", "None of the accepted media types can be produced", 406


# A picture: these stand for one picture of a batch as well, as {"problem": {...}} in its place


class InvalidBase64(Problem):
    slug, title, status = "invalid-base64", "The picture's data is not base64", 400


class EmptyImage(Problem):
    slug, title, status = "empty-image", "The picture has no bytes", 400


class UnsupportedImage(Problem):
    """A picture in a format that is not read here (HEIC, AVIF, SVG, PDF ...); `detail` carries the way out."""

    slug, title, status = "unsupported-image", "This picture format is not supported", 415


class NotAnImage(Problem):
    slug, title, status = "not-an-image", "The bytes are no picture of a known format", 400


class CorruptImage(Problem):
    slug, title, status = "corrupt-image", "The picture is truncated or damaged", 400


class TooManyPixels(Problem):
    slug, title, status = "too-many-pixels", "The picture has more pixels than the limit", 413


class ImageTooSmall(Problem):
    slug, title, status = "image-too-small", "The picture's smaller side is below the limit", 422


class ImageTooNarrow(Problem):
    slug, title, status = "image-too-narrow", "The picture's longer side is too many times the shorter", 422


class NoContent(Problem):
    """Content was asked for (`?fit=content`) and the picture shows none."""

    slug, title, status = "no-content", "No content was found in the picture", 422


class NoSuchMode(Problem):
    """`?mode=` names one that the model can give, and did not give of this picture."""

    slug, title, status = "no-such-mode", "The picture has no such mode", 422


# Who asks


class Unauthorized(Problem):
    slug, title, status = "unauthorized", "A key is needed", 401


class Forbidden(Problem):
    slug, title, status = "forbidden", "The key does not allow this", 403


# What is asked for


class NotFound(Problem):
    slug, title, status = "not-found", "There is nothing at this path", 404


class MethodNotAllowed(Problem):
    slug, title, status = "method-not-allowed", "This path does not take this method", 405


class ModelNotFound(Problem):
    slug, title, status = "model-not-found", "This model is not loaded", 404


class VersionNotFound(Problem):
    slug, title, status = "version-not-found", "This version of the model is not loaded", 404


class CapabilityNotFound(Problem):
    slug, title, status = "capability-not-found", "The model does not have this capability", 404


class ModelRefused(Problem):
    slug, title, status = "model-refused", "The model folder is bad and is not served", 422


# The state of the service


class QueueFull(Problem):
    slug, title, status = "queue-full", "The service has as much work as it accepts", 429


class NotReady(Problem):
    slug, title, status = "not-ready", "The service is not ready", 503


class NotAlive(Problem):
    slug, title, status = "not-alive", "The service makes no progress any more and has to be started anew", 503


class DeadlineExceeded(Problem):
    slug, title, status = "deadline-exceeded", "The answer cannot be ready by the deadline", 504


class TooManyConnections(Problem):
    slug, title, status = "too-many-connections", "The service has as many connections as it accepts", 503


class InternalError(Problem):
    slug, title, status = "internal-error", "The service failed to answer", 500


def problem_types() -> list[type[Problem]]:
    """The whole table, in the order of this file."""
    return Problem.__subclasses__()


def in_json(fault: Mapping[str, Any]) -> str:
    """What is wrong with a value, of pydantic's errors, in JSON's words."""
    wanted = _IN_JSON.get(fault["type"])
    return f"Input should be a JSON {wanted}" if wanted else str(fault["msg"])


class Answer(NamedTuple):
    """headers: with names in lower case; the body's length and what every answer carries are left to who sends it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def answer_to(problem: Problem, path: str, request_id: str) -> Answer:
    """The answer to who asks for `path`; below /v2 its body has the inference protocol's own shape."""
    if path == PROTOCOL_PATH or path.startswith(PROTOCOL_PATH + "/"):
        body, media_type = orjson.dumps({"error": problem.detail}), "application/json"
    else:
        body, media_type = orjson.dumps(problem.document(request_id)), PROBLEM_MEDIA_TYPE
    headers = {"Content-Type": media_type} | problem.headers
    return Answer(problem.status, [(name.lower().encode(), text.encode()) for name, text in headers.items()], body)
