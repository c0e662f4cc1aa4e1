"""The user's own picture brought upright: one warp at its own resolution and in its own kind, by OpenCV."""

import math
from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from contract import geometry
from contract.geometry import Canvas, Matrix
from contract.picture_pixels import Kept
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
_MOST_SOURCE = 16_384  # pixels of a side of the source of one tile
_REACH = 5  # pixels around a place that its value may depend on

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
) -> Canvas:
    """Where the upright picture takes its pixels from, for a picture of `width` x `height` pixels.

    matrix: what the model found, canonical to observed in its frame. frame: from there to the picture's pixels. With
    undo "rotation" the content's centre, where the canonical frame's middle is observed, is the pivot; with "all" the
    content goes to where and how it would fill the model's frame canonically.

    Raises:
        GeometryError: a matrix that cannot be undone.
    """
    if undo == "rotation":
        centre = geometry.compose(frame, matrix)[:, 2]
        to_picture = geometry.about(geometry.rotation(geometry.to_parts(matrix).rotation_degrees), centre)
    else:
        to_picture = geometry.compose(frame, matrix, geometry.inverse(frame))
    return geometry.grown(to_picture, width, height) if expand else Canvas(width, height, to_picture)


def fill_of(samples: Kept, wanted: Literal["auto", "transparent"] | Colour) -> Literal["transparent"] | Border:
    """What shows where there is no picture, in the picture's own values; a grey picture takes a colour's luma."""
    if wanted == "transparent":
        return "transparent"
    if wanted == "auto":
        edge = np.concatenate([samples[0], samples[-1], samples[:, 0], samples[:, -1]])
        edge.sort(axis=0)  # np.median takes three times as long for so few
        middle = edge[(len(edge) - 1) // 2], edge[len(edge) // 2]
        return tuple(np.atleast_1d(np.mean(middle, axis=0)).tolist())
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    red, green, blue = wanted
    colour = (0.299 * red + 0.587 * green + 0.114 * blue,) if channels < 3 else (red, green, blue)
    opaque = (255.0,) if channels in (2, 4) else ()
    return tuple(float(value) * (257 if samples.dtype == np.uint16 else 1) for value in (*colour, *opaque))


def draw(samples: Kept, canvas: Canvas, fill: Literal["transparent"] | Border, resample: str) -> Kept:
    """The picture [H,W] or [H,W,C] on its canvas, in the same kind; with fill "transparent" it gets that channel, for
    which 16 bits become 8.
    """
    if fill == "transparent":
        samples = _with_transparency(samples)
        border = (0.0,) * samples.shape[2]
    else:
        border = fill
    drawn = np.empty((canvas.height, canvas.width, *samples.shape[2:]), samples.dtype)
    warp = _method(samples, border)
    size = min(_TILE, max(1, int(_MOST_SOURCE / np.abs(canvas.matrix[:, :2]).sum(axis=1).max())))
    for top in range(0, canvas.height, size):
        for left in range(0, canvas.width, size):
            tile = drawn[top : top + size, left : left + size]
            height, width = tile.shape[:2]
            source, matrix = _source(samples, _shifted(canvas.matrix, left, top), width, height)
            if source.size:
                tile[...] = warp(source, matrix, (width, height), border, _METHODS[resample]).reshape(tile.shape)
            else:
                tile[...] = np.rint(border)
    return drawn


def _method(samples: Kept, border: Border) -> Callable[..., Any]:
    if samples.ndim == 2 or samples.shape[2] == 3 or (border[-1] == 255 and samples[..., -1].min() == 255):
        return _warp
    return _warp_transparent


def _shifted(matrix: Matrix, x: int, y: int) -> Matrix:
    """The matrix [2,3] from pixels that are counted from (x, y)."""
    return geometry.compose(matrix, [[1, 0, x], [0, 1, y]]) if x or y else matrix


def _source(samples: Kept, matrix: Matrix, width: int, height: int) -> tuple[Kept, Matrix]:
    """The part of a picture that a tile takes its pixels from, and the matrix to its pixels; empty if there is none."""
    sides = []
    for (a, b, c), most in zip(matrix.tolist(), (samples.shape[1], samples.shape[0]), strict=True):
        across, down = a * (width - 1), b * (height - 1)
        first = math.floor(c + min(0, across) + min(0, down)) - _REACH
        last = math.ceil(c + max(0, across) + max(0, down)) + _REACH + 1
        sides.append((min(max(first, 0), most), min(max(last, 0), most)))
    (left, right), (top, bottom) = sides
    if left or top:
        matrix = geometry.compose([[1, 0, -left], [0, 1, -top]], matrix)
    return samples[top:bottom, left:right], matrix


def _with_transparency(samples: Kept) -> npt.NDArray[np.uint8]:
    if samples.ndim == 3 and samples.shape[2] in (2, 4):
        return samples.astype(np.uint8, copy=False)
    small = (samples >> 8).astype(np.uint8) if samples.dtype == np.uint16 else samples.astype(np.uint8, copy=False)
    return np.dstack([small, np.full(small.shape[:2], 255, np.uint8)])


def _warp(source: npt.NDArray[Any], matrix: Matrix, size: tuple[int, int], border: Border, method: int) -> Any:
    return cv2.warpAffine(
        source,
        matrix,
        size,
        flags=method | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=border,
    )


def _warp_transparent(
    source: npt.NDArray[Any], matrix: Matrix, size: tuple[int, int], border: Border, method: int
) -> Any:
    """Colours weighted by their opacity, so that what is under a hole does not show at its edge."""

    def weighted(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        values[..., :-1] *= values[..., -1:] * np.float32(1 / 255)
        return values

    warped = _warp(
        weighted(source.astype(np.float32)),
        matrix,
        size,
        tuple(weighted(np.array(border, np.float32)).tolist()),
        method,
    )
    opacity = warped[..., -1:]
    np.divide(warped[..., :-1], opacity * np.float32(1 / 255), out=warped[..., :-1], where=opacity > 0.5)
    return np.rint(warped).clip(0, 255).astype(np.uint8)
