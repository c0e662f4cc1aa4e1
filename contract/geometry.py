"""Transforms of the plane as 2x3 matrices: their parts, inverse and composition, and the frames that they live in.

A matrix [2,3] takes (x, y, 1) to (x, y). The matrix of an observed picture maps the canonical frame to the observed
one, both normalised ([-1,1] over the side of a square, x right, y down, edges at -1 and 1), so that sampling the
observed picture with it gives the upright one. Angles are positive counter-clockwise as seen on screen: a picture
turned by +30 degrees has [[.866, .5, 0], [-.5, .866, 0]].

Pixels are counted from 0 and their centres are integers: a picture of W pixels reaches from -0.5 to W - 0.5. All
functions work in float64.
"""

import math
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
"""[2,3]"""

Group = Literal["SO2", "SE2", "SIM2", "AFF5", "AFF6"]
COEFFICIENTS: Final[dict[Group, tuple[str, ...]]] = {
    "SO2": ("rotation",),
    "SE2": ("rotation", "x", "y"),
    "SIM2": ("rotation", "x", "y", "log_scale"),
    "AFF5": ("rotation", "x", "y", "log_scale_x", "log_scale_y"),
    "AFF6": ("rotation", "x", "y", "log_scale_x", "log_scale_y", "shear"),
}
"""Coordinates of the Lie algebra, in a graph's order: rotation in radians, x and y normalised (2 is the width)."""

_SINGULAR = 1e-9  # of the squared norm of the linear part: a smaller determinant squeezes the plane to a line
_SNAP = 1e-6  # pixels: a corner this close to a whole pixel lies on it
_UNSEEN = 0.125  # pixels that a turn may move a corner without being seen, while drawing all anew for it would blur all


class GeometryError(ValueError):
    """A matrix of the wrong shape, with a number that is not finite, or that cannot be inverted."""


class Parts(NamedTuple):
    """What a matrix does: its linear part is rotation . shear . scale, with shear [[1, tan], [0, 1]].

    rotation_degrees: in (-180, 180], counter-clockwise as seen. translation: x, y as fractions of the width (height), y
    down. scale: x (positive), y (negative where the matrix mirrors). shear_degrees: in (-90, 90).
    """

    rotation_degrees: float
    translation: tuple[float, float]
    scale: tuple[float, float]
    shear_degrees: float


class Canvas(NamedTuple):
    """The pixels on which a transformed picture is drawn: width, height, and the matrix from its pixels to those of the
    picture.
    """

    width: int
    height: int
    matrix: Matrix


def rotation(degrees: float) -> Matrix:
    """The matrix of a picture that was turned counter-clockwise by `degrees` about the middle of its frame.

    Whole quarters are exact.
    """
    quarters, rest = divmod(degrees, 90.0)
    cos, sin = np.cos(np.radians(rest)), np.sin(np.radians(rest))
    for _ in range(int(quarters) % 4):
        cos, sin = -sin, cos
    return np.array([[cos, sin, 0.0], [-sin, cos, 0.0]]) + 0.0  # + 0.0: no negative zeros


def to_parts(matrix: npt.ArrayLike) -> Parts:
    """Rotation, translation, scale and shear of a matrix [2,3]: the QR decomposition of its linear part.

    Raises:
        GeometryError: not a matrix [2,3] of finite numbers that can be inverted.
    """
    (a, b, x), (c, d, y) = checked(matrix).tolist()
    scale_x = math.hypot(a, c)
    scale_y = (a * d - b * c) / scale_x
    degrees = math.degrees(math.atan2(-c, a))
    shear = math.degrees(math.atan((a * b + c * d) / (scale_x * scale_y)))
    return Parts(180.0 if degrees == -180.0 else degrees + 0.0, (x / 2, y / 2), (scale_x, scale_y), shear + 0.0)


def checked(matrix: npt.ArrayLike) -> Matrix:
    """`matrix` as float64 [2,3].

    Raises:
        GeometryError: another shape, a number that is not finite, or a matrix that cannot be inverted.
    """
    try:
        array = np.array(matrix, np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"not a matrix of numbers: {error}") from None
    if array.shape != (2, 3):
        raise GeometryError(f"a transform of the plane is a matrix [2,3], this has the shape {list(array.shape)}")
    (a, b, x), (c, d, y) = array.tolist()  # NumPy takes ten times as long for six numbers
    if not all(map(math.isfinite, (a, b, x, c, d, y))):
        raise GeometryError("the matrix has a number that is not finite")
    if not abs(a * d - b * c) > _SINGULAR * (a * a + b * b + c * c + d * d):  # nan, of overflow, is no more
        raise GeometryError("the matrix squeezes the plane to a line or a point and cannot be inverted")
    return array


def compose(first: npt.ArrayLike, *rest: npt.ArrayLike) -> Matrix:
    """The product of matrices [2,3]: coordinates pass the last one first.

    Raises:
        GeometryError: one of them is no such matrix, see `checked`.
    """
    product = checked(first)
    for factor in rest:
        shift = product[:, 2]
        product = product[:, :2] @ checked(factor)
        product[:, 2] += shift
    return product


def inverse(matrix: npt.ArrayLike) -> Matrix:
    """[2,3] -> [2,3], so that either product with `matrix` is the identity.

    Raises:
        GeometryError: there is none.
    """
    (a, b, x), (c, d, y) = checked(matrix).tolist()
    one = a * d - b * c
    rows = [[d / one, -b / one, (b * y - d * x) / one], [-c / one, a / one, (c * x - a * y) / one]]
    return np.array(rows) + 0.0


def apply(matrix: npt.ArrayLike, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Points (x, y) [..., 2] through a matrix [2,3]."""
    array = checked(matrix)
    return np.asarray(points, np.float64) @ array[:, :2].T + array[:, 2]


def frame(left: float, top: float, width: float, height: float) -> Matrix:
    """From normalised coordinates to pixels, of a frame whose edges are `left` and `top` and which is `width` x
    `height`, in pixels counted from the picture's corner (a picture's own frame: 0, 0, width, height).

    Raises:
        GeometryError: it has no area, or a number is not finite.
    """
    if not (math.isfinite(left + top) and 0 < width < math.inf and 0 < height < math.inf):
        raise GeometryError(f"a frame at {left:g}, {top:g} of {width:g} x {height:g} pixels has no area or no end")
    return np.array([[width / 2, 0.0, left + width / 2 - 0.5], [0.0, height / 2, top + height / 2 - 0.5]])


def about(matrix: npt.ArrayLike, centre: npt.ArrayLike) -> Matrix:
    """The linear part of `matrix` [2,3] about a point (x, y), which stays where it is."""
    array = checked(matrix)
    point = np.asarray(centre, np.float64)
    array[:, 2] = point - array[:, :2] @ point
    return array


def grown(matrix: npt.ArrayLike, width: int, height: int, corners: npt.ArrayLike | None = None) -> Canvas:
    """The smallest canvas that holds all of a picture of `width` x `height` pixels, or what lies between `corners`
    [k,2] of it, in pixels from the picture's own corner.

    `matrix` maps pixels of the wanted picture to pixels of the given one; the canvas' matrix is the same, counted from
    its own corner. Turned by whole quarters, pixels lie on pixels; so they do where that moves none by as much as can
    be seen, or a picture that is upright would grow by a pixel, and blur, whenever it is sent again.
    """
    array = checked(matrix)
    whole = np.rint(array[:, :2])
    if np.array_equal(whole @ whole.T, np.eye(2)):
        corner = np.abs(whole.T) @ (width / 2, height / 2)
        if (np.abs(array[:, :2] - whole) @ corner).max() <= _UNSEEN:
            array = np.column_stack([whole, (0.0, 0.0)])
    ends = [(0, 0), (width, 0), (0, height), (width, height)] if corners is None else np.asarray(corners).tolist()
    (across, left), (down, top) = (
        _extent([a * (x - 0.5) + b * (y - 0.5) + c for x, y in ends]) for a, b, c in inverse(array).tolist()
    )
    array[:, 2] += array[:, :2] @ (left, top)
    return Canvas(across, down, array)


def _extent(corners: list[float]) -> tuple[int, float]:
    """How many pixels reach over corners, and the centre of the first of them; what rounding adds is on both sides."""
    low, high = min(corners), max(corners)
    size = max(math.ceil(high - low - _SNAP), 1)
    first = low + 0.5 - (size - (high - low)) / 2
    nearest = float(round(first))
    return size, nearest if abs(first - nearest) < _SNAP else first
