"""The path of an inference request: body -> pictures -> permit -> model inputs -> batch -> answer.

Small work stays on the event loop, since a thread hop costs more than a small picture; large work (known from the
pictures' headers) goes to the pool.
"""

import asyncio
import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from contract.picture import EncodedPicture
from contract.picture_header import PictureLimits
from contract.preprocess import passes_unchanged
from service import images
from service.batching import Entry, Row
from service.body import FREE_BODY_BYTES, read_body
from service.budget import Budget, Permit
from service.call import CALL, Call
from service.catalogue import LoadedModel
from service.deadlines import Deadline, read_deadline
from service.engine import Array
from service.errors import Problem, UnsupportedMediaType
from service.images import ModelInput, decoding_cost
from service.model_store import ModelStore
from service.observability import Metrics
from service.payloads import Encoded, Payload, read_content_and_style, read_pictures
from service.pool import Pool
from service.queries import Options, read_options

_INLINE_PIXELS = 100_000  # about 5 ms, content search included
_INLINE_PICTURES = 4
_INLINE_FITTING = 32  # pictures that are the model's frames, in which no content is looked for: of 28 x 28 about 1 ms
_PIECE_PIXELS, _PIECE_PICTURES = 4_000_000, 32
INLINE_BODY_BYTES = 64 * 1024  # 256 small pictures: under 2 ms
_TURN = 32  # answers written before others have their turn of the event loop: about 0.3 ms
_JSON = (b"content-type", b"application/json")

Item = TypeVar("Item")
Result = TypeVar("Result")
Render = Callable[[LoadedModel, ModelInput, Mapping[str, Array], int], dict[str, Any]]
"""The fields of one picture's answer from a model's outputs by name, arrays [n, ...], and the row."""


class Inference:
    """What the inference routes share. It hangs on the app and is used from its event loop."""

    def __init__(
        self,
        store: ModelStore,
        budget: Budget,
        metrics: Metrics,
        pool: Pool,
        limits: PictureLimits,
        max_images: int,
        timeout_seconds: float,
    ) -> None:
        self.store = store
        self._budget = budget
        self._metrics = metrics
        self._pool = pool
        self.limits = limits
        self.max_images = max_images
        self._timeout_seconds = timeout_seconds

    async def answer_pictures(self, request: Request, capability: str, render: Render) -> Response:
        """Every picture of the request by itself: one object, or `results` in order with problems in their place."""
        call, options, body = await self.begin(request, capability)
        start = time.perf_counter()
        model = self.select(call, capability, options.model, options.version)
        size = len(body)
        payload, encoded = await self.receive(call, body)
        del body
        with self.permit(encoded, size):
            inputs = await self.prepare(call, encoded, model, options)
            raise_of_single(payload, inputs)
            self.record(call, "decode", time.perf_counter() - start)
            rows: list[Row] = [(item.image,) for item in inputs if not isinstance(item, Problem)]
            outputs = await self.run(request, model, capability, rows) if rows else {}
            start = time.perf_counter()
            content = await self._write(call, payload, model, inputs, outputs, render)
            self.record(call, "encode", time.perf_counter() - start)
        return JsonAnswer(content)

    async def begin(self, request: Request, endpoint: str) -> tuple[Call, Options, bytes]:
        """The request's facts, its options and its whole body.

        Raises:
            UnsupportedMediaType: the body is compressed.
            QueueFull: not even one picture is accepted now, so that nothing is spent on looking at it.
        """
        call: Call = request.scope[CALL]
        call.endpoint = endpoint
        call.deadline = read_deadline(call.headers, call.start, self._timeout_seconds)
        options = read_options(request.scope["query_string"], endpoint)
        body = await read_body(request.receive)
        if (encoding := call.headers.get(b"content-encoding")) is not None:
            _check_plain(encoding)
        self._budget.check(1)
        return call, options, body

    def select(self, call: Call, capability: str, name: str | None, version: int | None) -> LoadedModel:
        """The model that answers, see `ModelStore.select`, held by the request."""
        model = self.store.select(capability, name, version)
        self.hold(call, model, capability)
        return model

    def hold(self, call: Call, model: LoadedModel, capability: str) -> None:
        """From here until its answer is sent the request is answered by this version, whatever is loaded meanwhile.

        Raises:
            DeadlineExceeded: by what is waiting for this graph, it cannot be answered in time.
        """
        call.deadline.check(model.batchers[capability].wait_seconds)
        model.enter()
        call.model = model

    async def receive(
        self, call: Call, body: bytes, pair: bool = False
    ) -> tuple[Payload, list[EncodedPicture | Problem]]:
        """The pictures of a body, or the two of `payloads.PAIR`, their headers checked; the one of a single picture
        raises its problem. The caller lets go of the body then: what is read of it is not larger, and takes its place
        in the budget.
        """
        arguments = call.headers.get(b"content-type", b""), body, pair, call.deadline
        pooled = len(body) > INLINE_BODY_BYTES
        payload, encoded = await self.pooled(call, self._read, *arguments) if pooled else self._read(*arguments)
        raise_of_single(payload, encoded)
        return payload, encoded

    def _read(
        self, content_type: bytes, body: bytes, pair: bool, deadline: Deadline
    ) -> tuple[Payload, list[EncodedPicture | Problem]]:
        if pair:
            payload = read_content_and_style(content_type, body)
        else:
            payload = read_pictures(content_type, body, self.max_images)
        self._budget.check(len(payload.pictures))  # before their headers, which may take long
        return payload, self.accept(payload.pictures, deadline)

    async def prepare(
        self,
        call: Call,
        encoded: Sequence[EncodedPicture | Problem],
        model: LoadedModel,
        options: Options,
        keep_original: bool = False,
    ) -> list[ModelInput | Problem]:
        """Decoded and brought to the model's frame, in order; what was or became a problem stays in its place."""
        spec, preprocessing = model.manifest.input, model.manifest.preprocessing
        fits = True
        pixels = 0
        for picture in encoded:
            if not isinstance(picture, Problem):
                pixels += picture.width * picture.height
                fits = fits and passes_unchanged(picture.width, picture.height, spec, preprocessing, options.fit)
        arguments = model, options, keep_original, call.deadline
        if pixels <= _INLINE_PIXELS and len(encoded) <= (_INLINE_FITTING if fits else _INLINE_PICTURES):
            return _prepare_all(encoded, *arguments)
        prepared: list[ModelInput | Problem] = []
        for piece in _pieces(encoded):
            prepared += await self.pooled(call, _prepare_all, piece, *arguments)
        return prepared

    async def run(self, request: Request, model: LoadedModel, capability: str, rows: Sequence[Row]) -> dict[str, Array]:
        """Outputs by name for rows of inputs; the request's turn in the queue.

        Raises:
            CallerGone: the client left while waiting. DeadlineExceeded: there is no time left to write the answer.
        """
        call: Call = request.scope[CALL]
        batcher = model.batchers[capability]
        entry: Entry = await batcher.run(rows, call.deadline, call.has_left)
        call.deadline.check()
        self.record(call, "queue", entry.queue_seconds)
        self.record(call, "infer", entry.infer_seconds)
        return dict(zip(batcher.engine.output_names, entry.outputs, strict=True))

    def record(self, call: Call, stage: str, seconds: float) -> None:
        """Note how long a stage took, one of `observability.STAGES`: for the answer's Server-Timing and the metrics."""
        call.stages.append((stage, seconds))
        self._metrics.stages[stage].observe(seconds)

    def permit(
        self, encoded: Sequence[EncodedPicture | Problem], body_bytes: int, rows: int | None = None, size: int = 0
    ) -> Permit:
        """Room for the good ones of these pictures, or for so many `rows`.

        A request's pictures are decoded one after the other, so the largest one is what it holds at once. Of the body,
        what is past the free part has been counted as it arrived. size: bytes of whatever else is held.

        Raises:
            TooManyPixels, QueueFull: there never is so much room, or there is none now; see `Budget.acquire`.
        """
        good, most = decoding_cost(encoded)
        free = min(body_bytes, FREE_BODY_BYTES)
        return self._budget.acquire(good if rows is None else rows, free + most + size, held=body_bytes - free)

    def accept(self, pictures: Sequence[Encoded], deadline: Deadline) -> list[EncodedPicture | Problem]:
        """Headers checked, in order; a problem stays in its place.

        Raises:
            DeadlineExceeded: before the last one; headers may take long, inflated texts among them.
        """
        accepted: list[EncodedPicture | Problem] = []
        for picture in pictures:
            deadline.check()
            try:
                accepted.append(picture if isinstance(picture, Problem) else images.accept(picture, self.limits))
            except Problem as problem:
                accepted.append(problem.without_traceback())
        return accepted

    async def pooled(self, call: Call, work: Callable[..., Result], *arguments: Any) -> Result:
        """Large work: done by the pool, while the event loop goes on; see `Pool.run`."""
        return await self._pool.run(call.deadline, call.has_left, work, *arguments)

    async def placed(
        self, call: Call, pixels: int, pictures: int, work: Callable[..., Result], *arguments: Any
    ) -> Result:
        """Work on so much: by the pool where it is large, else at once."""
        return await self.pooled(call, work, *arguments) if _is_large(pixels, pictures) else work(*arguments)

    async def _write(
        self,
        call: Call,
        payload: Payload,
        model: LoadedModel,
        inputs: Sequence[ModelInput | Problem],
        outputs: Mapping[str, Array],
        render: Render,
    ) -> bytes:
        results: list[dict[str, Any]] = []
        row = 0
        for index, item in enumerate(inputs):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            if isinstance(item, Problem):
                results.append(self.in_place(call, item))
            else:
                results.append(head(model, item) | render(model, item, outputs, row))
                row += 1
        return to_json(results[0] if payload.single else {"results": results})

    def in_place(self, call: Call, problem: Problem) -> dict[str, Any]:
        """What stands for a picture of a batch that has no answer."""
        self._metrics.problem(problem.slug)
        return {"problem": problem.document(call.request_id)}


def _check_plain(encoding: bytes) -> None:
    if encoding.lower() != b"identity":
        raise UnsupportedMediaType(
            f"the body is encoded as {encoding.decode('latin-1')[:40]!r}; send it plain",
            headers={"Accept-Encoding": "identity"},
        )


def _pieces(encoded: Sequence[EncodedPicture | Problem]) -> Iterator[list[EncodedPicture | Problem]]:
    """Parts that the pool takes by turns with others': as much as a photograph each."""
    piece: list[EncodedPicture | Problem] = []
    pixels = 0
    for picture in encoded:
        piece.append(picture)
        pixels += 0 if isinstance(picture, Problem) else picture.width * picture.height
        if pixels >= _PIECE_PIXELS or len(piece) >= _PIECE_PICTURES:
            yield piece
            piece, pixels = [], 0
    if piece:
        yield piece


def _is_large(pixels: int, pictures: int) -> bool:
    return pixels > _INLINE_PIXELS or pictures > _INLINE_PICTURES


def head(model: LoadedModel, item: ModelInput) -> dict[str, Any]:
    """The fields that every picture's answer begins with."""
    return {"model": model.name, "version": model.version, "input": item.description}


def picture_answer(image: Array) -> dict[str, Any]:
    """schemas.PictureAnswer of a model's picture [C,H,W], see `images.write_picture`."""
    _, height, width = image.shape
    data = to_base64(images.write_picture(image))
    return {"media_type": "image/png", "width": width, "height": height, "data": data}


class JsonAnswer(Response):
    """JSON as it stands, with status 200. `Response` works out its headers, which for a small answer takes longer than
    to send them.
    """

    def __init__(self, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        self.body = body
        self.status_code = 200
        self.background = None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), _JSON, *headers]


def all_good(items: Sequence[Item | Problem], name: Callable[[int], str]) -> list[Item]:
    """All of them, where there is one answer to all; else the first problem raised, with the name of its place."""
    for at, item in enumerate(items):
        if isinstance(item, Problem):
            item.detail = f"{name(at)}: {item.detail}"
            raise item
    return [item for item in items if not isinstance(item, Problem)]


def raise_of_single(payload: Payload, items: Sequence[Any]) -> None:
    """A problem that is the whole answer, and not one of a list."""
    if payload.single and isinstance(items[0], Problem):
        raise items[0]


def to_base64(data: bytes) -> orjson.Fragment:
    """For `to_json`, which copies it as it is."""
    return orjson.Fragment(b'"' + base64.b64encode(data) + b'"')


def to_json(document: Any) -> bytes:
    """JSON with NumPy arrays and numbers at their own precision; a number that is not finite becomes null."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _prepare_all(
    encoded: Sequence[EncodedPicture | Problem],
    model: LoadedModel,
    options: Options,
    keep_original: bool,
    deadline: Deadline,
) -> list[ModelInput | Problem]:
    prepared: list[ModelInput | Problem] = []
    for picture in encoded:
        deadline.check()
        try:
            prepared.append(
                picture
                if isinstance(picture, Problem)
                else images.to_input(picture, model.manifest, options, keep_original=keep_original)
            )
        except Problem as problem:
            prepared.append(problem.without_traceback())
    return prepared
