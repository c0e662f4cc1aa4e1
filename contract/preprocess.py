"""Picture array -> model input. Training's folder data, evaluation on pages and the service call the same `prepare`.

A picture of the model's own size passes as it is, unless the training's were framed too. Any other is read as ink on
paper: polarity from the frame, content box, antialiased resize and placement as the training data have it
(`Preprocessing` in the manifest).
"""

import math
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from contract import geometry
from contract.ink import Page, at_work_resolution, read_page, strength_of_ink
from contract.manifest import InputSpec, Preprocessing
from contract.paper import Map
from contract.sheet import Outline, find_sheets
from contract.turned import filled_corners

Polarity = Literal["auto", "light", "dark", "none"]
Fit = Literal["auto", "content", "image"]
Box = tuple[int, int, int, int]

_DETAIL = 8  # pixels of the crop a pixel of the model, before the last resize
_THUMBNAIL = 64  # pixels of the longer side at which colours are compared
_ISOLUMINANT = 3.0  # times the contrast of the luma that a channel must have to be taken instead
_WHITE = np.float32(255)
_SOLID = 0.35  # of the ink's strength: more than a desk that is lighter at one end has of the sheet's
_LEAST_WRITING = 0.08  # of the longer side of a sheet: what is written there, and is no speck
_MOST_WITHIN = 3  # sheets and boxes within one another: a box on a sheet on a desk
_MOST_INK = 0.99  # of the ink lies in the circle that is fitted
_RESAMPLE = Image.Resampling.LANCZOS
_MEAN = Image.Resampling.BOX  # sharpest in flat areas; its pixels snap to those of the picture
_SMOOTH = Image.Resampling.BICUBIC  # turns with the content


class Prepared(NamedTuple):
    """A model's input and how it came about.

    image: float32 [C,H,W] in [0,1]. polarity: the brightness of the ink that was found or stated, "none" where nothing
    was looked for. box: left, top, right, bottom (exclusive) of what fills the frame, in pixels of the given picture.
    frame: [2,3] from the model's frame, normalised, to pixels of the given picture; composed with the matrix that a
    model gives for its input, it is the matrix for the picture itself. has_content: False where content was looked for
    and none was found; the box is then the whole picture.
    """

    image: npt.NDArray[np.float32]
    polarity: str
    box: Box
    frame: geometry.Matrix
    has_content: bool = True


class _Square(NamedTuple):
    """A square of the picture, which fills a model's frame; in pixels from the picture's corner."""

    left: float
    top: float
    side: float

    @property
    def frame(self) -> geometry.Matrix:
        return geometry.frame(self.left, self.top, self.side, self.side)


def prepare(
    pixels: npt.NDArray[np.uint8],
    spec: InputSpec,
    preprocessing: Preprocessing,
    *,
    polarity: Polarity = "auto",
    fit: Fit = "auto",
) -> Prepared:
    """Bring uint8 `pixels` [H,W] or [H,W,3] to the frame of a model.

    polarity: brightness of the picture's ink; "auto" finds it, "none" leaves brightness alone. fit: "content" searches
    for the content even in a picture that `passes_unchanged`, "image" takes the whole picture, "auto" does as the
    training data (content or not).
    """
    height, width = pixels.shape[:2]
    if passes_unchanged(width, height, spec, preprocessing, fit):
        image = _to_channels(pixels, spec.channels)
        if polarity in ("dark", "light") and preprocessing.polarity not in ("none", polarity):
            image = np.float32(1) - image
        return Prepared(image, "none" if polarity == "auto" else polarity, (0, 0, width, height), _own(width, height))
    if fit == "image" or (fit == "auto" and preprocessing.fit == "image"):
        return _whole(pixels, spec, preprocessing, polarity)
    return _content(pixels, spec, preprocessing, polarity)


def find_filled_corners(pixels: npt.NDArray[np.uint8]) -> tuple[Outline, ...]:
    """The corners of a picture [H,W] or [H,W,3] that a tool has filled when it turned it: triangles, in its pixels."""
    size = np.array(pixels.shape[1::-1], np.float32)
    work, reduction = at_work_resolution(_to_grey(Image.fromarray(pixels)))
    # The last pixel of a reduced picture may lie beyond the picture's own edge.
    return tuple(np.minimum(triangle * np.float32(reduction), size) for triangle in filled_corners(work))


def passes_unchanged(width: int, height: int, spec: InputSpec, preprocessing: Preprocessing, fit: Fit) -> bool:
    """Whether `prepare` takes a picture of so many pixels for one of the model's frames."""
    nothing_to_do = preprocessing.fit == "image" and preprocessing.polarity == "none"
    as_it_is = preprocessing.own_size == "unchanged" or nothing_to_do
    return (width, height) == (spec.width, spec.height) and fit != "content" and as_it_is


@cache
def _own(width: int, height: int) -> geometry.Matrix:
    """A model's frame that is a whole picture of its size, read-only."""
    frame = geometry.frame(0, 0, width, height)
    frame.flags.writeable = False
    return frame


def _to_channels(pixels: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.float32]:
    """float32 [C,H,W] in [0,1] from uint8 [H,W] or [H,W,3]."""
    if pixels.ndim == 3 and channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    if pixels.ndim == 2:
        image = (pixels.astype(np.float32) / _WHITE)[None]
        return image if channels == 1 else np.repeat(image, channels, axis=0)
    return np.ascontiguousarray((pixels.astype(np.float32) / _WHITE).transpose(2, 0, 1))


def _content(
    pixels: npt.NDArray[np.uint8], spec: InputSpec, preprocessing: Preprocessing, polarity: Polarity
) -> Prepared:
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels)
    grey = _to_grey(picture)
    stated = preprocessing.polarity if polarity == "none" else polarity
    part = _read(grey, None if stated in ("auto", "none") else stated)
    page = part.page
    if page.strength == 0:
        blank = np.float32(1 if preprocessing.polarity == "dark" else 0)
        image = np.full((spec.channels, spec.height, spec.width), blank, np.float32)
        box = (0, 0, width, height)
        return Prepared(image, page.polarity, box, _around(box, 0.0).frame, has_content=False)
    ink, box, step = _crop(part, spec.width)
    circle = _circle(ink, box, step, preprocessing.margin) if preprocessing.fit == "circle" else None
    if preprocessing.polarity == "none":
        square = circle or _around(box, preprocessing.margin)
        image = _cut(picture, square, spec, _SMOOTH if circle else _MEAN)
        return Prepared(image, page.polarity, box, square.frame)
    if circle:
        framed, frame = _cut_ink(ink, box, step, circle, spec.width), circle.frame
    else:
        framed, frame = _place(ink, box, spec.width, preprocessing)
    if preprocessing.polarity == "dark":
        framed = np.float32(1) - framed
    return Prepared(np.repeat(framed[None], spec.channels, axis=0), page.polarity, box, frame)


class _Part(NamedTuple):
    """A page, and the part of a picture, in grey, that it was read from; left, top: where that begins."""

    page: Page
    grey: Image.Image
    left: int = 0
    top: int = 0


def _read(grey: Image.Image, polarity: str | None) -> _Part:
    """The page that is meant: where a picture shows a sheet of paper on a desk, or a printed box, what is within."""
    part = _Part(read_page(grey, polarity), grey)
    for _ in range(_MOST_WITHIN):
        page = part.page
        sheets = find_sheets(page.ink > _SOLID * page.strength, page.box)
        inner = (_read_within(part, polarity, sheet * np.float32(page.reduction)) for sheet in sheets)
        found = next((it for it in inner if it is not None), None)
        if found is None:
            break
        part = found
    return part


def _read_within(part: _Part, polarity: str | None, sheet: Outline) -> _Part | None:
    """What is written on a sheet, given in pixels of the part; None where nothing is, or no more than a speck."""
    left, top = np.floor(sheet.min(axis=0)).astype(int).clip(0).tolist()
    right, bottom = np.minimum(np.ceil(sheet.max(axis=0)).astype(int), part.grey.size).tolist()
    grey = part.grey.crop((left, top, right, bottom))
    page = read_page(grey, polarity, sheet - np.array((left, top), np.float32))
    longest = max(page.box[2] - page.box[0], page.box[3] - page.box[1])
    if page.strength == 0 or longest < _LEAST_WRITING * max(page.ink.shape):
        return None
    return _Part(page, grey, part.left + left, part.top + top)


def _to_grey(picture: Image.Image) -> Image.Image:
    """Mode L: the luma, or the channel that tells the colours apart where their luma is much the same."""
    if picture.mode == "L":
        return picture
    small = picture.reduce(max(1, max(picture.size) // _THUMBNAIL))
    colours = np.asarray(small, np.float32).reshape(-1, 3)
    contrast = np.abs(colours - np.median(colours, axis=0)).max(axis=0)
    luma = np.asarray(small.convert("L"), np.float32)
    best = int(np.argmax(contrast))
    if contrast[best] > _ISOLUMINANT * max(float(np.abs(luma - np.median(luma)).max()), 1.0):
        return picture.getchannel(best)
    return picture.convert("L")


def _crop(part: _Part, side: int) -> tuple[Map, Box, int]:
    """The content's ink [h,w] in 0..1 (solid ink is 1) at _DETAIL times the model's resolution or what the picture has,
    its box in pixels of the picture, and the pixels of the picture a side of one pixel of the ink.
    """
    page, grey, unit = part.page, part.grey, part.page.reduction
    left, top = max(0, (page.box[0] - 1) * unit), max(0, (page.box[1] - 1) * unit)
    right, bottom = min(grey.width, (page.box[2] + 1) * unit), min(grey.height, (page.box[3] + 1) * unit)
    step = min(unit, max(1, max(right - left, bottom - top) // (side * _DETAIL)))
    crop = np.asarray(grey.crop((left, top, right, bottom)).reduce(step), np.float32)
    height, width = crop.shape
    extent = (left, top, left + width * step, top + height * step)
    ink = strength_of_ink(crop, page.paper.over(extent, grey.size, (width, height)), page.polarity)

    # Ink of the parts that are content, and what lies next to it: nothing else in the box.
    known = np.pad(page.ink > 0, 1)
    known[1:-1] |= known[:-2] | known[2:]
    known[:, 1:-1] |= known[:, :-2] | known[:, 2:]
    rows = np.minimum((top + (np.arange(height) + 0.5) * step) / unit, page.ink.shape[0] - 1).astype(np.intp) + 1
    columns = np.minimum((left + (np.arange(width) + 0.5) * step) / unit, page.ink.shape[1] - 1).astype(np.intp) + 1
    ink = np.where(known[np.ix_(rows, columns)], ink, np.float32(0))

    solid = ink >= min(page.floor, float(ink.max()))
    occupied_rows, occupied_columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    first_row, last_row = int(occupied_rows[0]), int(occupied_rows[-1]) + 1
    first_column, last_column = int(occupied_columns[0]), int(occupied_columns[-1]) + 1
    box = (
        part.left + left + first_column * step,
        part.top + top + first_row * step,
        part.left + min(left + last_column * step, grey.width),
        part.top + min(top + last_row * step, grey.height),
    )
    ink = ink[first_row:last_row, first_column:last_column]
    return np.minimum(ink / np.float32(page.strength), np.float32(1)), box, step


def _place(ink: Map, box: Box, side: int, preprocessing: Preprocessing) -> tuple[Map, geometry.Matrix]:
    """Scale the content's ink [h,w] into a frame [side,side] and put it where the training data have it."""
    height, width = ink.shape
    scale = (1 - 2 * preprocessing.margin) * side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Of a picture of few pixels the outermost ones fade as those inside do, into a rim about the box.
    rim, spare = (math.ceil(scale), 2) if scale > 1 else (0, 0)
    over_x, over_y = rim * width / size[0], rim * height / size[1]
    where = spare - over_x, spare - over_y, spare + width + over_x, spare + height + over_y
    larger = size[0] + 2 * rim, size[1] + 2 * rim
    small = np.clip(np.asarray(Image.fromarray(np.pad(ink, spare)).resize(larger, _RESAMPLE, where)), 0, 1)
    x, y = (side - size[0]) / 2, (side - size[1]) / 2
    if preprocessing.fit == "mass":
        total = max(float(small.sum()), 1e-6)
        # MNIST puts the centre of mass on the pixel of index side / 2, half a pixel right of and below the middle.
        x = side / 2 - float(small.sum(axis=0) @ np.arange(-rim, size[0] + rim)) / total
        y = side / 2 - float(small.sum(axis=1) @ np.arange(-rim, size[1] + rim)) / total
    left, top = (min(max(int(at + 0.5), 0), side - extent) for at, extent in zip((x, y), size, strict=True))
    framed = np.zeros((side + 2 * rim, side + 2 * rim), np.float32)
    framed[top : top + larger[1], left : left + larger[0]] = small
    framed = framed[rim : rim + side, rim : rim + side]
    unit_x, unit_y = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
    return framed, geometry.frame(box[0] - left * unit_x, box[1] - top * unit_y, side * unit_x, side * unit_y)


def _circle(ink: Map, box: Box, step: int, margin: float) -> _Square:
    """The square about the centre of mass of the ink [h,w] in which the circle that holds it leaves `margin`."""
    height, width = ink.shape
    total = float(ink.sum())
    x = float(ink.sum(axis=0) @ np.arange(width)) / total
    y = float(ink.sum(axis=1) @ np.arange(height)) / total
    distance = np.hypot(np.arange(width)[None, :] - x, np.arange(height)[:, None] - y)
    within = np.cumsum(np.bincount(distance.astype(np.intp).ravel(), ink.ravel())) / total
    ring = int(np.searchsorted(within, _MOST_INK))
    before = float(within[ring - 1]) if ring else 0.0
    radius = ring + (_MOST_INK - before) / (float(within[ring]) - before)
    side = 2 * radius * step / (1 - 2 * margin)
    return _Square(box[0] + (x + 0.5) * step - side / 2, box[1] + (y + 0.5) * step - side / 2, side)


def _cut_ink(ink: Map, box: Box, step: int, square: _Square, side: int) -> Map:
    """Ink [side,side] of a square of the picture, from the ink [h,w] of its box; there is none outside the box."""
    fewer = max(1, int(square.side / (step * side * _DETAIL)))
    unit = step * fewer
    small = np.pad(ink, ((0, -ink.shape[0] % fewer), (0, -ink.shape[1] % fewer)))
    small = small.reshape(small.shape[0] // fewer, fewer, -1, fewer).mean(axis=(1, 3), dtype=np.float32)
    left, top, extent = (square.left - box[0]) / unit, (square.top - box[1]) / unit, square.side / unit
    column, row = math.floor(left), math.floor(top)
    cells = math.ceil(extent) + 1
    canvas = Image.new("F", (cells, cells))
    canvas.paste(Image.fromarray(small), (-column, -row))
    where = (left - column, top - row, left - column + extent, top - row + extent)
    return np.asarray(canvas.resize((side, side), _RESAMPLE, where)).clip(0, 1)


def _whole(
    pixels: npt.NDArray[np.uint8], spec: InputSpec, preprocessing: Preprocessing, polarity: Polarity
) -> Prepared:
    height, width = pixels.shape[:2]
    box = (0, 0, width, height)
    picture = Image.fromarray(pixels)
    square = _around(box, 0.0)
    image = _cut(picture, square, spec, _MEAN)
    if preprocessing.polarity == "none" or polarity == "none":
        return Prepared(image, "none", box, square.frame)
    found = polarity if polarity != "auto" else read_page(_to_grey(picture)).polarity
    return Prepared(image if found == preprocessing.polarity else np.float32(1) - image, found, box, square.frame)


def _around(box: Box, margin: float) -> _Square:
    """The square about the middle of a box, with `margin` on either side of the longer one."""
    side = max(box[2] - box[0], box[3] - box[1]) / (1 - 2 * margin)
    return _Square((box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2, side)


def _cut(picture: Image.Image, square: _Square, spec: InputSpec, reducing: Image.Resampling) -> npt.NDArray[np.float32]:
    """float32 [C,H,W] in [0,1]: a square of the picture in its own colours; what lies outside the picture takes the
    median colour of the picture's edge.
    """
    mode = "L" if spec.channels == 1 else "RGB"
    step = max(1, int(square.side / (spec.width * _DETAIL)))
    small = picture.convert(mode).reduce(step)
    array = np.asarray(small)
    edge = np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])
    left, top, extent = square.left / step, square.top / step, square.side / step
    column, row = math.floor(left), math.floor(top)
    cells = math.ceil(extent) + 1
    canvas = Image.new(mode, (cells, cells), tuple(int(v) for v in np.atleast_1d(np.median(edge, axis=0))))
    canvas.paste(small, (-column, -row))
    where = (left - column, top - row, left - column + extent, top - row + extent)
    resized = canvas.resize((spec.width, spec.height), reducing if extent >= spec.width else _SMOOTH, where)
    return _to_channels(np.asarray(resized), spec.channels)
