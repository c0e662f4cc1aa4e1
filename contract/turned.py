"""Corners of a picture that were filled when a tool turned it: they are no part of what was photographed or scanned.

A turn leaves a right-angled triangle of one colour in every corner of the canvas, whether the canvas grows or not, and
all four tell the same angle.
"""

import math
from typing import NamedTuple

import numpy as np

from contract.paper import Map
from contract.sheet import Outline

_View = tuple[slice, slice]

_SAME = 8.0  # grey levels: a fill is of one colour, give or take what JPEG does to it
_RIM = 2  # outermost rows and columns, of which a grown canvas may have one too many
_WINDOW = 5  # pixels, most of which are of the colour where a run of it goes on
_LEAST_SIDE = 75  # pixels: in a smaller page the corners that a ring or a 0 leaves are as straight as a triangle's
_LEAST_LEG = 6  # pixels of an edge that a triangle takes: a smaller one is dirt
_LEAST_FILLED = 0.9  # share of a triangle that is of its colour
_STRIP = 3.0  # pixels along the border of a triangle, beyond it
_MOST_BEYOND = 0.7  # share of that strip that is of the triangle's colour
_LEAST_CORNERS = 3  # a stroke across the picture cuts off two; of four, one may pass into paper of its own brightness
_SAME_TURN = 3.0  # degrees between what two corners tell of the turn
_BLANK = 32.0  # grey levels: what has no more in it is no page that was turned but a solid bar of ink
_MIXED = 2.0  # pixels beyond a triangle's border that the turn has mixed with the fill


class _Corner(NamedTuple):
    """A triangle in the top left corner of a page. leg_x, leg_y: pixels from where the row and the column _RIM cross to
    its border, along them; colour: in grey levels.
    """

    leg_x: float
    leg_y: float
    colour: float

    @property
    def degrees(self) -> float:
        """The slope of the border, 0..90."""
        return math.degrees(math.atan2(self.leg_y, self.leg_x))

    @property
    def reach(self) -> tuple[float, float]:
        """Pixels from the page's corner, along its edges, to where the fill is no longer mixed in."""
        longer = 1 + _MIXED * math.hypot(self.leg_x, self.leg_y) / (self.leg_x * self.leg_y)
        x, y = self.leg_x * longer, self.leg_y * longer
        return _RIM + x * (1 + _RIM / y), _RIM + y * (1 + _RIM / x)

    def depth(self, height: int, width: int) -> Map:
        """Pixels [height,width] from the border, negative within the triangle."""
        x, y = (np.arange(side, dtype=np.float32) - np.float32(_RIM) for side in (width, height))
        length = math.hypot(self.leg_x, self.leg_y)
        across, down = x * np.float32(self.leg_y / length), y * np.float32(self.leg_x / length)
        return np.asarray(across + (down - np.float32(self.leg_x * self.leg_y / length))[:, None])


def inset(page: Map) -> Map:
    """How many pixels [h,w] a pixel of a page [h,w] of brightness 0..255 lies within the edges of what the page shows:
    those of the canvas and the borders of corners that a turn has filled. In such a corner it is not above 0.
    """
    edges = _depth_of_edges(*page.shape)
    return edges if min(page.shape) < _LEAST_SIDE else _within(page, edges, _corners(page))


def filled_corners(page: Map) -> list[Outline]:
    """The corners of a page [h,w] of brightness 0..255 that a turn has filled, with what it has mixed with the fill."""
    height, width = page.shape
    corners = _corners(page) if min(page.shape) >= _LEAST_SIDE else []
    edges = _depth_of_edges(height, width)
    if not corners or _within(page, edges, corners) is edges:
        return []
    triangles = []
    for (down, across), corner in corners:
        x, y = corner.reach
        triangle = np.array([(0, 0), (x, 0), (0, y)], np.float32)
        triangles.append(
            np.abs(triangle - np.array((width if across.step else 0, height if down.step else 0), np.float32))
        )
    return triangles


def _depth_of_edges(height: int, width: int) -> Map:
    rows, columns = (np.arange(side, dtype=np.float32) + np.float32(0.5) for side in (height, width))
    edges: Map = np.minimum(np.minimum(rows, rows[::-1])[:, None], np.minimum(columns, columns[::-1]))
    return edges


def _corners(page: Map) -> list[tuple[_View, _Corner]]:
    """The filled corners of a page, each with how to see it at the top left; none where they do not tell one turn."""
    views = [(slice(None, None, down), slice(None, None, across)) for down in (None, -1) for across in (None, -1)]
    corners = [(view, corner) for view in views if (corner := _corner(page[view]))]
    if len(corners) < _LEAST_CORNERS:
        return []
    # Neighbouring borders are perpendicular.
    turns = [it.degrees if view[0] == view[1] else 90 - it.degrees for view, it in corners]
    colour, turn = np.median([it.colour for _, it in corners]), np.median(turns)
    alike = [
        it
        for it, degrees in zip(corners, turns, strict=True)
        if abs(it[1].colour - colour) <= _SAME and abs(degrees - turn) <= _SAME_TURN
    ]
    return alike if len(alike) >= _LEAST_CORNERS else []


def _within(page: Map, edges: Map, corners: list[tuple[_View, _Corner]]) -> Map:
    """How far a pixel lies within the borders of the corners, too; `edges` itself where they leave no page."""
    if not corners:
        return edges
    within = edges.copy()
    for view, corner in corners:
        np.minimum(within, corner.depth(*page.shape)[view] - np.float32(_MIXED), out=within)
    shown = page[within > 0]
    return within if shown.size and np.ptp(shown) > _BLANK else edges


def _corner(page: Map) -> _Corner | None:
    """The triangle of one colour in the top left corner of a page [h,w], if there is one."""
    colour = float(page[0, 0])
    across, down = _run(page[_RIM], colour), _run(page[:, _RIM], colour)
    if not (_LEAST_LEG <= across < page.shape[1] and _LEAST_LEG <= down < page.shape[0]):
        return None
    corner = _Corner(across - 0.5 - _RIM, down - 0.5 - _RIM, colour)
    same = np.abs(page[: down + _WINDOW, : across + _WINDOW] - colour) <= _SAME
    distance = corner.depth(*same.shape)
    filled, beyond = same[distance < -1], same[(distance > 1) & (distance < 1 + _STRIP)]
    return corner if filled.size and filled.mean() >= _LEAST_FILLED and beyond.mean() <= _MOST_BEYOND else None


def _run(line: Map, colour: float) -> int:
    """How many of the first pixels of a line [n] are of a colour, with few others among them, such as JPEG makes."""
    same = np.abs(line - colour) <= _SAME
    ends = np.convolve(same, np.ones(_WINDOW), "valid") < _WINDOW / 2
    return int(np.argmax(ends)) + _WINDOW // 2 if ends.any() else len(line)
