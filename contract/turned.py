"""Corners of a picture that were filled when a tool turned it: they are no part of what was photographed or scanned.

A turn leaves a right-angled triangle of one colour in every corner of the canvas, whether the canvas grows or not, and
all four tell the same angle.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Map = npt.NDArray[np.float32]

_SAME = 8.0  # grey levels: a fill is of one colour, give or take what JPEG does to it
_RIM = 2  # outermost rows and columns, of which a grown canvas may have one too many
_WINDOW = 5  # pixels, most of which are of the colour where a run of it goes on
_LEAST_LEG = 6  # pixels of an edge that a triangle takes: a smaller one is dirt
_LEAST_FILLED = 0.9  # share of a triangle that is of its colour
_STRIP = 3.0  # pixels along the border of a triangle, beyond it
_MOST_BEYOND = 0.7  # share of that strip that is of the triangle's colour
_LEAST_CORNERS = 3  # a stroke across the picture cuts off two; of four, one may pass into paper of its own brightness
_SAME_TURN = 3.0  # degrees between what two corners tell of the turn
_BLANK = 32.0  # grey levels: what has no more in it is no page that was turned but a solid bar of ink
_MIXED = 2.0  # pixels beyond a triangle's border that the turn has mixed with the fill


class _Corner(NamedTuple):
    """A triangle in a corner of a page. depth: [h,w], pixels from its border, negative within it. degrees: the slope of
    the border, 0..90.
    """

    depth: Map
    colour: float
    degrees: float


def inset(page: Map) -> Map:
    """How many pixels [h,w] a pixel of a page [h,w] of brightness 0..255 lies within the edges of what the page shows:
    those of the canvas and the borders of corners that a turn has filled. In such a corner it is not above 0.
    """
    height, width = page.shape
    rows, columns = (np.arange(side, dtype=np.float32) + np.float32(0.5) for side in (height, width))
    depth: Map = np.minimum(np.minimum(rows, rows[::-1])[:, None], np.minimum(columns, columns[::-1]))
    corners = []
    for down, across in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        if corner := _corner(page[::down, ::across]):
            degrees = corner.degrees if down == across else 90 - corner.degrees  # neighbours are perpendicular
            corners.append(_Corner(corner.depth[::down, ::across], corner.colour, degrees))
    if len(corners) < _LEAST_CORNERS:
        return depth
    colour, degrees = np.median([corner.colour for corner in corners]), np.median([it.degrees for it in corners])
    alike = [it for it in corners if abs(it.colour - colour) <= _SAME and abs(it.degrees - degrees) <= _SAME_TURN]
    if len(alike) < _LEAST_CORNERS:
        return depth
    within: Map = np.min([depth, *(corner.depth - np.float32(_MIXED) for corner in alike)], axis=0)
    shown = page[within > 0]
    return within if shown.size and np.ptp(shown) > _BLANK else depth


def _corner(page: Map) -> _Corner | None:
    """The triangle of one colour in the top left corner of a page [h,w], if there is one."""
    if min(page.shape) < _WINDOW:
        return None
    colour = float(page[0, 0])
    across, down = _run(page[_RIM], colour), _run(page[:, _RIM], colour)
    if not (_LEAST_LEG <= across < page.shape[1] and _LEAST_LEG <= down < page.shape[0]):
        return None
    # The border passes through (across - 1/2, _RIM) and (_RIM, down - 1/2), counted from the corner pixel's centre.
    leg_x, leg_y = across - 0.5 - _RIM, down - 0.5 - _RIM
    x, y = (np.arange(side, dtype=np.float32) - np.float32(_RIM) for side in page.shape[::-1])
    depth = (x * np.float32(leg_y) + (y * np.float32(leg_x))[:, None] - np.float32(leg_x * leg_y)) / np.float32(
        math.hypot(leg_x, leg_y)
    )
    near = slice(down + _WINDOW), slice(across + _WINDOW)
    same, distance = np.abs(page[near] - colour) <= _SAME, depth[near]
    filled, beyond = same[distance < -1], same[(distance > 1) & (distance < 1 + _STRIP)]
    if not filled.size or filled.mean() < _LEAST_FILLED or beyond.mean() > _MOST_BEYOND:
        return None
    return _Corner(depth, colour, math.degrees(math.atan2(leg_y, leg_x)))


def _run(line: Map, colour: float) -> int:
    """How many of the first pixels of a line [n] are of a colour, with few others among them, such as JPEG makes."""
    same = np.abs(line - colour) <= _SAME
    ends = np.convolve(same, np.ones(_WINDOW), "valid") < _WINDOW / 2
    return int(np.argmax(ends)) + _WINDOW // 2 if ends.any() else len(line)
