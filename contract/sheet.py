"""Sheets of paper that lie on a desk, and printed boxes: regions of a page in which the writing is to be looked for."""

import cv2
import numpy as np
import numpy.typing as npt

from contract.paper import Map

Outline = npt.NDArray[np.float32]
"""[k,2]: corners (x, y) of a convex polygon in pixels, counted from the corner of the page."""

_LEAST_SIDE = 75  # pixels of a page at work resolution: in a smaller one strokes are as straight as a sheet's edges
_LEAST_AREA, _MOST_AREA = 0.01, 0.97  # of the page
_LEAST_BESIDE = 0.4  # of the page: what a sheet takes at least that ends with the page
_CONVEX = 0.95  # share of its hull that a region fills at least
_STRAIGHT = (
    0.015  # of its circumference: how far an outline may leave the polygon; a circle takes more than _MOST_CORNERS
)
_MOST_CORNERS = 6  # a sheet has four; the picture's edges may cut off two of them
MARGIN = 3.0  # pixels at work resolution: the edge of a sheet, a line's soft edge
_LEAST_HOLES = 0.002  # of its area: what the content does not fill of a region at least


def find_sheets(content: npt.NDArray[np.bool_], box: tuple[int, int, int, int]) -> list[Outline]:
    """The regions of a page in which something else may be written, largest first: those that its content [h,w] fills
    but for holes, or surrounds, alone or with the edges of the page. They have straight edges, and are neither the
    whole page nor a detail.

    box: left, top, right, bottom (exclusive) of the content.
    """
    height, width = content.shape
    if min(height, width) < _LEAST_SIDE:
        return []
    left, top, right, bottom = box
    filled, surrounded = _outlines(np.pad(content[top:bottom, left:right], 1), (left, top), content.size)
    if left == 0 or top == 0 or right == width or bottom == height:
        # Beyond its edges a page counts as content, for paper beside the strip of a desk is surrounded by both.
        # Strokes that end at the edges leave such regions, too, but small ones.
        regions, _ = _outlines(np.pad(~content, 1), (0, 0), content.size)
        surrounded = [it for it in regions if cv2.contourArea(it) > _LEAST_BESIDE * content.size]
    with_holes = [it for it in filled if (~content[depth_within(it, height, width) > MARGIN]).mean() > _LEAST_HOLES]
    return sorted(surrounded + with_holes, key=cv2.contourArea, reverse=True)


def _outlines(mask: npt.NDArray[np.bool_], corner: tuple[int, int], area: int) -> tuple[list[Outline], list[Outline]]:
    """The straight-edged regions of a part of a page, and their straight-edged holes.

    mask: [h+2,w+2], with a frame of one pixel about the part, which begins at `corner`. area: of the page.
    """
    contours, tree = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found: tuple[list[Outline], list[Outline]] = ([], [])
    for contour, parent in zip(contours, tree[0, :, 3] if contours else (), strict=True):
        outline = _straight(contour.astype(np.float32)[:, 0] + np.array(corner, np.float32) - np.float32(0.5), area)
        if outline is not None:
            found[int(parent >= 0)].append(outline)
    return found


def _straight(contour: Outline, area: int) -> Outline | None:
    """The corners of a region with this contour on a page of that area, if it is as `find_sheet` wants it."""
    filled = cv2.contourArea(contour)
    if not _LEAST_AREA * area < filled < _MOST_AREA * area:
        return None
    hull = cv2.convexHull(contour)
    if filled < _CONVEX * cv2.contourArea(hull):
        return None
    corners = cv2.approxPolyDP(hull, _STRAIGHT * cv2.arcLength(hull, True), True)[:, 0]
    return np.asarray(corners, np.float32) if 4 <= len(corners) <= _MOST_CORNERS else None


def depth_within(outline: Outline, height: int, width: int) -> Map:
    """How many pixels [height,width] a pixel lies within an outline's edges; negative outside."""
    x, y = np.arange(width, dtype=np.float32) + np.float32(0.5), np.arange(height, dtype=np.float32) + np.float32(0.5)
    turn = np.sign(cv2.contourArea(outline, oriented=True))
    depth = np.full((height, width), np.inf, np.float32)
    for (left, top), (right, bottom) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        across, down = turn * (top - bottom), turn * (right - left)
        length = np.float32(np.hypot(across, down))
        np.minimum(depth, ((x - left) * across)[None, :] / length + ((y - top) * down)[:, None] / length, out=depth)
    return depth
