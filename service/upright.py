"""A picture, its options and what a model found -> the picture upright, or a variant of it, as a file."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from contract.geometry import Canvas, GeometryError, Matrix, compose, inverse
from contract.picture import EncodedPicture, Original
from contract.picture_pixels import Kept
from service import warp
from service.errors import InternalError, NotAcceptable, Problem, TooManyPixels
from service.images import PICTURE_TYPES, encode
from service.queries import UprightOptions

_DRAWING = 4  # times the drawn picture: itself, Pillow's copy and the file; or the file, base64 and JSON
_FINISHED = 2  # times the drawn picture, while it waits for the others of its batch: the file, base64 and JSON
_KEPT_BYTES = 4  # a pixel of a picture in its own kind, at most

_SAVE: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 1, "compress_type": Image.core.RLE},  # type: ignore[attr-defined]
    "JPEG": {"quality": 92},
    "WEBP": {"quality": 92},
}
_LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383}


class Upright(NamedTuple):
    """A finished picture, and how long its parts took."""

    data: bytes
    media_type: str
    canvas: Canvas
    warp_seconds: float
    encode_seconds: float


def plan(original: Original, frame: Matrix, matrix: npt.ArrayLike, options: UprightOptions, most_pixels: int) -> Canvas:
    """The canvas of a picture for which a model found `matrix` in the `frame` that it was shown.

    Raises:
        TooManyPixels: it is larger than pictures may be.
        InternalError: the matrix cannot be undone.
    """
    height, width = original.samples.shape[:2]
    try:
        canvas = warp.plan(
            matrix, frame, width, height, undo=options.undo, expand=options.expand, filled=original.filled
        )
    except GeometryError as error:
        raise InternalError(f"the model gave no transform for this picture: {error}") from None
    if canvas.width * canvas.height > most_pixels:
        raise TooManyPixels(
            f"the upright picture would be {canvas.width} x {canvas.height} = {canvas.width * canvas.height:,} pixels, "
            f"the limit is {most_pixels:,}: ?expand=false keeps the size of the picture"
        )
    return canvas


def variant(original: Original, frame: Matrix, matrix: npt.ArrayLike) -> Canvas:
    """The canvas, of the picture's own size, of a variant that shows it through `matrix`, in the `frame` that the model
    was shown.

    Raises:
        InternalError: the matrix cannot be undone.
    """
    height, width = original.samples.shape[:2]
    try:
        return Canvas(width, height, compose(frame, matrix, inverse(frame)))
    except GeometryError as error:
        raise InternalError(f"the model gave no variant of this picture: {error}") from None


def kept_bytes(encoded: Sequence[EncodedPicture | Problem]) -> int:
    """The most bytes that a request's originals take between decoding and drawing. The largest picture is left out: its
    decoding cost already covers it. Colour profiles are not left out: they are held beside the pixels.
    """
    good = [picture for picture in encoded if not isinstance(picture, Problem)]
    pixels = [picture.width * picture.height for picture in good]
    profiles = sum(picture.profile_bytes for picture in good)
    return _KEPT_BYTES * (sum(pixels) - max(pixels, default=0)) + profiles


def drawing_bytes(pictures: Sequence[tuple[Original, Canvas]], options: UprightOptions) -> int:
    """The most bytes that keeping, drawing and answering take once decoding is over; a picture may be drawn on several
    canvases.
    """
    more = 1 if options.fill == "transparent" else 0
    sizes = [
        canvas.width * canvas.height * (int(original.samples[0, 0].nbytes) + more) + _profile_bytes(original)
        for original, canvas in pictures
    ]
    largest = max(sizes, default=0) + max((_painting_bytes(it) for it, _ in pictures if it.filled), default=0)
    kept = sum({id(it): it.samples.nbytes + _profile_bytes(it) for it, _ in pictures}.values())
    return kept + _DRAWING * largest + _FINISHED * (sum(sizes) - largest)


def _painting_bytes(original: Original) -> int:
    """For a copy of which the filled corners are painted over, and masks of where its border is."""
    height, width = original.samples.shape[:2]
    size: int = original.samples.nbytes + 2 * height * width
    return size


def _profile_bytes(original: Original) -> int:
    return len(original.icc_profile or b"")


def own_type(format: str) -> str:
    """The media type in which a picture of a format goes back: what it was, or what loses nothing."""
    return "image/jpeg" if format == "JPEG" else "image/png"


def make(original: Original, canvas: Canvas, options: UprightOptions, media_type: str, strict: bool) -> Upright:
    """Draw and encode. Transparency makes a PNG of what was to be JPEG, or is refused where the type is `strict`.

    Raises:
        NotAcceptable: the type cannot hold the picture.
    """
    start = time.perf_counter()
    fill = warp.fill_of(original.samples, options.fill, original.filled)
    samples = warp.draw(original.samples, canvas, fill, options.resample, original.filled)
    drawn = time.perf_counter()
    if reason := _misfit(samples, PICTURE_TYPES[media_type]):
        if strict:
            offered = ["image/png", "application/json"]
            raise NotAcceptable(f"{media_type} cannot hold the upright picture: {reason}", offered=offered)
        media_type = "image/png"
    data = _encode(samples, original, PICTURE_TYPES[media_type])
    return Upright(data, media_type, canvas, drawn - start, time.perf_counter() - drawn)


def _misfit(samples: Kept, name: str) -> str | None:
    """Why a format cannot hold a picture; None where it can."""
    if max(samples.shape[:2]) > _LONGEST_SIDE[name]:
        return f"its longer side has {max(samples.shape[:2]):,} pixels, the most are {_LONGEST_SIDE[name]:,}"
    if name == "JPEG" and warp.has_transparency(samples) and int(samples[..., -1].min()) < 255:
        return "it is transparent"
    return None


def _encode(samples: Kept, original: Original, name: str) -> bytes:
    if samples.dtype == np.uint16 and name != "PNG":
        samples = (samples >> 8).astype(np.uint8)
    if name == "JPEG" and warp.has_transparency(samples):
        samples = samples[..., 0] if samples.shape[2] == 2 else samples[..., :3]
    facts = {"icc_profile": original.icc_profile, "dpi": original.dpi}
    return encode(samples, name, _SAVE[name], {key: fact for key, fact in facts.items() if fact is not None})
