"""Finding what is written on a page: its polarity, its ink and the box around it."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from contract.paper import Map, Paper, fit_paper
from contract.sheet import MARGIN, Outline, depth_within
from contract.turned import inset

WORK_SIDE = 512  # pixels of the longer side at which a page is searched
_EDGE = 0.06  # share of the shorter side: what touches the edge and stays in here is the scanner's, not the writer's
_LINE = 0.025  # of the shorter side: the outermost edge, where a scanner leaves a line, tells no polarity
_LEAST_CONTRAST = 0.06  # of the full range: fainter marks are shade, not ink
_NOISE = 5.0  # standard deviations of the paper
_FAINT = 0.15  # of the ink's strength: where a stroke's soft edge ends
_STRONG = 0.4  # of the ink's strength: every part of the content has such a pixel
_LEAST_SHARE = 0.1  # of the mass of all marks: what the ink makes up at least, if the rest is shade
_MOST_FRINGE = 2.0  # times the area of its solid part: the most that soft edges add to the content
_SPECK = 0.03  # of the mass of the heaviest part: lighter parts are dirt
_NEAR = 0.5  # of the diagonal of the content so far: farther parts are something else


@dataclass(frozen=True, slots=True)
class Page:
    """A picture understood as ink on paper.

    polarity: "dark" or "light", the brightness of the ink. paper: its brightness over the whole picture.
    ink: [h,w] at work resolution, the strength of the ink in 0..1, 0 outside the content. reduction: pixels of the
    picture a side of one pixel of `ink`. strength: of solid ink; 0 where there is no content. floor: what is fainter is
    paper. box: left, top, right, bottom of the content in pixels of `ink` (right and bottom exclusive).
    """

    polarity: str
    paper: Paper
    ink: Map
    reduction: int
    strength: float
    floor: float
    box: tuple[int, int, int, int]


def read_page(grey: Image.Image, polarity: str | None = None, sheet: Outline | None = None) -> Page:
    """Find paper, content and, where it is not given, polarity of a picture of mode L, of any size.

    sheet: in pixels of the picture, what is looked at alone.
    """
    work, reduction = at_work_resolution(grey)
    height, width = work.shape
    depth = inset(work)
    if sheet is not None:
        depth = np.minimum(depth, depth_within(sheet / np.float32(reduction), height, width) - np.float32(MARGIN))
    paper = fit_paper(work, depth)
    level = paper.over((0, 0, width, height), (width, height), (width, height))
    residual = work - level
    residual[depth <= 0] = 0
    polarity = polarity or _polarity(np.where(depth > _LINE * min(height, width), residual, 0), paper.noise)
    grain = _NOISE * paper.noise
    ink = np.where(
        residual < -grain if polarity == "dark" else residual > grain, strength_of_ink(work, level, polarity), 0
    )
    strong = ink[ink > _LEAST_CONTRAST]
    blank = Page(polarity, paper, np.zeros_like(ink), reduction, 0.0, 1.0, (0, 0, width, height))
    if strong.size == 0:
        return blank
    strength = _strength(strong)
    floor, solid = max(_FAINT * strength, _LEAST_CONTRAST), max(_STRONG * strength, _LEAST_CONTRAST)
    content, box = _content(ink, depth, floor, solid)
    core, core_box = _content(ink, depth, solid, solid)
    if _area(box) > _MOST_FRINGE * _area(core_box):  # not a soft edge but a shadow that touches the content
        content, box, floor = core, core_box, solid
    if not content.any():
        return blank
    strength = float(np.percentile(ink[content & (ink >= solid)], 70))
    grain /= 255.0 if polarity == "light" else max(32.0, float(level[content].min()))
    return Page(polarity, paper, np.where(content, ink, 0), reduction, strength, max(floor, grain), box)


def at_work_resolution(grey: Image.Image) -> tuple[Map, int]:
    """Brightness [h,w] in 0..255, and how many pixels of the picture are a side of one of its own."""
    reduction = max(1, -(-max(grey.size) // WORK_SIDE))
    return np.asarray(grey.reduce(reduction) if reduction > 1 else grey, np.float32), reduction


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _strength(marks: Map) -> float:
    """The strength of ink among marks [n], some of which may be shade: the median of the stronger class (Otsu 1979)."""
    ordered = np.sort(marks).astype(np.float64)
    below = np.cumsum(ordered)
    count = np.arange(1, len(ordered) + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = below / count, (below[-1] - below) / (count[-1] - count)
        between = count * (count[-1] - count) * np.square(means[1] - means[0])
    between[-1] = 0.0
    between[below > (1.0 - _LEAST_SHARE) * below[-1]] = -1.0  # a few dark specks are not the ink
    cut = int(np.argmax(between)) + 1
    return float(np.median(ordered[cut:])) if cut < len(ordered) else float(ordered[-1])


def strength_of_ink(grey: Map, paper: Map, polarity: str) -> Map:
    """Ink [h,w] in 0..1 from brightness [h,w] in 0..255 on paper of brightness [h,w].

    Dark ink takes a share of the light that the paper gives back, so that shade cancels; light ink adds to the dark.
    """
    if polarity == "dark":
        return np.asarray(np.clip((paper - grey) / np.maximum(paper, 32.0), 0.0, 1.0), np.float32)
    return np.asarray(np.clip((grey - paper) / 255.0, 0.0, 1.0), np.float32)


def _polarity(residual: Map, noise: float) -> str:
    """Ink is what stands out more from the paper; `residual` [h,w] is brightness beyond the paper's."""
    threshold = max(4.0 * noise, 8.0)
    darker = np.square(residual[residual < -threshold]).sum()
    lighter = np.square(residual[residual > threshold]).sum()
    return "dark" if darker >= lighter else "light"


def _content(
    ink: Map, depth: Map, floor: float, strong: float
) -> tuple[npt.NDArray[np.bool_], tuple[int, int, int, int]]:
    """Mask [h,w] of the parts that make up the content, and the box around them.

    A part is a connected region of ink above `floor` that has a pixel above `strong`. The heaviest part that is not a
    line along the picture's edge is content; so are parts near it that are more than a speck.
    """
    height, width = ink.shape
    above = ink > floor
    marked_rows, marked_columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    if not marked_rows.size:
        return np.zeros(ink.shape, np.bool_), (0, 0, width, height)
    # All marks lie in here, on most pages in a small part of it.
    first_row, first_column = int(marked_rows[0]), int(marked_columns[0])
    marked = np.s_[first_row : int(marked_rows[-1]) + 1, first_column : int(marked_columns[-1]) + 1]
    spots = above[marked]
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(spots.view(np.uint8), connectivity=8)
    part, weight, within = labels[spots], ink[marked][spots], depth[marked][spots]

    def counted(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        return np.bincount(part[chosen], minlength=count)

    mass = np.bincount(part, weight, count)
    left, top = boxes[:, cv2.CC_STAT_LEFT] + first_column, boxes[:, cv2.CC_STAT_TOP] + first_row
    right, bottom = left + boxes[:, cv2.CC_STAT_WIDTH], top + boxes[:, cv2.CC_STAT_HEIGHT]

    central = within > _EDGE * min(height, width)
    line = (counted(within <= 1) > 0) & (np.bincount(part, weight * central, count) < 0.1 * mass)
    good = counted(weight >= strong) > 0
    if (good & ~line).any():
        good &= ~line
    if not good.any():
        return np.zeros(ink.shape, np.bool_), (0, 0, width, height)

    heaviest = int(np.argmax(np.where(good, mass, -1.0)))
    good &= mass >= _SPECK * mass[heaviest]
    box = [left[heaviest], top[heaviest], right[heaviest], bottom[heaviest]]
    taken = np.zeros(count, np.bool_)
    taken[heaviest] = True
    while True:
        gap_x = np.maximum(np.maximum(left - box[2], box[0] - right), 0)
        gap_y = np.maximum(np.maximum(top - box[3], box[1] - bottom), 0)
        near = good & ~taken & (np.hypot(gap_x, gap_y) <= _NEAR * np.hypot(box[2] - box[0], box[3] - box[1]))
        if not near.any():
            break
        taken |= near
        box = [left[taken].min(), top[taken].min(), right[taken].max(), bottom[taken].max()]
    content = np.zeros(ink.shape, np.bool_)
    content[marked] = taken[labels]
    return content, (int(box[0]), int(box[1]), int(box[2]), int(box[3]))
