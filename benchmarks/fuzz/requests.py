"""Requests that nobody should send: damaged pictures, JSON, forms and tensor messages, drawn from a seed."""

import base64
import json
from collections.abc import Callable
from io import BytesIO
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.connection import Request
from benchmarks.fuzz.pieces import FORMATS, LINES, damage, integer, scramble

_ENDPOINTS = ("classify", "classify", "embed", "transform", "canonicalize", "augment")
_QUERIES = ("", "", "", "fit=content", "fit=image", "polarity=light", "polarity=none", "exif=ignore", "fit=a&fit=b")
_QUERIES_OF = {
    "canonicalize": ("", "", "undo=all", "fill=transparent", "expand=false&resample=nearest", "resample=lanczos"),
    # Few variants: a good picture that stands two hundred times in one request is much work and no damage.
    "augment": ("n=1", "n=1", "n=2&seed=7", "n=1&fill=transparent", "n=257", "seed=-1"),
}
_BOUNDARY = "fuzz"
_FORM = f"multipart/form-data; boundary={_BOUNDARY}"
_TYPES = ("image/png", "image/jpeg", "application/octet-stream", "application/json", _FORM, "multipart/form-data", "")
_JSON_LENGTH = "Inference-Header-Content-Length"
# In the place of a value of JSON. Text between bars is written as it is: numbers that Python would not write.
_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        2**64,
        -(2**63) - 1,
        0.5,
        -0.0,
        1e308,
        "|1e999|",
        "|NaN|",
        "|-Infinity|",
    ),
    *(
        "",
        "\0",
        "\ud800",
        "a" * 5000,
        "../../etc/passwd",
        "AAAA",
        "=",
        "iVBORw0KGgo=",
        "FP32",
        "BYTES",
        "INT64",
        "image",
    ),
    *([], {}, [[]], [None], [0], [1, 1, 8, 8], [-1, 1, 8, 8], [2**40, 1, 8, 8], [[[[0.5]]]], {"data": {}}, {"a": [{}]}),
)


def _pictures() -> dict[str, list[bytes]]:
    """Small files of every format and of many of its kinds."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    ramp = np.tile(np.linspace(255, 0, 40, dtype=np.uint8), (24, 1))
    ramp[6:18, 10:14] = 0
    grey, colour, clear = Image.fromarray(ramp), Image.fromarray(noise[:, :, :3]), Image.fromarray(noise, "RGBA")
    wide = Image.fromarray(ramp.astype(np.uint16) * 257)
    palette, ink, exif = colour.quantize(16), grey.convert("1"), Image.Exif()
    exif[0x0112] = 6

    def saved(image: Image.Image, form: str, **options: Any) -> bytes:
        file = BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    frames = {"save_all": True, "append_images": [colour, grey.convert("RGB")]}
    return {
        "PNG": [
            *(saved(image, "PNG") for image in (grey, colour, clear, palette, ink, wide)),
            saved(colour, "PNG", exif=exif, dpi=(300, 300)),
            saved(palette, "PNG", transparency=3),
            saved(colour, "PNG", **frames),
        ],
        "JPEG": [
            *(saved(image, "JPEG") for image in (grey, colour, colour.convert("CMYK"))),
            saved(colour, "JPEG", progressive=True, quality=50),
            saved(colour, "JPEG", exif=exif, subsampling=2, restart_marker_rows=1),
        ],
        "WEBP": [
            saved(colour, "WEBP"),
            saved(clear, "WEBP", lossless=True),
            saved(clear, "WEBP", exif=exif, quality=30),
            saved(colour, "WEBP", **frames),
        ],
        "TIFF": [
            *(saved(image, "TIFF") for image in (grey, colour, wide, ink, clear, palette, colour.convert("CMYK"))),
            *(
                saved(colour, "TIFF", compression=name)
                for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
            ),
            saved(ink, "TIFF", compression="group4"),
            saved(grey.convert("F"), "TIFF"),
            saved(colour, "TIFF", **frames),
        ],
        "BMP": [saved(image, "BMP") for image in (grey, colour, palette, ink, clear)],
        "GIF": [saved(palette, "GIF"), saved(grey, "GIF", transparency=0, interlace=1), saved(colour, "GIF", **frames)],
    }


PICTURES = _pictures()


def damaged_picture(random: Random) -> bytes:
    name = random.choice(tuple(PICTURES))
    files = PICTURES[name]
    return damage(random, FORMATS[name], random.choice(files), random.choice(files))


def _any_picture(random: Random) -> bytes:
    return damaged_picture(random) if random.random() < 0.5 else random.choice(random.choice(tuple(PICTURES.values())))


def _path(random: Random) -> str:
    endpoint = random.choice(_ENDPOINTS)
    query = random.choice(_QUERIES_OF.get(endpoint, _QUERIES))
    return f"/{endpoint}{'?' if query else ''}{query}"


def _picture(random: Random) -> Request:
    headers = {"Content-Type": "image/png"}
    if random.random() < 0.1:
        headers["Accept"] = random.choice(("image/png", "image/jpeg", "image/webp;q=0.1", "text/html", "*/*"))
    return Request(_path(random), headers, damaged_picture(random))


def damaged_document(random: Random, document: Any) -> Any:
    """A JSON value with one to three of its values replaced, left out, repeated, nested, or renamed."""
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            return random.choice(_VALUES)
        holder, key = random.choice(places)
        match random.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder[key:key] = [holder[key]] * random.choice((1, 3, 200))
            case 2:
                for _ in range(random.choice((1, 2, 1500))):
                    holder[key] = [holder[key]] if random.random() < 0.5 else {"images": holder[key]}
            case 3 if isinstance(holder, dict):
                holder[random.choice(("", "image", "images", "data", "inputs", "é" * 300))] = holder.pop(key)
            case _:
                holder[key] = json.loads(json.dumps(random.choice(_VALUES)))
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    found, left = [], [document]
    while left:
        holder = left.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            left.append(holder[key])
        if len(found) > 2000:
            break
    return found


def written(random: Random, document: Any) -> bytes:
    """Its JSON, sometimes scrambled; what nests too deep to be written becomes something that nests as deep."""
    try:
        text = json.dumps(document)
    except RecursionError:
        text = '{"images":' * 1500
    for value in ("1e999", "NaN", "-Infinity"):
        text = text.replace(f'"|{value}|"', value)
    data = text.encode()
    return scramble(random, data) if random.random() < 0.3 else data


def _json(random: Random) -> Request:
    def encoded() -> dict[str, str]:
        return {"data": base64.b64encode(_any_picture(random)).decode()}

    if random.random() < 0.3:
        path, document = "/recombine", {"content": encoded(), "style": encoded()}
    else:
        path, document = _path(random), {"images": [encoded() for _ in range(random.randrange(1, 5))]}  # type: ignore[dict-item]
    body = written(random, damaged_document(random, document))
    return Request(path, {"Content-Type": "application/json"}, body)


def _form(random: Random) -> Request:
    names = random.choice(
        (("image",), ("images", "images"), ("content", "style"), ("image", "images"), ("", "images\0"))
    )
    lines = []
    for name in names:
        head = f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        lines.append(f"--{_BOUNDARY}\r\n{head}".encode() + _any_picture(random) + b"\r\n")
    body = b"".join([*lines, f"--{_BOUNDARY}--\r\n".encode()])
    path = "/recombine" if names == ("content", "style") else _path(random)
    kind = random.choice((_FORM, _FORM, _FORM, _FORM, f"multipart/form-data; boundary={'-' * random.randrange(90)}"))
    return Request(path, {"Content-Type": kind}, damage(random, LINES, body, body))


def _tensors(random: Random) -> Request:
    """A message of the inference protocol whose sizes do not fit each other."""
    graph = random.choice(("equivae-digits", "equivae-digits.embed", "equivae-digits.recombine", "equivae-digits.x"))
    names = ("content", "style") if graph.endswith("recombine") else ("image",)
    rows, binary = random.choice((1, 1, 2, 5)), b""
    inputs: list[dict[str, Any]] = []
    for name in names:
        tensor: dict[str, Any] = {"name": name, "shape": [rows, 1, 8, 8], "datatype": "FP32"}
        part = random.randbytes(4 * 64 * rows) if random.random() < 0.5 else bytes(4 * 64 * rows)
        match random.randrange(4):
            case 0:
                tensor["data"] = [random.choice((0.0, 0.5, 1, -1e38)) for _ in range(64 * rows)]
            case 1:
                files = [_any_picture(random) for _ in range(rows)]
                part = b"".join(_length(random, len(file)) + file for file in files)
                tensor |= {"shape": [rows], "datatype": "BYTES", "parameters": {"binary_data_size": len(part)}}
                binary += part
            case _:
                size = len(part) + random.choice((0, 0, 0, 1, -1, 4, -4, 10**9))
                tensor["parameters"] = {"binary_data_size": size}
                binary += part
        inputs.append(tensor)
    document: Any = {"inputs": inputs, "id": "1", "parameters": {"binary_data_output": random.random() < 0.5}}
    if random.random() < 0.7:
        document = damaged_document(random, document)
    head = written(random, document)
    stated = random.choice((len(head),) * 6 + (0, len(head) + 1, len(head) - 1, 10**11, -1, "1e2", "\u00b2", ""))
    body = head + (scramble(random, binary) if binary and random.random() < 0.4 else binary)
    headers = {"Content-Type": "application/octet-stream", _JSON_LENGTH: str(stated)}
    return Request(f"/v2/models/{graph}/infer", headers, body)


def _length(random: Random, size: int) -> bytes:
    return size.to_bytes(4, "little") if random.random() < 0.8 else integer(random, 4)


def _mixed_up(random: Random) -> Request:
    """A good or a bad body that is called something else."""
    made = random.choice((_picture, _json, _form, _tensors))(random)
    return Request(_path(random), {"Content-Type": random.choice(_TYPES)}, made.body)


MAKERS: dict[str, Callable[[Random], Request]] = {
    "picture": _picture,
    "json": _json,
    "form": _form,
    "tensors": _tensors,
    "mixed up": _mixed_up,
}


def make(kind: str, seed: int, number: int) -> Request:
    """The request of that number; each is made from the seed and its number alone, so that one can be made again."""
    return MAKERS[kind](Random(f"{seed}/{kind}/{number}"))
