"""Encoded picture -> array of pixels: every colour mode, upright by EXIF, checked by its header before decoding.

Pillow decodes everything, so training, evaluation and the service see the same pixels. Its plug-ins are called one by
one by the sniffed format: `Image.open` would try others and consults a process-wide pixel limit, while the limits here
belong to the caller. Colour profiles are not applied.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import NamedTuple

from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from contract.picture_frames import check_tile, gif_frames, tiff_frames
from contract.picture_header import (
    MOST_PIECES,
    CorruptPictureError,
    PictureError,
    PictureLimits,
    PictureTooLargeError,
    sniff,
    too_many_pieces,
    webp_size,
)
from contract.picture_jpeg import check_jpeg
from contract.picture_pixels import Kept, Pixels, depth_of, to_kept, to_pixels
from contract.picture_png import MOST_PROFILE, OddPng, PlainPng, check_png_data, png_header
from contract.sheet import Outline

MOST_DECODED_BYTES_PER_PIXEL = 18
"""The most memory that decoding and preparing can take, in bytes per pixel (WebP)."""

_MOST_EXIF = 1 << 20  # bytes: of more, whose values may be millions of numbers, the orientation is not looked for
_ORIENTATION, _ACROSS, _DOWN, _UNIT = 0x0112, 0x011A, 0x011B, 0x0128
_PER_INCH = {2: 1.0, 3: 2.54}  # by unit: inches, centimetres
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


class Original(NamedTuple):
    """What of a decoded picture a model does not need, and whoever gives the picture back does.

    samples: in the picture's own kind, see picture_pixels.to_kept; the same memory as the pixels where they are equal.
    icc_profile: of these samples' colour space, up to 1 MiB, or None. dpi: across and down, or None. filled: corners of
    it that are no picture, see preprocess.find_filled_corners; of a picture that has just been decoded not known yet.
    """

    samples: Kept
    icc_profile: bytes | None
    dpi: tuple[float, float] | None
    filled: tuple[Outline, ...] = ()


class Picture(NamedTuple):
    """A decoded picture.

    pixels: uint8 [H,W] (grey) or [H,W,3] (RGB), read-only. format: one of picture_header.FORMATS. frames: pictures in
    the file, of which this is the first. orientation_applied: whether EXIF turned or mirrored it. width, height: of
    `pixels`. original: where it was asked for.
    """

    pixels: Pixels
    format: str
    frames: int
    orientation_applied: bool
    width: int
    height: int
    original: Original | None = None


class _Jpeg(BytesIO):
    """A file that is read in a bounded number of steps: Pillow looks for segments byte by byte."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MOST_PIECES:
            raise too_many_pieces("JPEG", "segments and bytes between them")
        return super().read(size)


class EncodedPicture(NamedTuple):
    """A picture whose header is read and accepted, and whose pixels are not decoded yet.

    width, height: as stored, before any EXIF orientation. decoded_bytes: of memory, the most that decoding it and
    preparing it for a model take. source: what `decode` reads, once; the file itself where an opened picture holds far
    more than its file, which a batch of them would hold all at once. profile_bytes: of the colour profile that an
    Original of it may hold.
    """

    format: str
    width: int
    height: int
    frames: int
    decoded_bytes: int
    source: ImageFile.ImageFile | PlainPng | OddPng | bytes
    profile_bytes: int = 0

    def decode(self, *, apply_exif: bool = True, keep_original: bool = False) -> Picture:
        """The first picture's pixels; CorruptPictureError where the data ends early or does not decode."""
        source = self.source
        with _faults(self.format):
            if isinstance(source, PlainPng):
                pixels, samples = source.decode(self.width, self.height)
                turned, original = False, Original(samples, None, None) if keep_original else None
            else:
                image = source if isinstance(source, ImageFile.ImageFile) else _open(self.format, source)
                if keep_original and isinstance(source, OddPng):
                    image.info["icc_profile"] = source.profile()
                pixels, turned, original = _decode(image, apply_exif, keep_original)
        height, width = pixels.shape[:2]
        return Picture(pixels, self.format, self.frames, turned, width, height, original)


def open_picture(data: bytes, *, limits: PictureLimits = _DEFAULT_LIMITS, apply_exif: bool = True) -> Picture:
    """Decode `data`; PictureError (see picture_header) where it is refused. What is declared about it plays no part."""
    return read_header(data, limits=limits).decode(apply_exif=apply_exif)


def read_header(data: bytes, *, limits: PictureLimits = _DEFAULT_LIMITS) -> EncodedPicture:
    """Check format, size and number of frames of `data` without decoding pixels; PictureError where it is refused."""
    limits.check_bytes(len(data))
    name = sniff(data)
    frames = 1
    source: OddPng | bytes = data
    if name == "PNG":
        header = png_header(data)
        width, height = header.width, header.height
        limits.check_size(width, height)
        png = check_png_data(data, header)
        if isinstance(png, PlainPng):
            cost = _decoded_bytes(name, png.mode, png.mode in ("LA", "RGBA"), width * height)
            return EncodedPicture(name, width, height, frames, cost, png)
        source = png
    elif name == "WebP":
        limits.check_size(*webp_size(data))
    elif name == "GIF":
        frames = gif_frames(data, limits.frames)
    elif name == "TIFF":
        frames = tiff_frames(data, limits.frames)
    elif name == "JPEG":
        check_jpeg(data)
    with _faults(name):
        image = _open(name, source)
        frames = getattr(image, "n_frames", 1) if name in ("PNG", "WebP") else frames
        transparent = image.has_transparency_data
    width, height = image.size
    limits.check_size(width, height)
    if isinstance(image, TiffImageFile):
        check_tile(image, width * height)
    if frames > limits.frames:
        raise PictureTooLargeError(f"the file says it holds {frames:,} pictures, the limit is {limits.frames:,}")
    decoded_bytes = _decoded_bytes(name, image.mode, transparent, width * height)
    profile = source.profile() if isinstance(source, OddPng) else image.info.get("icc_profile")
    profile_bytes = min(len(profile or b""), MOST_PROFILE)
    opened = source if name in ("PNG", "WebP") else image  # of WebP its decoder's canvases are large
    return EncodedPicture(name, width, height, frames, decoded_bytes, opened, profile_bytes)


def _open(name: str, data: bytes | OddPng) -> ImageFile.ImageFile:
    file = data.file() if isinstance(data, OddPng) else _Jpeg(data) if name == "JPEG" else BytesIO(data)
    return _PLUGINS[name](file)


def _decoded_bytes(name: str, mode: str, transparent: bool, pixels: int) -> int:
    """Measured, rounded up: Pillow's picture, its turned copy or the array made of it, and what preparing it takes."""
    if name == "WebP":  # its decoder holds two canvases of its own
        return MOST_DECODED_BYTES_PER_PIXEL * pixels
    if name == "JPEG" and mode == "CMYK":  # a progressive one's coefficients of 16 bits, beside the picture
        return 12 * pixels
    if transparent:
        return 10 * pixels
    return pixels * (3 if mode in ("1", "L") else 5 if mode.startswith("I;16") else 10)


def _decode(image: ImageFile.ImageFile, apply_exif: bool, keep_original: bool) -> tuple[Pixels, bool, Original | None]:
    """Pixels of an opened picture, whether EXIF turned them, and what was to be kept. The picture is closed, which
    frees its memory.
    """
    orientation = _orientation(image) if apply_exif or isinstance(image, TiffImageFile) else 1
    turn = _TRANSPOSE.get(orientation)
    profile = image.info.get("icc_profile")
    depth = depth_of(image)
    dpi = _resolution(image) if keep_original else None
    image.load()
    turned = turn is not None
    if isinstance(image, TiffImageFile):  # Pillow has turned it while loading it
        turn, turned = (None, turned) if apply_exif or turn is None else (_INVERSE.get(turn, turn), False)
    upright = image if turn is None else image.transpose(turn)
    if dpi and turned and orientation >= 5:  # across was down
        dpi = dpi[::-1]
    if upright is not image:
        image.close()
    pixels = to_pixels(upright, depth)
    original = None
    if keep_original:
        samples = to_kept(upright, pixels, depth)
        original = Original(samples, _profile(profile, samples), dpi)
    image.close()
    return pixels, turned, original


def _profile(data: object, samples: Kept) -> bytes | None:
    """A colour profile, if it is one of the samples' colour space (ICC.1:2022, section 7.2.6) and not too long."""
    space = b"GRAY" if samples.ndim == 2 or samples.shape[2] == 2 else b"RGB "
    return data if isinstance(data, bytes) and data[16:20] == space and len(data) <= MOST_PROFILE else None


def _resolution(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch across and down, of a picture as it is stored. Where tags tell it, they are read here: Pillow gives
    1 for what a TIFF does not say, and 72 for what the EXIF data of a JPEG does not.
    """
    try:
        if isinstance(image, TiffImageFile) or (
            isinstance(image, JpegImageFile) and image.info.get("jfif_unit") not in (1, 2)
        ):
            tags = image.tag_v2 if isinstance(image, TiffImageFile) else image.getexif()
            unit = _PER_INCH[tags.get(_UNIT, 2)]
            across, down = float(tags[_ACROSS]) * unit, float(tags.get(_DOWN, tags[_ACROSS])) * unit
        else:
            across, down = (float(number) for number in image.info["dpi"])
    except Exception:  # of damaged EXIF data, whatever parsing it trips over: it says nothing about the pixels
        return None
    return (across, down) if 0 < across < 65_535.5 and 0 < down < 65_535.5 else None  # JPEG has 16 bits for it


@contextmanager
def _faults(name: str) -> Iterator[None]:
    """Every exception as a PictureError: Pillow's plug-ins let through whatever their parsing trips over (struct.error,
    KeyError, zlib.error, ...).
    """
    try:
        yield
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureTooLargeError(f"a frame of the {name} file is far larger than its header says") from error
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise CorruptPictureError(f"the {name} file is cut short or damaged: {reason[:200]}") from error


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
    if len(info.get("exif", b"")) > _MOST_EXIF:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels: the picture is taken as it is stored
        return 1
    return value if isinstance(value, int) else 1
