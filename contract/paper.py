"""The brightness of the paper under uneven light: a smooth surface on which most of the picture lies, its frame above
all.

Simple surfaces are tried before flexible ones, and a flexible one is taken only if clearly more of the picture lies on
it: a glyph that fills its picture would bend it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Map = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

_SAMPLES = 700  # points of a regular grid that the surface is fitted to: so few that no BLAS starts threads for them
_LEAST_SIDE = 24  # pixels: smaller pictures have evenly lit paper
_FRAME = 0.12  # share of the shorter side: the frame in which paper is expected
_CORNER = 0.06  # share of the shorter side: the corners, which are asked where no paper is found
_CLEAR = 0.7  # share of the picture that lies on a surface which is surely paper
_GAIN = 0.03  # share of the picture that a more flexible surface must win
_EXPONENTS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (4, 0), (2, 2), (0, 4), (3, 0), (2, 1), (1, 2), (0, 3))
_QUADRATIC, _FLEXIBLE = 6, len(_EXPONENTS)


class Paper(NamedTuple):
    """coefficients: of x^i y^j, exponents as in _EXPONENTS, with x and y in [-1,1] over the page. noise: the standard
    deviation of the paper about its surface, in grey levels.
    """

    coefficients: Vector
    noise: float

    def over(self, box: tuple[float, float, float, float], page: tuple[int, int], size: tuple[int, int]) -> Map:
        """Brightness [h,w] in 0..255 on a grid of `size` = (w, h) over `box` of a page of `page` = (width, height)."""
        x, y = (
            (box[axis] + (np.arange(size[axis]) + 0.5) * ((box[axis + 2] - box[axis]) / size[axis]))
            * (2.0 / page[axis])
            - 1.0
            for axis in (0, 1)
        )
        powers = np.stack([np.ones_like(x), x, x**2, x**3, x**4])
        exponents = _EXPONENTS[: len(self.coefficients)]
        rows = np.zeros((1 + max(j for _, j in exponents), size[0]))  # for every power of y, a polynomial in x
        for (i, j), coefficient in zip(exponents, self.coefficients, strict=True):
            rows[j] += coefficient * powers[i]
        level = np.zeros((size[1], size[0]), np.float32)  # Horner's scheme, without BLAS and its threads
        for row in rows[::-1].astype(np.float32):
            level *= y.astype(np.float32)[:, None]
            level += row
        return np.clip(level, 0.0, 255.0, out=level)


def fit_paper(page: Map, inset: Map) -> Paper:
    """The paper of a page [h,w] of brightness 0..255. inset: [h,w], how many pixels a pixel lies within the edges of
    what the page shows; where it is not above 0, nothing is.
    """
    height, width = page.shape
    step = max(1, int(np.ceil(np.sqrt(page.size / _SAMPLES))))
    rows, columns = (index.ravel() for index in np.mgrid[step // 2 : height : step, step // 2 : width : step])
    shown = inset[rows, columns] > 0
    rows, columns, turned = rows[shown], columns[shown], not shown.all()
    values, to_edge = page[rows, columns].astype(np.float64), inset[rows, columns]
    x, y = (columns + 0.5) * (2.0 / width) - 1.0, (rows + 0.5) * (2.0 / height) - 1.0
    frame = to_edge <= max(_FRAME * min(height, width), float(to_edge.min()))
    even = min(height, width) < _LEAST_SIDE  # so small that strokes would pass for shade and for grain
    grain = 0.0 if even else _grain(page, inset, step)
    fit = _Fit(_terms(x, y), values, frame, min(max(8.0, 2.5 * grain), 48.0))

    levels = (_mode(values, fit.tolerance), float(np.median(values[frame])))
    chosen = flat = fit.best(fit.refine(np.array([level]), 1) for level in levels)
    if not even and fit.can_be_beaten(flat):
        bent = fit.best(fit.refine(guess, _QUADRATIC) for guess in (flat, fit.through_frame(_QUADRATIC)))
        chosen = fit.clearly_best(flat, bent)
        if fit.can_be_beaten(chosen):
            chosen = fit.clearly_best(chosen, fit.refine(bent, _FLEXIBLE))
    if fit.share(chosen) < _CLEAR and not turned:
        chosen = np.array([_corner_level(values, (1.0 - np.abs(x)) * width / 2.0, (1.0 - np.abs(y)) * height / 2.0)])
    distance = np.abs(fit.residual(chosen))
    on_paper = distance[distance < fit.tolerance]
    return Paper(chosen, 1.4826 * float(np.median(on_paper)) if on_paper.size else 0.0)


def _grain(page: Map, inset: Map, step: int) -> float:
    """Standard deviation of the grain, in grey levels: from the median step between neighbours in every `step`-th row
    or column of a page [h,w], whichever is less, as in a narrow picture of a stroke every row has two edges.
    """
    along_rows = np.abs(np.diff(page[::step], axis=1))[inset[::step, 1:] > 0]
    along_columns = np.abs(np.diff(page[:, ::step], axis=0))[inset[1:, ::step] > 0]
    return 1.05 * min(float(np.median(along_rows)), float(np.median(along_columns)))


def _corner_level(values: Vector, across: Vector, down: Vector) -> float:
    """The brightness in a page's corners, of samples [n] that lie `across` and `down` pixels [n] from its edges. Ink
    that fills a picture, as one that was cut to it, leaves them free.
    """
    side = _CORNER * 2.0 * min(float(across.max()), float(down.max()))
    return float(np.median(values[(across <= max(side, across.min())) & (down <= max(side, down.min()))]))


class _Fit:
    """Robust fits of the first few of `terms` [T,n] to `values` [n]; what is nearer than `tolerance` lies on one."""

    def __init__(self, terms: Vector, values: Vector, frame: npt.NDArray[np.bool_], tolerance: float) -> None:
        self.tolerance = tolerance
        self._terms = terms
        self._values = values
        self._frame = frame
        self._importance = 0.5 / len(values) + np.where(frame, 0.5 / frame.sum(), 0.0)

    def residual(self, coefficients: Vector) -> Vector:
        return self._values - coefficients @ self._terms[: len(coefficients)]

    def share(self, coefficients: Vector) -> float:
        """How much of the picture lies on or near a surface, over three tolerances; the frame makes up half of it."""
        distance = np.abs(self.residual(coefficients)) / self.tolerance
        return sum(float(self._importance @ (distance < reach)) for reach in (1.0, 2.0, 4.0)) / 3.0

    def best(self, surfaces: Iterable[Vector]) -> Vector:
        return max(surfaces, key=self.share)

    def clearly_best(self, simple: Vector, flexible: Vector) -> Vector:
        return flexible if self.share(flexible) > self.share(simple) + _GAIN else simple

    def can_be_beaten(self, simple: Vector) -> bool:
        """Whether a flexible surface could be clearly best; it takes most of the time of a page to fit one."""
        return self.share(simple) < 1.0 - _GAIN

    def refine(self, guess: Vector, size: int) -> Vector:
        """Tukey's biweight with a shrinking reach from a first guess, on the first `size` terms."""
        coefficients = np.concatenate([guess, np.zeros(size - len(guess))])
        for reach in (6.0, 6.0, 4.0, 3.0, 3.0):
            squares = np.square(self.residual(coefficients) / (reach * self.tolerance))
            coefficients = _solve(self._terms[:size], self._values, np.square(np.maximum(1.0 - squares, 0.0)))
        return coefficients

    def through_frame(self, size: int) -> Vector:
        """Least absolute deviations in the frame by reweighting: a stroke or a dark edge there has little say."""
        terms, values = self._terms[:size, self._frame], self._values[self._frame]
        coefficients = np.zeros(size)
        coefficients[0] = np.median(values)
        for _ in range(8):
            coefficients = _solve(terms, values, 1.0 / np.maximum(np.abs(values - coefficients @ terms), 1.0))
        return coefficients


def _terms(x: Vector, y: Vector) -> Vector:
    """[T,n]: x^i y^j for the exponents of _EXPONENTS."""
    powers_x, powers_y = ([np.ones_like(v), v, v * v, v * v * v, np.square(v * v)] for v in (x, y))
    return np.stack([powers_x[i] * powers_y[j] for i, j in _EXPONENTS])


def _solve(terms: Vector, values: Vector, weight: Vector) -> Vector:
    weighted = terms * weight
    ridge = 1e-6 * max(float(weight.sum()), 1e-6) * np.eye(len(terms))  # a picture may be a few pixels wide
    ridge[0, 0] *= 1e-3
    return np.asarray(np.linalg.solve(weighted @ terms.T + ridge, weighted @ values))


def _mode(values: Vector, tolerance: float) -> float:
    """The centre of the window of width 2 * tolerance that holds most values."""
    ordered = np.sort(values)
    count = np.searchsorted(ordered, ordered + 2.0 * tolerance, side="right") - np.arange(len(ordered))
    return float(ordered[int(np.argmax(count))] + tolerance)
