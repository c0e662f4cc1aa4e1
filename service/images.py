"""Bytes -> checked model input, and array -> bytes of a picture. Every limit on a picture is applied here."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from contract.geometry import Matrix
from contract.manifest import Manifest
from contract.picture import EncodedPicture, Original, read_header
from contract.picture_header import (
    CorruptPictureError,
    EmptyPictureError,
    NotAPictureError,
    PictureError,
    PictureLimits,
    PictureTooLargeError,
    PictureTooNarrowError,
    PictureTooSmallError,
    TooManyBytesError,
    UnsupportedPictureError,
)
from contract.picture_pixels import Kept
from contract.picture_png import write_plain_png
from contract.preprocess import find_filled_corners, prepare
from service.errors import (
    BodyTooLarge,
    CorruptImage,
    EmptyImage,
    ImageTooNarrow,
    ImageTooSmall,
    NoContent,
    NotAnImage,
    Problem,
    TooManyPixels,
    UnsupportedImage,
)
from service.queries import Options
from service.settings import Settings

PICTURE_TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
"""Media types that `write_picture` makes, best first, and Pillow's names for them."""

_PROBLEMS: dict[type[PictureError], type[Problem]] = {
    EmptyPictureError: EmptyImage,
    NotAPictureError: NotAnImage,
    UnsupportedPictureError: UnsupportedImage,
    CorruptPictureError: CorruptImage,
    TooManyBytesError: BodyTooLarge,
    PictureTooLargeError: TooManyPixels,
    PictureTooSmallError: ImageTooSmall,
    PictureTooNarrowError: ImageTooNarrow,
}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
_TINY_BYTES = 4096  # of samples: beyond, a file that is not compressed is longer than its time is worth


class ModelInput(NamedTuple):
    """image: float32 [C,H,W] in [0,1]. description: the answer's `input`, schemas.InputDescription. frame: [2,3] from
    the model's frame to the picture's pixels. original: the picture itself, where it was asked for.
    """

    image: npt.NDArray[np.float32]
    description: dict[str, Any]
    frame: Matrix
    original: Original | None = None


def limits_of(settings: Settings) -> PictureLimits:
    """What a picture may be; a picture may be as long as a whole body."""
    return PictureLimits(bytes=settings.max_body_bytes, pixels=settings.max_pixels, smallest_side=settings.min_side)


def accept(data: bytes, limits: PictureLimits) -> EncodedPicture:
    """Check a picture by its first bytes and its header, before a pixel is decoded; it knows what decoding will cost.

    Raises:
        Problem: of the type that belongs to the fault, see the table above.
    """
    try:
        return read_header(data, limits=limits)
    except PictureError as error:
        raise _problem(error) from None


def decoding_cost(encoded: Sequence[EncodedPicture | Problem]) -> tuple[int, int]:
    """How many are good, and of memory, what decoding them takes: one after the other, so what the largest takes."""
    good = most = 0
    for picture in encoded:
        if not isinstance(picture, Problem):
            good += 1
            most = max(most, picture.decoded_bytes)
    return good, most


def to_input(
    encoded: EncodedPicture, manifest: Manifest, options: Options, *, keep_original: bool = False
) -> ModelInput:
    """Decode an accepted picture and bring it to the model's frame.

    Raises:
        CorruptImage: the pixels cannot be decoded to their end.
        NoContent: `?fit=content` was asked for and the picture shows none.
    """
    try:
        picture = encoded.decode(apply_exif=options.exif == "apply", keep_original=keep_original)
    except PictureError as error:
        raise _problem(error) from None
    prepared = prepare(
        picture.pixels, manifest.input, manifest.preprocessing, polarity=options.polarity, fit=options.fit
    )
    if options.fit == "content" and not prepared.has_content:
        raise NoContent("the picture is blank, or shows nothing that stands out from its paper")
    description = {
        "format": picture.format,
        "width": picture.width,
        "height": picture.height,
        "orientation_applied": picture.orientation_applied,
        "frames": picture.frames,
        "polarity": prepared.polarity,
        "box": prepared.box,
        "has_content": prepared.has_content,
    }
    original = picture.original and picture.original._replace(filled=find_filled_corners(picture.pixels))
    return ModelInput(prepared.image, description, prepared.frame, original)


def write_picture(image: npt.NDArray[np.float32], media_type: str = "image/png") -> bytes:
    """A model's picture float32 [C,H,W], C 1 or 3, values in [0,1] (clipped), as a file; PNG and WebP are lossless."""
    pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    samples = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    name = PICTURE_TYPES[media_type]
    return encode(samples, name, _SAVE_OPTIONS[name], {})


def encode(samples: Kept, name: str, options: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
    """A picture as a file, by Pillow's name of the format and its options. facts: those that say more of the picture,
    icc_profile and dpi. A tiny PNG that needs none is better written soon than short.
    """
    if name == "PNG" and not facts and samples.dtype == np.uint8 and samples.nbytes <= _TINY_BYTES:
        return write_plain_png(samples.astype(np.uint8, copy=False))
    file = BytesIO()
    Image.fromarray(samples).save(file, name, **options, **facts)
    return file.getvalue()


def _problem(error: PictureError) -> Problem:
    """The problem of the same fault."""
    return _PROBLEMS[type(error)](str(error))
