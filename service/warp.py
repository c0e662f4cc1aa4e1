"""The user's own picture brought upright: one warp at its own resolution and in its own kind, by OpenCV."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from contract import geometry
from contract.geometry import Canvas, Matrix
from contract.picture_pixels import Kept
from contract.sheet import Outline
from service.queries import Colour, Undo

# OpenCV's own threads would not stand back behind the event loop as the pool's do.
cv2.setNumThreads(1)

_METHODS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
_TILE = 1024  # pixels of a side that are drawn at once: pictures may have longer sides than OpenCV takes
_TILE_WITH_ALPHA = 128  # few tiles then lie at an edge or a hole, where drawing takes ten times as long
_MOST_SOURCE = 16_384  # pixels of a side of the source of one tile
_BESIDE = 3  # pixels on either side of a filled corner's border, of which those within are the picture's
_REACH = 5  # pixels around a place that its value may depend on

Point = tuple[float, float]

Border = tuple[float, ...]
"""A value a channel."""


def plan(
    matrix: npt.ArrayLike,
    frame: npt.ArrayLike,
    width: int,
    height: int,
    *,
    undo: Undo = "rotation",
    expand: bool = True,
    filled: Sequence[Outline] = (),
) -> Canvas:
    """Where the upright picture takes its pixels from, for a picture of `width` x `height` pixels.

    matrix: what the model found, canonical to observed in its frame. frame: from there to the picture's pixels. With
    undo "rotation" the content's centre, where the canonical frame's middle is observed, is the pivot; with "all" the
    content goes to where and how it would fill the model's frame canonically. filled: corners of the picture that are
    none of it, for which the canvas need not grow.

    Raises:
        GeometryError: a matrix that cannot be undone.
    """
    if undo == "rotation":
        centre = geometry.compose(frame, matrix)[:, 2]
        to_picture = geometry.about(geometry.rotation(geometry.to_parts(matrix).rotation_degrees), centre)
    else:
        to_picture = geometry.compose(frame, matrix, geometry.inverse(frame))
    if not expand:
        return Canvas(width, height, to_picture)
    return geometry.grown(to_picture, width, height, _shown(width, height, filled) if filled else None)


def _shown(width: int, height: int, filled: Sequence[Outline]) -> list[Point]:
    """The corners of what a picture shows: it is cut off along the longest side of every filled triangle."""
    shown: list[Point] = [(0, 0), (width, 0), (width, height), (0, height)]
    for triangle in filled:
        corner, (x, y), (other_x, other_y) = triangle.tolist()
        across, down = y - other_y, other_x - x
        sign = -1 if (corner[0] - x) * across + (corner[1] - y) * down > 0 else 1
        depths = [sign * ((point[0] - x) * across + (point[1] - y) * down) for point in shown]
        cut: list[Point] = []
        for start, end, before, after in zip(
            shown, shown[1:] + shown[:1], depths, depths[1:] + depths[:1], strict=True
        ):
            if before >= 0:
                cut.append(start)
            if before * after < 0:
                share = before / (before - after)
                cut.append((start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])))
        shown = cut
    return shown


def fill_of(
    samples: Kept, wanted: Literal["auto", "transparent"] | Colour, filled: Sequence[Outline] = ()
) -> Literal["transparent"] | Border:
    """What shows where there is no picture, in the picture's own values; a grey picture takes a colour's luma.

    filled: corners of the picture that are none of it; "auto" is the colour along the border of what is.
    """
    if wanted == "transparent":
        return "transparent"
    if wanted == "auto":
        edge = _along_border(samples, filled)
        edge.sort(axis=0)  # np.median takes three times as long for so few
        middle = edge[(len(edge) - 1) // 2], edge[len(edge) // 2]
        return tuple(np.atleast_1d(np.mean(middle, axis=0)).tolist())
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    red, green, blue = wanted
    colour = (0.299 * red + 0.587 * green + 0.114 * blue,) if channels < 3 else (red, green, blue)
    opaque = (255.0,) if channels in (2, 4) else ()
    return tuple(float(value) * (257 if samples.dtype == np.uint16 else 1) for value in (*colour, *opaque))


def _along_border(samples: Kept, filled: Sequence[Outline]) -> Kept:
    """The pixels [n] or [n,C] along the picture's edges, but for its filled corners, and along these, within."""
    if not filled:
        return np.concatenate([samples[0], samples[-1], samples[:, 0], samples[:, -1]])
    height, width = samples.shape[:2]
    shown = np.zeros((height, width), np.uint8)
    shown[[0, -1]] = shown[:, [0, -1]] = 1
    thickness = 1 + 2 * _BESIDE
    for triangle in filled:
        _, start, end = np.rint(triangle).astype(np.int32).tolist()
        cv2.line(shown, start, end, 1, thickness)
    for triangle in filled:
        cv2.fillConvexPoly(shown, np.rint(triangle).astype(np.int32), 0)
    return samples[shown > 0]


def has_transparency(samples: Kept) -> bool:
    """Whether the last channel is opacity."""
    return samples.ndim == 3 and samples.shape[2] in (2, 4)


def draw(
    samples: Kept,
    canvas: Canvas,
    fill: Literal["transparent"] | Border,
    resample: str,
    filled: Sequence[Outline] = (),
) -> Kept:
    """The picture [H,W] or [H,W,C] on its canvas, in the same kind; with fill "transparent" it gets that channel, for
    which 16 bits become 8. Its corners that are `filled` are no picture either.
    """
    if fill == "transparent":
        samples = _with_transparency(samples)
        border: Border = (0.0,) * samples.shape[2]
    else:
        border = fill
    if filled:
        samples = samples.copy()
        for triangle in filled:
            cv2.fillConvexPoly(samples, np.rint(triangle).astype(np.int32), np.rint(border).tolist())
    has_alpha = has_transparency(samples)
    drawn = np.empty((canvas.height, canvas.width, *samples.shape[2:]), samples.dtype)
    fitting = int(_MOST_SOURCE / np.abs(canvas.matrix[:, :2]).sum(axis=1).max())
    size = min(_TILE_WITH_ALPHA if has_alpha else _TILE, max(1, fitting))
    beside = np.full((size, *samples.shape[2:]), np.rint(border), samples.dtype)
    for top in range(0, canvas.height, size):
        for left in range(0, canvas.width, size):
            tile = drawn[top : top + size, left : left + size]
            height, width = tile.shape[:2]
            source, matrix, whole = _source(samples, _shifted(canvas.matrix, left, top), width, height)
            least_alpha, most_alpha = _alphas(source, border, whole) if has_alpha else (255.0, 255.0)
            if most_alpha == 0:
                tile[...] = 0
            elif not source.size:
                tile[...] = beside[:width]  # NumPy repeats one pixel ten times as slowly as one row
            else:
                warp = _warp if least_alpha == 255 else _warp_transparent
                warp(source, matrix, border, _METHODS[resample], tile)
    return drawn


def _alphas(source: Kept, border: Border, whole: bool) -> tuple[float, float]:
    """The least and the greatest opacity of what a tile takes its pixels from; `whole` if that is the source alone."""
    alphas = [] if whole else [border[-1]]
    if source.size:
        alphas += [float(source[..., -1].min()), float(source[..., -1].max())]
    return min(alphas), max(alphas)


def _shifted(matrix: Matrix, x: int, y: int) -> Matrix:
    """The matrix [2,3] from pixels that are counted from (x, y)."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (x, y)
    return shifted


def _source(samples: Kept, matrix: Matrix, width: int, height: int) -> tuple[Kept, Matrix, bool]:
    """The part of a picture that a tile takes its pixels from, empty if there is none; the matrix to its pixels; and
    whether the tile takes no pixel from beyond the picture.
    """
    sides, whole = [], True
    for (a, b, c), most in zip(matrix.tolist(), (samples.shape[1], samples.shape[0]), strict=True):
        across, down = a * (width - 1), b * (height - 1)
        first = math.floor(c + min(0, across) + min(0, down)) - _REACH
        last = math.ceil(c + max(0, across) + max(0, down)) + _REACH + 1
        sides.append((min(max(first, 0), most), min(max(last, 0), most)))
        whole = whole and (first, last) == sides[-1]
    (left, right), (top, bottom) = sides
    return samples[top:bottom, left:right], matrix - [[0, 0, left], [0, 0, top]], whole


def _with_transparency(samples: Kept) -> npt.NDArray[np.uint8]:
    if has_transparency(samples):
        return samples.astype(np.uint8, copy=False)
    small = (samples >> 8).astype(np.uint8) if samples.dtype == np.uint16 else samples.astype(np.uint8, copy=False)
    colours = small.reshape(*small.shape[:2], -1)
    whole = np.full((*small.shape[:2], colours.shape[2] + 1), 255, np.uint8)
    for channel in range(colours.shape[2]):  # in half of the time that all take at once
        whole[..., channel] = colours[..., channel]
    return whole


def _warp(source: npt.NDArray[Any], matrix: Matrix, border: Border, method: int, drawn: npt.NDArray[Any]) -> None:
    cv2.warpAffine(
        source,
        matrix,
        drawn.shape[1::-1],
        dst=drawn,
        flags=method | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=border,
    )


def _warp_transparent(
    source: npt.NDArray[Any], matrix: Matrix, border: Border, method: int, drawn: npt.NDArray[Any]
) -> None:
    """Colours weighted by their opacity, so that what is under a hole does not show at its edge."""

    def weighted(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        values[..., :-1] *= values[..., -1:] * np.float32(1 / 255)
        return values

    warped = np.empty(drawn.shape, np.float32)
    around = tuple(weighted(np.array(border, np.float32)).tolist())
    _warp(weighted(source.astype(np.float32)), matrix, around, method, warped)
    opacity = warped[..., -1:]
    visible = opacity > 0.5
    np.divide(warped[..., :-1], opacity * np.float32(1 / 255), out=warped[..., :-1], where=visible)
    warped[..., :-1] *= visible  # a kernel that overshoots gives colours to pixels that cannot be seen
    drawn[...] = np.rint(warped).clip(0, 255)
