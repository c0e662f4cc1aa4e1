"""A picture as Pillow holds it -> an array of pixels, from every colour mode.

Large pictures are converted in strips, so that beside the picture and its array next to nothing is held.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

Pixels = npt.NDArray[np.uint8]
Kept = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Samples = npt.NDArray[np.generic]

_STRIP_PIXELS = 1 << 18
_UNSIGNED, _SIGNED = 1, 2  # SampleFormat (TIFF 6.0, section 19)


class Depth(NamedTuple):
    """What a file says of its samples, and Pillow leaves to whoever reads them.

    top: the greatest value of 16 bits. negative: whether 0 is white, where there are more than 8 bits. kind: 1
    without a sign, 2 with one, which matters for 8 and 32 bits, 3 floating-point; 0 where no file says.
    """

    top: int = 65535
    negative: bool = False
    kind: int = 0


_PLAIN = Depth()
_TOP_OF_12_BITS = 4095


def depth_of(image: Image.Image) -> Depth:
    """Of a picture as it was opened: once it is turned, Pillow has forgotten what the file says."""
    if not isinstance(image, TiffImageFile):
        return _PLAIN
    bits, kind = (image.tag_v2.get(tag, default) for tag, default in ((258, 16), (339, 1)))
    bits, kind = (value[0] if isinstance(value, tuple) else value for value in (bits, kind))
    return Depth((1 << int(bits)) - 1, image.tag_v2.get(262, 0) == 0, kind)


def to_pixels(image: Image.Image, depth: Depth = _PLAIN) -> Pixels:
    """uint8 [H,W] or [H,W,3] from any mode of Pillow, read-only."""
    image = _with_alpha(image)
    if image.mode == "L" and "transparency" not in image.info and depth.kind != _SIGNED:
        return _converted(image, _grey)
    if image.mode.startswith(("I", "F")) or depth.kind == _SIGNED:
        to_8_bits = _by_bits(_depth_used(image, depth)) if image.mode.startswith("I;16") else _by_range(image, depth)
        return _converted(image, lambda strip: to_8_bits(np.asarray(strip)))
    if image.has_transparency_data and not _is_opaque(image):
        background = _background(image)
        return _converted(image, lambda strip: _over(strip, background))
    if image.mode in ("1", "L"):
        return _converted(image, _grey)
    return _converted(image, lambda strip: np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB")))


def to_kept(image: Image.Image, pixels: Pixels, depth: Depth = _PLAIN) -> Kept:
    """A picture in the kind of its own, for whoever gives it back: uint8 [H,W], [H,W,2] (grey with transparency),
    [H,W,3] or [H,W,4] (RGB with transparency), uint16 [H,W] of 16 bits a pixel.

    `pixels` is what `to_pixels` makes of it. What is neither transparent nor of 16 bits is that: palettes are in
    colours, CMYK is RGB, bits are grey, and values of 32 bits are brought to 8, as are 16 with transparency.
    """
    image = _with_alpha(image)
    if image.mode.startswith("I;16"):
        top = depth.top
        kept = np.empty((image.height, image.width), np.uint16)
        for row, strip in _strips(image):
            samples = _positive(np.asarray(strip), depth)
            kept[row : row + strip.height] = samples if top == 65535 else (samples * 65535 + top // 2) // top
        return kept
    if image.has_transparency_data:
        mode = "LA" if image.mode in ("1", "L", "LA", "La") else "RGBA"
        return _converted(image, lambda strip: np.asarray(strip if strip.mode == mode else strip.convert(mode)))
    return pixels


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, part of the picture) from top to bottom."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _converted(image: Image.Image, convert: Callable[[Image.Image], Pixels]) -> Pixels:
    if image.width * image.height <= _STRIP_PIXELS:
        return convert(image)
    channels = convert(image.crop((0, 0, 1, 1))).shape[2:]
    pixels = np.empty((image.height, image.width, *channels), np.uint8)
    for top, strip in _strips(image):
        pixels[top : top + strip.height] = convert(strip)
    pixels.flags.writeable = False
    return pixels


def _grey(image: Image.Image) -> Pixels:
    grey = image if image.mode == "L" else image.convert("L")
    return np.frombuffer(grey.tobytes(), np.uint8).reshape(grey.height, grey.width)


def _with_alpha(image: Image.Image) -> Image.Image:
    """A picture of 16 bits that shows its transparent shade, with alpha and of 8 bits: Pillow makes all of it white."""
    shade = image.info.get("transparency")
    if shade is None or not image.mode.startswith("I;16"):
        return image
    to_8_bits = _by_bits(_PLAIN)

    def convert(strip: Image.Image) -> Pixels:
        samples = np.asarray(strip)
        return np.dstack([to_8_bits(samples), np.where(samples == shade, 0, 255).astype(np.uint8)])

    pixels = _converted(image, convert)
    return image if pixels[..., 1].all() else Image.fromarray(pixels)


def _positive(samples: Samples, depth: Depth) -> npt.NDArray[np.uint32]:
    """Samples of 16 bits, 0 black."""
    values = np.minimum(samples.astype(np.uint32), depth.top)
    return depth.top - values if depth.negative else values


def _depth_used(image: Image.Image, depth: Depth) -> Depth:
    """That of a picture of 16 bits whose samples have but 12 is 12: so scanners, cameras and X-rays write them."""
    whole = depth.top == _PLAIN.top and not depth.negative
    if whole and all(np.asarray(strip).max() <= _TOP_OF_12_BITS for _, strip in _strips(image)):
        return depth._replace(top=_TOP_OF_12_BITS)
    return depth


def _by_bits(depth: Depth) -> Callable[[Samples], Pixels]:
    """Samples of 16 bits to 0..255."""
    top = depth.top
    return lambda samples: ((_positive(samples, depth) * 255 + top // 2) // top).astype(np.uint8)


def _by_range(image: Image.Image, depth: Depth) -> Callable[[Samples], Pixels]:
    """Samples to 0..255: 0..1 (of floats), 0..255 and 0..65535 stand for themselves, and any other range is stretched
    from its least to its greatest finite value; values that are not finite become the least one.
    """
    kind = {("L", _SIGNED): np.int8, ("I", _UNSIGNED): np.uint32}.get((image.mode, depth.kind))
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        samples = np.asarray(strip)
        samples = samples.view(kind) if kind else samples
        finite = samples[np.isfinite(samples)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    least = low if np.isfinite(low) else 0.0
    if low >= 0:
        low = 0.0
        tops = ((1.0,) if image.mode.startswith("F") else ()) + (255.0, 65535.0)
        high = next((top for top in tops if high <= top), high)
    scale = 255.0 / max(high - low, 1e-300)

    def to_8_bits(samples: Samples) -> Pixels:
        values = (samples.view(kind) if kind else samples).astype(np.float64)
        values = np.where(np.isfinite(values), values, least)
        pixels = np.rint((values - low) * scale).astype(np.uint8)
        return 255 - pixels if depth.negative else pixels

    return to_8_bits


def _is_opaque(image: Image.Image) -> bool:
    return all(strip.convert("RGBA").getchannel("A").getextrema()[0] == 255 for _, strip in _strips(image))


def _background(image: Image.Image) -> tuple[int, int, int]:
    """The colour that the visible pixels of a picture with transparency are most likely seen on.

    A picture that is mostly opaque and has two tones brings its own paper: its median colour continues under the holes.
    Else what is visible is ink alone, which is dark on white or light on black.
    """
    luma, colours = np.zeros(256, np.int64), np.zeros((3, 256), np.int64)
    for _, strip in _strips(image):
        rgba = strip.convert("RGBA")
        visible = rgba.getchannel("A").point(lambda value: 255 if value >= 128 else 0)
        luma += rgba.convert("L").histogram(visible)
        colours += np.reshape(rgba.convert("RGB").histogram(visible), (3, 256))
    count = int(luma.sum())
    if not count:
        return 255, 255, 255
    share = count / (image.width * image.height)
    shares = np.cumsum(luma) / count
    dark, median, light = (int(np.searchsorted(shares, quantile)) for quantile in (0.02, 0.5, 0.98))
    if share >= 0.5 and light - dark >= 64:
        red, green, blue = (int(np.searchsorted(np.cumsum(tones), count // 2, side="right")) for tones in colours)
        return red, green, blue
    return (0, 0, 0) if median >= 128 else (255, 255, 255)


def _over(image: Image.Image, background: tuple[int, int, int]) -> Pixels:
    """Composite on a background: uint8 [H,W,3]."""
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(canvas)
