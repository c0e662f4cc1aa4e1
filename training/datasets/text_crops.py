"""Pictures of text as people send them: some lines in one font, turned, inked on paper, and scanned or photographed.

Everything follows from the caller's generator. The ink's mask is drawn upright, turned once, and only then laid on its
paper, so that light, noise, blur and JPEG's blocks know nothing of the text's direction.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features

from training.datasets.text_fonts import Script
from training.datasets.text_words import RIGHT_TO_LEFT
from training.errors import DataError

__all__ = ["Look", "draw_look", "draw_mask", "load_font", "require_shaping", "take_picture"]

Font = ImageFont.FreeTypeFont
Pixels = npt.NDArray[np.uint8]

SMALLEST_PX, LARGEST_PX = 12, 48  # size of the font in the picture
LINES = (1, 2, 3)
LINE_SHARES = (0.75, 0.15, 0.10)
LIGHT_ON_DARK = 0.25
COLOURED = 0.3
LEAST_CONTRAST = 70  # grey levels between ink and paper
SHADED, DARKEST = 0.3, 0.65  # share of the pictures in uneven light; light in its darkest corner
BLURRED, MOST_BLUR = 0.5, 0.05  # share; standard deviation as a share of the font's size
NOISY, MOST_NOISE = 0.6, 12.0  # share; standard deviation in grey levels
COMPRESSED, JPEG_QUALITY = 0.6, (30, 95)  # share; range of qualities
MARGIN = (0.3, 1.2)  # paper on all sides, in sizes of the font


@dataclass(frozen=True)
class Look:
    """How one picture is drawn, apart from its text and font.

    size: of the font, pixels. lines: how many. spacing: between lines, a share of the size. ink, paper: RGB. shade:
    light that is lost towards a corner, and its direction (x, y). blur, noise: standard deviations in pixels and in
    grey levels. quality: JPEG's, 0: not compressed. margin: paper around the ink, pixels.
    """

    size: int
    lines: int
    spacing: float
    align: str
    ink: tuple[float, float, float]
    paper: tuple[float, float, float]
    shade: float
    towards: tuple[float, float]
    blur: float
    noise: float
    quality: int
    margin: int


def require_shaping() -> None:
    """Arabic and Devanagari need a text layout that joins and orders letters.

    Raises:
        DataError: this Pillow has none.
    """
    if not features.check("raqm"):
        raise DataError("text: this Pillow was built without Raqm, which lays out Arabic and Devanagari: use its wheel")


def draw_look(rng: np.random.Generator) -> Look:
    """A look within the ranges above."""
    size = round(math.exp(rng.uniform(math.log(SMALLEST_PX), math.log(LARGEST_PX))))
    paper_level = rng.uniform(140, 255)
    ink_level = rng.uniform(0, paper_level - LEAST_CONTRAST)
    if rng.random() < LIGHT_ON_DARK:
        paper_level, ink_level = ink_level, paper_level
    coloured = rng.random() < COLOURED
    ink, paper = (_tint(level, rng, coloured) for level in (ink_level, paper_level))
    angle = rng.uniform(0, 2 * math.pi)
    return Look(
        size=size,
        lines=int(rng.choice(LINES, p=LINE_SHARES)),
        spacing=rng.uniform(0.1, 0.5),
        align=("left", "center", "right")[int(rng.integers(3))],
        ink=ink,
        paper=paper,
        shade=(1 - rng.uniform(DARKEST, 1)) if rng.random() < SHADED else 0.0,
        towards=(math.cos(angle), math.sin(angle)),
        blur=size * rng.uniform(0, MOST_BLUR) if rng.random() < BLURRED else 0.0,
        noise=rng.uniform(0, MOST_NOISE) if rng.random() < NOISY else 0.0,
        quality=int(rng.integers(*JPEG_QUALITY)) if rng.random() < COMPRESSED else 0,
        margin=round(size * rng.uniform(*MARGIN)),
    )


def _tint(level: float, rng: np.random.Generator, coloured: bool) -> tuple[float, float, float]:
    """A colour of about this brightness."""
    shifts = rng.uniform(-30, 30, 3) if coloured else np.zeros(3)
    red, green, blue = np.clip(level + shifts - shifts.mean(), 0, 255)
    return float(red), float(green), float(blue)


@lru_cache(maxsize=128)
def load_font(file: Path | None, size: int) -> Font:
    """A font at a size in pixels; without a file Pillow's own, Latin only (Aileron, CC0)."""
    if file is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)  # with a size and FreeType it always is
        return font
    try:
        return ImageFont.truetype(file, size)
    except OSError as error:
        raise DataError(f"text: the font {file} cannot be read: {error}") from error


def draw_mask(text: str, script: Script, font: Font, look: Look) -> Image.Image:
    """The upright ink, mode L, 255 where it is solid, with its margin; lines are separated by newlines."""
    options: Any = {"font": font, "align": look.align, "spacing": look.spacing * look.size}
    if script in RIGHT_TO_LEFT:
        options["direction"] = "rtl"
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = ruler.multiline_textbbox((0, 0), text, **options)
    width, height = (math.ceil(far - near) + 2 * look.margin for near, far in ((left, right), (top, bottom)))
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).multiline_text((look.margin - left, look.margin - top), text, 255, **options)
    return mask


def take_picture(mask: Image.Image, look: Look, degrees: float, rng: np.random.Generator) -> Pixels:
    """The text of a mask, turned counter-clockwise as seen, as uint8 [H,W] or, in colours, [H,W,3].

    The canvas grows, so that no ink is lost.
    """
    turned = mask.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    if look.blur:
        turned = turned.filter(ImageFilter.GaussianBlur(look.blur))
    alpha = np.asarray(turned, np.float32) / 255
    height, width = alpha.shape
    grey = len(set(look.ink)) == len(set(look.paper)) == 1
    ink, paper = (np.array(colour[:1] if grey else colour, np.float32) for colour in (look.ink, look.paper))
    picture = paper + alpha[:, :, None] * (ink - paper)
    if look.shade:
        across, down = look.towards
        reach = abs(across) + abs(down)
        columns, rows = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
        distance = (across / reach * columns + down / reach * rows[:, None] + 1) / 2
        picture *= 1 - np.float32(look.shade) * distance[:, :, None]
    if look.noise:
        picture += np.float32(look.noise) * rng.standard_normal(picture.shape, np.float32)
    pixels = picture.round().clip(0, 255).astype(np.uint8)
    if grey:
        pixels = pixels[:, :, 0]
    if not look.quality:
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=look.quality)
    return np.asarray(Image.open(file))
