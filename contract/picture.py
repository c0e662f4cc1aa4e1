"""Encoded picture -> array of pixels: every colour mode, upright by EXIF, checked by its header before decoding.

Pillow decodes everything, so training, evaluation and the service see the same pixels. Its plug-ins are called one by
one by the sniffed format: `Image.open` would try others and consults a process-wide pixel limit, while the limits here
belong to the caller. Colour profiles are not applied.
"""

from io import BytesIO
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageStat
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from contract.picture_frames import gif_frames, tiff_frames
from contract.picture_header import (
    CorruptPictureError,
    PictureError,
    PictureLimits,
    PictureTooLargeError,
    check_png_data,
    png_header,
    sniff,
    webp_size,
)

Pixels = npt.NDArray[np.uint8]

_ORIENTATION = 0x0112
_TRANSPOSE = {  # EXIF 2.32, table 6: what brings the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {  # of all others it is themselves
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
}
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
}
_DEFAULT_LIMITS = PictureLimits()


class Picture(NamedTuple):
    """A decoded picture.

    pixels: uint8 [H,W] (grey) or [H,W,3] (RGB), read-only. format: one of picture_header.FORMATS. frames: pictures in
    the file, of which this is the first. orientation_applied: whether EXIF turned or mirrored it. width, height: of
    `pixels`.
    """

    pixels: Pixels
    format: str
    frames: int
    orientation_applied: bool
    width: int
    height: int


class EncodedPicture(NamedTuple):
    """A picture whose header is read and accepted, and whose pixels are not decoded yet.

    width, height: as stored, before any EXIF orientation. decoded_bytes: of the decoded picture as Pillow holds it.
    source: what `decode` reads.
    """

    format: str
    width: int
    height: int
    frames: int
    decoded_bytes: int
    source: "ImageFile.ImageFile | PlainPng"

    def decode(self, *, apply_exif: bool = True) -> Picture:
        """The first picture's pixels; CorruptPictureError where the data ends early or does not decode."""
        source = self.source
        try:
            if isinstance(source, PlainPng):
                pixels, turned = source.decode(self.width, self.height), False
            else:
                pixels, turned = _decode(source, apply_exif)
        except PictureError:
            raise
        except Image.DecompressionBombError as error:
            raise PictureTooLargeError(str(error)) from error
        except Exception as error:
            raise _corrupt(self.format, error) from error
        height, width = pixels.shape[:2]
        return Picture(pixels, self.format, self.frames, turned, width, height)


class PlainPng(NamedTuple):
    """The compressed pixels of a PNG file of the plainest kind: 8-bit grey or RGB, not interlaced, in one chunk, no
    other chunks. Pillow's decompressor takes them directly, which halves the time of a small picture.
    """

    mode: str
    data: bytes

    def decode(self, width: int, height: int) -> Pixels:
        image = Image.frombytes(self.mode, (width, height), self.data, "zip", self.mode, 0)
        pixels = np.frombuffer(image.tobytes(), np.uint8)
        return pixels.reshape(height, width) if self.mode == "L" else pixels.reshape(height, width, 3)


def open_picture(data: bytes, *, limits: PictureLimits = _DEFAULT_LIMITS, apply_exif: bool = True) -> Picture:
    """Decode `data`; PictureError (see picture_header) where it is refused. What is declared about it plays no part."""
    return read_header(data, limits=limits).decode(apply_exif=apply_exif)


def read_header(data: bytes, *, limits: PictureLimits = _DEFAULT_LIMITS) -> EncodedPicture:
    """Check format, size and number of frames of `data` without decoding pixels; PictureError where it is refused."""
    limits.check_bytes(len(data))
    name = sniff(data)
    frames = 1
    if name == "PNG":
        width, height, depth, colour, interlacing = png_header(data)
        limits.check_size(width, height)
        if depth == 8 and not interlacing and (plain := _plain_png(data, colour)):
            return EncodedPicture(name, width, height, frames, _decoded_bytes(plain.mode, width, height), plain)
        check_png_data(data)
    elif name == "WebP":
        limits.check_size(*webp_size(data))
    elif name == "GIF":
        frames = gif_frames(data, limits.frames)
    elif name == "TIFF":
        frames = tiff_frames(data, limits.frames)
    try:
        image = _PLUGINS[name](BytesIO(data))
    except Image.DecompressionBombError as error:
        raise PictureTooLargeError(str(error)) from error
    except Exception as error:
        raise _corrupt(name, error) from error
    width, height = image.size
    limits.check_size(width, height)
    if name in ("PNG", "WebP"):
        frames = getattr(image, "n_frames", 1)
        if frames > limits.frames:
            raise PictureTooLargeError(f"the file says it holds {frames:,} pictures, the limit is {limits.frames:,}")
    return EncodedPicture(name, width, height, frames, _decoded_bytes(image.mode, width, height), image)


def _decoded_bytes(mode: str, width: int, height: int) -> int:
    return width * height * (1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4)


def _plain_png(data: bytes, colour: int) -> PlainPng | None:
    mode = "L" if colour == 0 else "RGB" if colour == 2 else ""
    end = 41 + int.from_bytes(data[33:37])
    if not mode or data[37:41] != b"IDAT" or data[end + 8 : end + 12] != b"IEND":
        return None
    if crc32(data[37:end]) != int.from_bytes(data[end : end + 4]):
        return None
    return PlainPng(mode, data[41:end])


def _decode(image: Image.Image, apply_exif: bool) -> tuple[Pixels, bool]:
    """Pixels of an opened picture, and whether EXIF turned them."""
    if isinstance(image, TiffImageFile):  # Pillow turns a TIFF picture as it loads it, and forgets the tag
        turn = _TRANSPOSE.get(_orientation(image))
        image.load()
        if turn is None or apply_exif:
            return _to_pixels(image), turn is not None
        return _to_pixels(image.transpose(_INVERSE.get(turn, turn))), False
    image.load()
    turn = _TRANSPOSE.get(_orientation(image)) if apply_exif else None
    return _to_pixels(image if turn is None else image.transpose(turn)), turn is not None


def _corrupt(name: str, error: Exception) -> CorruptPictureError:
    # Pillow's plug-ins let through whatever their parsing trips over (struct.error, KeyError, zlib.error, ...).
    reason = str(error).strip() or type(error).__name__
    return CorruptPictureError(f"the {name} file is cut short or damaged: {reason[:200]}")


def _orientation(image: Image.Image) -> int:
    info = image.info
    if not (
        "exif" in info
        or "xmp" in info
        or "XML:com.adobe.xmp" in info
        or "Raw profile type exif" in info
        or isinstance(image, TiffImageFile)
    ):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels: the picture is taken as it is stored
        return 1
    return value if isinstance(value, int) else 1


def _to_pixels(image: Image.Image) -> Pixels:
    """uint8 [H,W] or [H,W,3] from any mode of Pillow."""
    mode = image.mode
    if mode == "L" and "transparency" not in image.info:
        return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width)
    if image.has_transparency_data:
        return _over_background(image.convert("RGBA"))
    if mode == "1":
        return np.asarray(image.convert("L"))
    if mode.startswith(("I", "F")):
        return _to_8_bits(np.asarray(image), _sample_bits(image))
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))


def _sample_bits(image: Image.Image) -> int | None:
    """Bits that an unsigned integer sample may use where the file states them, else None."""
    if not image.mode.startswith("I;16"):
        return None
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(258, 16)
        return int(bits[0] if isinstance(bits, tuple) else bits)
    return 16


def _to_8_bits(samples: npt.NDArray[np.generic], bits: int | None) -> Pixels:
    """Map [H,W] samples to 0..255: by the stated bits; else 0..1, 0..255 and 0..65535 stand for themselves and any
    other range is stretched from its least to its greatest finite value (values that are not finite become 0).
    """
    if bits is not None:
        top = (1 << bits) - 1
        return np.asarray(np.minimum((samples.astype(np.uint32) * 255 + top // 2) // top, 255), np.uint8)
    values = samples.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    values = np.where(finite, values, low)
    if low >= 0:
        low = 0.0
        is_float = np.issubdtype(samples.dtype, np.floating)
        high = next((top for top in ((1.0,) if is_float else ()) + (255.0, 65535.0) if high <= top), high)
    return np.rint((values - low) * (255.0 / max(high - low, 1e-300))).astype(np.uint8)


def _over_background(image: Image.Image) -> Pixels:
    """Composite an RGBA picture on the background that its visible pixels are most likely seen on: uint8 [H,W,3].

    A picture that is mostly opaque and has two tones brings its own paper: its median colour continues under the holes.
    Else what is visible is ink alone, which is dark on white or light on black.
    """
    alpha = image.getchannel("A")
    low, _ = alpha.getextrema()
    if low == 255:
        return np.asarray(image.convert("RGB"))
    visible = alpha.point(lambda value: 255 if value >= 128 else 0)
    share = ImageStat.Stat(visible).mean[0] / 255
    background = (255, 255, 255)
    if share > 0:
        luma = np.cumsum(image.convert("L").histogram(visible)) / max(1, visible.histogram()[255])
        dark, median, light = (int(np.searchsorted(luma, quantile)) for quantile in (0.02, 0.5, 0.98))
        if share >= 0.5 and light - dark >= 64:
            background = tuple(ImageStat.Stat(image.convert("RGB"), visible).median)  # type: ignore[assignment]
        elif median >= 128:
            background = (0, 0, 0)
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=alpha)
    return np.asarray(canvas)
