"""The Open Inference Protocol's messages (version 2, REST): a request's bytes -> tensors, tensors -> an answer's bytes.

Numbers come as JSON or, by the binary tensor data extension, as little-endian arrays behind the JSON; those are read
where they lie, without a copy. Source: the protocol's inference_rest.md, Triton's extension_binary_data.md.
"""

import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from contract.manifest import GraphSpec, TensorSpec
from service.engine import Array
from service.errors import (
    BodyTooLarge,
    EmptyBody,
    InvalidBase64,
    InvalidJson,
    InvalidTensor,
    TooManyImages,
    in_json,
)

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
MOST_JSON_BYTES = 16 * 1024 * 1024
"""A list of numbers takes eight times its text while it is read; larger tensors come as binary data."""
_MOST_LISTS = 500_000

_MOST_ERRORS = 4
_PICTURE_RANK = 4
_LENGTH_BYTES = 4  # in front of each element of binary BYTES

# Clients made from a schema send null for what they leave out.
Parameters = Annotated[dict[str, Any], BeforeValidator(lambda given: {} if given is None else given)]
Data = Annotated[list[Any], Field(description="Row-major, nested or flat; of BYTES each element as base64.")]


File = bytes | memoryview


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")  # what a client knows beyond this protocol is not its mistake


class InputTensor(Message):
    name: StrictStr = Field(examples=["image"])
    shape: list[StrictInt] = Field(max_length=8, description="The first size is the batch; of BYTES [n] or [n, 1].")
    datatype: StrictStr = Field(
        description="FP32: the graph's tensor as it is. BYTES: files of pictures, prepared as everywhere else.",
        examples=["BYTES"],
    )
    parameters: Parameters = Field(default={}, description="binary_data_size: bytes of it behind the JSON.")
    data: Data | None = None


class RequestedOutput(Message):
    name: StrictStr
    parameters: Parameters = Field(default={}, description="binary_data: behind the JSON instead of in it.")


class InferRequest(Message):
    id: StrictStr | None = Field(default=None, max_length=1024, description="Given back.")
    parameters: Parameters = Field(
        default={},
        description="binary_data_output: all outputs behind the JSON. timeout: microseconds until the answer is of no "
        "use, counted from when the message was read.",
    )
    inputs: list[InputTensor] = Field(min_length=1, max_length=8)
    outputs: list[RequestedOutput] | None = Field(default=None, max_length=64, description="Else all.")


class OutputTensor(Message):
    name: str
    shape: list[int]
    datatype: str = Field(examples=["FP32"])
    parameters: Parameters = Field(default={}, description="binary_data_size: bytes of it behind the JSON.")
    data: list[float | None] | None = Field(
        default=None, description="Flat, row-major; a number that is not finite is null."
    )


class InferAnswer(Message):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


@dataclass(slots=True)
class Tensors:
    """A request as a graph takes it.

    inputs: in the graph's order; float32 [n, ...], or n files of pictures, where they lie in the body. rows: n.
    outputs: (name, whether as binary data), in the order asked for. timeout_seconds: None where none is asked for.
    """

    id: str | None
    timeout_seconds: float | None
    inputs: list[Array | list[File]]
    rows: int
    outputs: list[tuple[str, bool]]

    @property
    def has_files(self) -> bool:
        return any(isinstance(given, list) for given in self.inputs)

    def take_files(self) -> list[bytes]:
        """The files, those of one input after the other's. They are copied and leave `inputs`, and arrays beside them
        are copied too: nothing lies in the body any more, which can be let go of.
        """
        files = [bytes(file) for given in self.inputs if isinstance(given, list) for file in given]
        if files:
            self.inputs = [[] if isinstance(given, list) else given.copy() for given in self.inputs]
        return files


def json_size(headers: Mapping[bytes, bytes], body: bytes) -> int:
    """How much of a body is JSON: all of it where the header does not say; 0 where the body is one raw tensor.

    Raises:
        InvalidTensor: the header is no number within the body.
    """
    stated = headers.get(JSON_LENGTH_HEADER.lower().encode())
    if stated is None:
        return len(body)
    if not (stated.isdigit() and len(stated) <= 12 and int(stated) <= len(body)):
        raise InvalidTensor(f"{JSON_LENGTH_HEADER} is no number from 0 to the body's {len(body)} bytes")
    return int(stated)


def read_infer(body: bytes, json_bytes: int, spec: GraphSpec, max_rows: int) -> Tensors:
    """A request for a graph, its first `json_bytes` being JSON.

    Raises:
        Problem: what is wrong with it.
    """
    if not body:
        raise EmptyBody("send an inference request as JSON, or a raw tensor")
    if json_bytes == 0:
        return _read_raw(body, spec, max_rows)
    request = _read_json(body[:json_bytes] if json_bytes < len(body) else body)
    by_name = {tensor.name: tensor for tensor in request.inputs}
    wanted = [tensor.name for tensor in spec.inputs]
    if sorted(wanted) != sorted(tensor.name for tensor in request.inputs):
        raise InvalidTensor(f"the inputs are {_listed(by_name)}; the graph takes each of {_listed(wanted)} once")
    rows = _count_rows(request.inputs, max_rows)
    outputs = _requested(request, spec)
    parts = _binary_parts(request.inputs, memoryview(body)[json_bytes:])
    inputs = [_read_input(by_name[tensor.name], tensor, parts.get(tensor.name)) for tensor in spec.inputs]
    return Tensors(request.id, _timeout(request.parameters), inputs, rows, outputs)


def write_answer(
    asked: Tensors, model_name: str, model_version: int, outputs: Mapping[str, Array]
) -> tuple[bytes, int | None]:
    """An answer's body, and the length of its JSON where binary data follow it."""
    described: list[dict[str, Any]] = []
    parts: list[Any] = []
    for name, binary in asked.outputs:
        array = np.ascontiguousarray(outputs[name], dtype="<f4")
        tensor: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": "FP32"}
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            parts.append(array.data)
        else:
            tensor["data"] = array.reshape(-1)
        described.append(tensor)
    answer: dict[str, Any] = {"model_name": model_name, "model_version": str(model_version), "outputs": described}
    if asked.id is not None:
        answer["id"] = asked.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *parts]), len(head)) if parts else (head, None)


Read = TypeVar("Read", bound=Message)


def _read_json(text: bytes) -> InferRequest:
    if len(text) > MOST_JSON_BYTES:
        raise BodyTooLarge(
            f"the JSON has {len(text):,} bytes, at most {MOST_JSON_BYTES:,} are read: send binary tensor data",
            max_bytes=MOST_JSON_BYTES,
        )
    if text.count(b"[") + text.count(b"{") > _MOST_LISTS:  # each takes tens of bytes once it is parsed
        raise InvalidTensor(f"the JSON has more than {_MOST_LISTS:,} lists: send data flat, or as binary tensor data")
    return read_message(text, InferRequest)


def read_message(text: bytes, model: type[Read]) -> Read:
    """A message of the protocol from its JSON.

    Raises:
        InvalidJson, InvalidTensor: it is none, with the place.
    """
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"line {error.lineno}, column {error.colno}: {error.msg[:200]}") from None
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_ERRORS]
        places = [(".".join(str(part)[:40] for part in item["loc"]) or "request", in_json(item)) for item in found]
        raise InvalidTensor("; ".join(f"{place}: {message}" for place, message in places)) from None


def _read_raw(body: bytes, spec: GraphSpec, max_rows: int) -> Tensors:
    if len(spec.inputs) > 1:
        names = _listed([tensor.name for tensor in spec.inputs])
        raise InvalidTensor(f"a raw tensor is for a graph of one input, this one takes {names}")
    (tensor,) = spec.inputs
    row_bytes = 4 * math.prod(tensor.row_shape)
    rows, rest = divmod(len(body), row_bytes)
    if rest:
        raise InvalidTensor(f"the body has {len(body)} bytes, a row of {tensor.name} has {row_bytes}")
    _check_rows(rows, max_rows)
    array = np.frombuffer(body, "<f4").reshape(rows, *tensor.row_shape)
    return Tensors(None, None, [array], rows, [(output.name, True) for output in spec.outputs])


def _timeout(parameters: Parameters) -> float | None:
    microseconds = parameters.get("timeout")
    if microseconds is None:
        return None
    if not isinstance(microseconds, int) or isinstance(microseconds, bool) or not 0 < microseconds < 2**53:
        raise InvalidTensor("timeout is a whole number of microseconds, at least 1")
    return microseconds / 1e6


def _count_rows(tensors: Sequence[InputTensor], max_rows: int) -> int:
    counts = {tensor.shape[0] if tensor.shape else 0 for tensor in tensors}
    if len(counts) > 1:
        raise InvalidTensor("the inputs differ in their first size, the batch")
    (rows,) = counts
    _check_rows(rows, max_rows)
    return rows


def _check_rows(rows: int, max_rows: int) -> None:
    if rows < 1:
        raise InvalidTensor("a batch has at least one row: the first size of a shape")
    if rows > max_rows:
        raise TooManyImages(f"at most {max_rows:,} rows are accepted in one request", max_images=max_rows)


def _requested(request: InferRequest, spec: GraphSpec) -> list[tuple[str, bool]]:
    known = [output.name for output in spec.outputs]
    binary = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return [(name, binary) for name in known]
    requested: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in known or output.name in requested:
            raise InvalidTensor(f"outputs: {output.name[:64]!r} is asked for; there are {_listed(known)}, each once")
        for refused in ("classification", "shared_memory_region"):
            if refused in output.parameters:
                raise InvalidTensor(f"outputs: {output.name} asks for {refused}, which this server does not have")
        requested[output.name] = output.parameters.get("binary_data", binary) is True
    return list(requested.items())


def _binary_parts(tensors: Sequence[InputTensor], binary: memoryview) -> dict[str, memoryview]:
    """The bytes behind the JSON, shared out in the order of the request's inputs."""
    parts: dict[str, memoryview] = {}
    start = 0
    for tensor in tensors:
        size = tensor.parameters.get("binary_data_size")
        if (size is None) == (tensor.data is None):
            raise InvalidTensor(f"{tensor.name} has to come either as data or as binary_data_size and bytes")
        if size is None:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary) - start:
            raise InvalidTensor(f"binary_data_size of {tensor.name} is no number of bytes that follow the JSON")
        parts[tensor.name] = binary[start : start + size]
        start += size
    if start < len(binary):
        raise InvalidTensor(f"{len(binary) - start} bytes follow the JSON that no input claims")
    return parts


def _read_input(given: InputTensor, spec: TensorSpec, part: memoryview | None) -> Array | list[File]:
    if given.datatype == "BYTES" and len(spec.shape) == _PICTURE_RANK:
        rows = given.shape[0]
        if given.shape not in ([rows], [rows, 1]):
            raise InvalidTensor(f"{given.name} has shape {given.shape}, of BYTES it is [n] or [n, 1]")
        return _from_base64(given, rows) if part is None else _split(given.name, part, rows)
    if given.datatype != "FP32":
        kinds = "FP32 or BYTES (pictures)" if len(spec.shape) == _PICTURE_RANK else "FP32"
        raise InvalidTensor(f"{given.name} is {given.datatype[:16]!r}, the graph takes {kinds}")
    if tuple(given.shape[1:]) != spec.row_shape:
        raise InvalidTensor(f"{given.name} has shape {given.shape}, the graph takes {[-1, *spec.row_shape]}")
    return _from_numbers(given) if part is None else _from_bytes(given, part)


def _from_bytes(given: InputTensor, part: memoryview) -> Array:
    expected = 4 * math.prod(given.shape)
    if len(part) != expected:
        raise InvalidTensor(f"{given.name} has {len(part)} bytes, its shape takes {expected}")
    return np.frombuffer(part, "<f4").reshape(given.shape)


def _from_numbers(given: InputTensor) -> Array:
    numbers = _flat(given)
    # Before NumPy sees them: of one long string among numbers it would make every number a string as long.
    if not set(map(type, numbers)) <= {int, float}:
        raise InvalidTensor(f"{given.name}: data has something that is no number")
    with np.errstate(over="ignore"):
        array = np.array(numbers, np.float64).astype(np.float32).reshape(given.shape)
    if not np.isfinite(array).all():
        raise InvalidTensor(f"{given.name}: data has a number that FP32 does not hold")
    return array


def _flat(given: InputTensor) -> list[Any]:
    """The elements of `data`, which is flat or nested as its shape says."""
    data = given.data or []
    if data and isinstance(data[0], list):
        for size in given.shape[1:]:
            if not all(isinstance(item, list) and len(item) == size for item in data):
                raise InvalidTensor(f"{given.name}: data is neither flat nor of its shape")
            data = list(chain.from_iterable(data))
    if len(data) != math.prod(given.shape):
        raise InvalidTensor(f"{given.name}: data has {len(data)} elements, its shape takes {math.prod(given.shape)}")
    return data


def _from_base64(given: InputTensor, rows: int) -> list[File]:
    flat = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in given.data or []]
    if len(flat) != rows:
        raise InvalidTensor(f"{given.name}: data has {len(flat)} elements, its shape takes {rows}")
    try:
        return [binascii.a2b_base64(item, strict_mode=True) for item in flat]
    except TypeError:
        raise InvalidTensor(f"{given.name}: an element of data is no string") from None
    except ValueError as error:  # binascii.Error, or a character beyond ASCII
        raise InvalidBase64(f"{given.name}: {error}; in JSON, bytes are base64 (RFC 4648, section 4)") from None


def _split(name: str, part: memoryview, rows: int) -> list[File]:
    """Elements of binary BYTES: each is its length, 4 bytes little-endian, and its bytes."""
    elements: list[File] = []
    start = 0
    while start < len(part) and len(elements) <= rows:
        stop = start + _LENGTH_BYTES + int.from_bytes(part[start : start + _LENGTH_BYTES], "little")
        if start + _LENGTH_BYTES > len(part) or stop > len(part):
            raise InvalidTensor(f"{name}: element {len(elements)} goes past the end of its bytes")
        elements.append(part[start + _LENGTH_BYTES : stop])
        start = stop
    if len(elements) != rows:
        raise InvalidTensor(f"{name} has not the {rows} elements of its shape")
    return elements


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"`{name[:64]}`" for name in names)
