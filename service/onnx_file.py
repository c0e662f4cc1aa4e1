"""What an ONNX file says of itself, read from its protobuf wire form without the `onnx` package.

ONNX Runtime reports neither the opset nor where the weights lie, and it would follow a path to external data out of
the model folder, so both are read here before a session is made. Field numbers are those of `onnx.proto3`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 32
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL

# message -> field number -> message of that field; what is not listed is skipped
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "opset": {},
}


class OnnxFileError(Exception):
    """Not a well-formed ONNX file."""


@dataclass(slots=True)
class OnnxFacts:
    """opsets: domain ("" is ai.onnx) -> version. external: some tensor's data lies in another file."""

    opsets: dict[str, int] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)
    external: bool = False


def inspect(data: bytes) -> OnnxFacts:
    """Walk the whole model, sub-graphs and functions included.

    Raises:
        OnnxFileError: the bytes are no ONNX model.
    """
    facts = OnnxFacts()
    try:
        _walk(memoryview(data), "model", facts, 0)
    except (IndexError, UnicodeDecodeError) as error:
        raise OnnxFileError("the file is not a well-formed ONNX model") from error
    if not facts.opsets:
        raise OnnxFileError("the file names no opset, so it is not an ONNX model")
    return facts


def _walk(message: memoryview, kind: str, facts: OnnxFacts, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise OnnxFileError("the file nests too deeply")
    children = _CHILDREN[kind]
    domain, version = "", 0
    for number, value in _fields(message):
        if isinstance(value, int):
            if kind == "tensor" and number == 14 and value == _EXTERNAL:
                facts.external = True
            elif kind == "opset" and number == 2:
                version = value
        elif kind == "opset":
            domain = bytes(value).decode() if number == 1 else domain
        elif kind == "node" and number == 4:
            facts.operators.add(bytes(value).decode())
        elif (child := children.get(number)) == "external":
            facts.external = True
        elif child is not None:
            _walk(value, child, facts, depth + 1)
    if kind == "opset":
        facts.opsets["" if domain == "ai.onnx" else domain] = version


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of each field: an integer, or the bytes of a length-delimited field."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire == _BYTES:
            size, at = _varint(message, at)
            if at + size > end:
                raise OnnxFileError("the file is cut short")
            yield number, message[at : at + size]
            at += size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise OnnxFileError("the file is not a well-formed ONNX model")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise OnnxFileError("the file is not a well-formed ONNX model")
