"""Request body -> the encoded pictures in it: a raw body, multipart/form-data, or JSON with base64.

Framing only: no picture is looked into here, and a picture that is not base64 stays a problem of its own place.
"""

import binascii
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import (
    EmptyBody,
    InvalidBase64,
    InvalidJson,
    InvalidMultipart,
    InvalidRequest,
    JsonTooDeep,
    MissingPart,
    NonFiniteNumber,
    Problem,
    TooManyImages,
    UnexpectedPart,
    UnknownField,
    UnsupportedMediaType,
    in_json,
)
from service.schemas import ImagesRequest, RecombineRequest

PAIR = ("content", "style")  # the pictures of /recombine
_RAW_TYPES = (b"", b"application/octet-stream")
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii")
_NON_FINITE = ("NaN", "Infinity")
_MOST_ERRORS = 16
_SMALL_JSON = 1024 * 1024
_MOST_VALUES = 250_000
_MOST_FIELDS = 8  # of an object; those known here have one or two

Encoded = bytes | Problem
"""One picture as it was sent, or what is wrong with its framing."""

Model = TypeVar("Model", bound=BaseModel)


class Payload(NamedTuple):
    """The pictures of a request, in order; `single`: the answer is one object and not a list."""

    pictures: list[Encoded]
    single: bool


def read_pictures(content_type: bytes, body: bytes, max_images: int) -> Payload:
    """The pictures of a body for an endpoint that judges each picture by itself.

    Raises:
        Problem: the framing is wrong; see the table.
    """
    kind = _essence(content_type)
    if not body:
        raise EmptyBody("send a picture as the body, as a form part, or as JSON")
    if kind.startswith(b"image/") or kind in _RAW_TYPES:
        return Payload([body], single=True)
    if kind == b"application/json":
        document = _parse_json(content_type, body, max_images)
        _check_count(document, max_images)
        request = _validate(ImagesRequest, document)
        return Payload([_from_base64(image.data) for image in request.images], single=False)
    if kind == b"multipart/form-data":
        parts = _read_parts(content_type, body, max_images)
        names = {name for name, _ in parts}
        if names == {"image"} and len(parts) == 1:
            return Payload([parts[0][1]], single=True)
        if names == {"images"}:
            return Payload([data for _, data in parts], single=False)
        if not names:
            raise MissingPart("send one part `image` or several parts `images`")
        raise UnexpectedPart(
            f"the form has {_listed(name for name, _ in parts)}; send one part `image` or several parts `images`"
        )
    raise _unsupported(content_type, "image/*, multipart/form-data or application/json")


def read_content_and_style(content_type: bytes, body: bytes) -> Payload:
    """The two pictures of a body for recombination, in the order of `PAIR`.

    Raises:
        Problem: the framing is wrong; see the table.
    """
    kind = _essence(content_type)
    if not body:
        raise EmptyBody("send the parts `content` and `style`, as a form or as JSON")
    if kind == b"application/json":
        document = _parse_json(content_type, body, 2)
        if isinstance(document, dict):
            _check_both(set(document))
        request = _validate(RecombineRequest, document)
        return Payload([_from_base64(request.content.data), _from_base64(request.style.data)], single=False)
    if kind == b"multipart/form-data":
        by_name = dict(_read_parts(content_type, body, 2, PAIR))
        _check_both(set(by_name))
        return Payload([by_name[name] for name in PAIR], single=False)
    raise _unsupported(content_type, "multipart/form-data or application/json")


def _check_both(names: set[str]) -> None:
    for needed in PAIR:
        if needed not in names:
            raise MissingPart(f"the picture `{needed}` is missing: recombining takes `content` and `style`")


def _essence(content_type: bytes) -> bytes:
    return content_type.split(b";", 1)[0].strip().lower()


def _unsupported(content_type: bytes, accepted: str) -> UnsupportedMediaType:
    sent = content_type.decode("latin-1")[:100]
    hint = ""
    if sent.startswith("application/x-www-form-urlencoded"):
        hint = " (curl sends this type by itself: add -H 'Content-Type: image/png')"
    return UnsupportedMediaType(f"the body is declared as {sent!r}{hint}; send {accepted}")


def _listed(names: Any) -> str:
    return ", ".join(f"`{str(name)[:40]}`" for name in list(names)[:8])


def _parse_json(content_type: bytes, body: bytes, max_images: int) -> Any:
    if len(body) > _SMALL_JSON:
        # Every value takes tens of bytes once it is parsed, and its text as few as two: they are counted beforehand.
        values = body.count(b",") + body.count(b"[") + body.count(b"{")
        if values > _MOST_VALUES + 8 * max_images:
            raise InvalidJson("it has far more values than pictures could need")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # RFC 8259 knows no charset, and what is declared as Latin-1 may be ASCII: it matters where it cannot be read.
        charset = parse_options_header(content_type)[1].get(b"charset", _CHARSETS[0])
        unreadable = b"\0" in body or "not valid UTF-8" in error.msg  # UTF-16 of ASCII has zeros and is valid UTF-8
        if unreadable and charset.lower() not in _CHARSETS:
            raise UnsupportedMediaType(
                f"the JSON is declared as {charset.decode('latin-1')[:40]!r}; send it as UTF-8"
            ) from None
        if "not valid UTF-8" in error.msg:
            raise InvalidJson("the bytes are not UTF-8, in which JSON is sent") from None
        if "depth" in error.msg:
            raise JsonTooDeep("at most 1024 levels of nesting are read") from None
        if error.doc.startswith(_NON_FINITE, error.pos) or "infinity" in error.msg:
            raise NonFiniteNumber(f"at line {error.lineno}, column {error.colno}") from None
        raise InvalidJson(f"line {error.lineno}, column {error.colno}: {error.msg[:200]}") from None


def _check_count(document: Any, max_images: int) -> None:
    images = document.get("images") if isinstance(document, dict) else None
    if isinstance(images, list) and len(images) > max_images:
        raise _too_many(max_images)


def _too_many(max_images: int) -> TooManyImages:
    return TooManyImages(f"at most {max_images:,} pictures are accepted in one request", max_images=max_images)


def _objects(document: Any) -> Iterator[Any]:
    """What may be an object of a request: itself, what it has, the pictures."""
    yield document
    if isinstance(document, dict):
        for value in document.values():
            yield from value if isinstance(value, list) else [value]


def _validate(model: type[Model], document: Any) -> Model:
    for item in _objects(document):  # pydantic tells of each unknown field, 20 us for one, with all else at a stand
        if isinstance(item, dict) and len(item) > _MOST_FIELDS:
            raise UnknownField(f"an object has {len(item):,} fields, none known here has more than two")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_ERRORS]
    errors = [{"pointer": _pointer(item["loc"]), "detail": in_json(item)} for item in found]
    unknown = [_pointer(item["loc"]) for item in found if item["type"] == "extra_forbidden"]
    if unknown:
        raise UnknownField(f"not known here: {', '.join(unknown)}", errors=errors)
    told = (f"{item['pointer'] or 'the body'}: {item['detail']}" for item in errors)
    raise InvalidRequest("; ".join(told), errors=errors)


def _pointer(location: tuple[int | str, ...]) -> str:
    """A JSON pointer (RFC 6901); to the whole document it is empty."""
    return "".join("/" + str(part)[:100].replace("~", "~0").replace("/", "~1") for part in location)


def _from_base64(text: str) -> Encoded:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, or a character beyond ASCII
        return InvalidBase64(f"{error}; send plain base64 (RFC 4648, section 4) without line breaks or a data: prefix")


def _read_parts(content_type: bytes, body: bytes, max_parts: int, names: Sequence[str] = ()) -> list[tuple[str, bytes]]:
    """Name and bytes of each part, in order. names: the only ones, each once; a part is then refused by its name, and
    not by the number of parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidMultipart("the content type names no boundary")
    form = _Form(max_parts, names)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidMultipart(str(error)[:200]) from None
    if not form.complete:
        raise InvalidMultipart("the last boundary is missing: the body is cut short")
    return form.parts


class _Form:
    """Collects the parts of one form from the parser's callbacks."""

    def __init__(self, max_parts: int, names: Sequence[str]) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.complete = False
        self._max_parts = max_parts
        self._names = names
        self._headers: list[tuple[bytes, bytes]] = []
        self._field = self._value = b""
        self._name = ""
        self._data: list[memoryview] = []

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) >= self._max_parts and not self._names:
            raise _too_many(self._max_parts)
        self._headers, self._data, self._name = [], [], ""

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers.append((self._field.lower(), self._value))
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        disposition = dict(self._headers).get(b"content-disposition", b"")
        name = parse_options_header(disposition)[1].get(b"name")
        if name is None:
            raise InvalidMultipart("a part has no name in its Content-Disposition")
        self._name = name.decode("utf-8", "replace")
        before = [earlier for earlier, _ in self.parts]
        if self._names and (self._name not in self._names or self._name in before):
            wanted = " and ".join(f"one part `{name}`" for name in self._names)
            raise UnexpectedPart(f"the form has {_listed([*before, self._name])}; send {wanted}")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(memoryview(data)[start:end])

    def _end(self) -> None:
        self.parts.append((self._name, b"".join(self._data)))  # a copy: a body is let go of once it is read

    def _finish(self) -> None:
        self.complete = True
