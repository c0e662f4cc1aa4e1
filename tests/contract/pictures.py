"""Pictures for the tests, drawn here: a known shape, in every encoding."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


def encode(picture: Image.Image | npt.NDArray[Any], name: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, name, **options)
    return file.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def noise(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def glyph(side: int = 28) -> npt.NDArray[np.uint8]:
    """A thick L, light on dark, uint8 [side,side]: its box is known and no turn or mirror image equals it.

    Left stroke over columns 3/14..5/14, foot over rows 9/14..11/14 up to column 10/14, top at row 3/14.
    """
    picture = np.zeros((side, side), np.uint8)
    unit = side / 14
    picture[round(3 * unit) : round(11 * unit), round(3 * unit) : round(5 * unit)] = 255
    picture[round(9 * unit) : round(11 * unit), round(3 * unit) : round(10 * unit)] = 255
    return picture


def ring(side: int, radius: float, width: float) -> npt.NDArray[np.float64]:
    """The strength 0..1 of a circle's line [side,side] about the middle, antialiased; radius: of its outer edge."""
    place = np.arange(side) - (side - 1) / 2
    beyond = abs(np.hypot(place[:, None], place) - (radius - width / 2))
    return np.clip(width / 2 - beyond + 0.5, 0, 1)
