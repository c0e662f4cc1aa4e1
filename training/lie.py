"""Groups of plane transforms: generators, exponentials, inverse, composition, sampling grids.

A transform is a matrix [N,2,3] of normalised coordinates ([-1,1], x right, y down, align_corners=False) that maps the
canonical frame to the observed image: sampling the observed image with it gives the upright one. The convention is
`contract.geometry`'s, and so are names, order and units of the coefficients of the Lie algebra, `COEFFICIENTS`. A
positive rotation turns what is seen counter-clockwise, a positive log scale enlarges it.

M = exp(sum_i c_i G_i) is one exponential of the sum, not a product of factors: x and y are the shift itself only
without rotation and scale, and where log_scale_x and log_scale_y differ a turned matrix has other scales and some
shear when it is taken apart as rotation . shear . scale. SO2, SE2, SIM2 and AFF6 are groups. The matrices of AFF5 are
not closed under composition, so transforms are always composed as matrices, never as coefficients. No coefficients give
a reflection, or some turned and unequally scaled matrices (exp does not reach all of GL+(2)).

Everything is elementary functions of tensors, with finite gradients everywhere: removable singularities are evaluated
as a series, chosen by two `where`, the inner one of which keeps the other branch's gradient finite. Exportable at
opset 18.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, assert_never

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contract.geometry import Group

__all__ = ["DIMENSIONS", "compose", "exponential", "generators", "grid", "inverse", "resample", "shift_factor"]

_ROTATION = [[0, 1, 0], [-1, 0, 0]]
_X, _Y = [[0, 0, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 1]]
_SCALE_X, _SCALE_Y = [[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]
_GENERATORS: dict[Group, list[list[list[int]]]] = {
    "SO2": [_ROTATION],
    "SE2": [_ROTATION, _X, _Y],
    "SIM2": [_ROTATION, _X, _Y, [[1, 0, 0], [0, 1, 0]]],
    "AFF5": [_ROTATION, _X, _Y, _SCALE_X, _SCALE_Y],
    "AFF6": [_ROTATION, _X, _Y, _SCALE_X, _SCALE_Y, [[0, 1, 0], [0, 0, 0]]],
}
DIMENSIONS: dict[Group, int] = {group: len(matrices) for group, matrices in _GENERATORS.items()}

# Gauss-Legendre on [0,1]: twelve nodes integrate exp(t z) to double precision for |z| <= 8.
_NODES, _WEIGHTS = (value / 2 for value in np.polynomial.legendre.leggauss(12))
_NODES = _NODES + 0.5
# sum_k z^k / (2k+1)! and sum_k z^k / (2k)! up to k = 5 as nested quotients: double precision for |z| <= 0.1.
_SINC_QUOTIENTS = [2 * k * (2 * k + 1) for k in range(5, 0, -1)]
_COS_QUOTIENTS = [2 * k * (2 * k - 1) for k in range(5, 0, -1)]
_NEAR = 0.1


def generators(group: Group) -> Tensor:
    """G_i, the first two rows of each (the third is 0): [G,2,3]"""
    return torch.tensor(_GENERATORS[group], dtype=torch.get_default_dtype())


def exponential(group: Group, coefficients: Tensor) -> Tensor:
    """exp(sum_i c_i G_i): [N,G] -> matrix [N,2,3], in the dtype of the coefficients."""
    columns = coefficients.unbind(1)
    match group:
        case "SO2":
            turn = coefficients[:, :, None]
            return torch.cos(turn) * torch.eye(2, 3).to(turn) + torch.sin(turn) * generators("SO2").to(turn)
        case "SE2":
            return _rigid(*columns)
        case "SIM2":
            return _similarity(*columns)
        case "AFF5":
            rotation, x, y, log_x, log_y = columns
            return _affine(log_x, rotation, -rotation, log_y, x, y)
        case "AFF6":
            rotation, x, y, log_x, log_y, shear = columns
            return _affine(log_x, rotation + shear, -rotation, log_y, x, y)
        case _:
            assert_never(group)


def shift_factor(rotation: Tensor, log_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the exponential of SE2, or SIM2, makes of the coefficients x and y: along and across [N] with the shift

        along x + across y, along y - across x.

    With w = log_scale + i rotation and complex shifts it is (exp(w) - 1) / w = exp(w/2) sinh(w/2) / (w/2). The second
    form loses no digits near 0, as the first does.
    """
    if log_scale is None:
        return _sinc(rotation), torch.sin(rotation / 2) * _sinc(rotation / 2)
    half_angle, half_scale = rotation / 2, log_scale / 2
    real, imaginary = _complex_sinhc(half_scale, half_angle)
    growth, cos, sin = torch.exp(half_scale), torch.cos(half_angle), torch.sin(half_angle)
    return growth * (cos * real - sin * imaginary), growth * (cos * imaginary + sin * real)


def inverse(matrix: Tensor) -> Tensor:
    """[N,2,3] -> [N,2,3]; adjugate over determinant of the linear part."""
    (a, b, x), (c, d, y) = (row.unbind(1) for row in matrix.unbind(1))
    determinant = a * d - b * c
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    return _matrix(a, b, -(a * x + b * y), c, d, -(c * x + d * y))


def compose(a: Tensor, b: Tensor) -> Tensor:
    """The product a b, a after b on coordinates: [N,2,3], [N,2,3] -> [N,2,3].

    On images the order is the other way round: resampling with a and the result with b is resampling with a b.
    """
    linear = a[:, :, :2]
    return torch.cat([linear @ b[:, :, :2], linear @ b[:, :, 2:] + a[:, :, 2:]], 2)


def grid(matrix: Tensor, side: int) -> Tensor:
    """Where each pixel of the result is sampled, as `F.grid_sample` takes it: [N,2,3] -> [N,side,side,2] of (x, y).

    `F.affine_grid` with align_corners=False, built from a constant so that an exported graph holds one product and no
    subgraph of shapes: a canonicaliser runs at about twice the rate of the one with `F.affine_grid`.
    """
    base = torch.from_numpy(_pixel_centres(side)).to(matrix)
    return (base @ matrix.transpose(1, 2)).reshape(-1, side, side, 2)


def resample(
    images: Tensor,
    matrix: Tensor,
    mode: Literal["bilinear", "bicubic", "nearest"] = "bilinear",
    padding: Literal["zeros", "border", "reflection"] = "zeros",
) -> Tensor:
    """Square images sampled through the matrix: [N,C,S,S], [N,2,3] -> [N,C,S,S]

    With the matrix of an observed image this is the upright image; with the inverse it turns an upright image into the
    observed one.
    """
    where = grid(matrix, images.shape[-1])
    return F.grid_sample(images, where, mode=mode, padding_mode=padding, align_corners=False)


@lru_cache
def _pixel_centres(side: int) -> np.ndarray:
    """Homogeneous coordinates (x, y, 1) of the pixels' centres, row after row: [side^2,3]"""
    centres = (2 * np.arange(side) + 1) / side - 1
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.ones(side * side)], 1)


# --- exponentials, all arguments [N] ----------------------------------------------------------------------------------


def _matrix(a: Tensor, b: Tensor, x: Tensor, c: Tensor, d: Tensor, y: Tensor) -> Tensor:
    """[[a, b, x], [c, d, y]]: [N,2,3]"""
    return torch.stack([torch.stack([a, b, x], 1), torch.stack([c, d, y], 1)], 1)


def _turned(cos: Tensor, sin: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _matrix(cos, sin, x, -sin, cos, y)


def _rigid(rotation: Tensor, x: Tensor, y: Tensor) -> Tensor:
    along, across = shift_factor(rotation)
    return _turned(torch.cos(rotation), torch.sin(rotation), along * x + across * y, along * y - across * x)


def _similarity(rotation: Tensor, x: Tensor, y: Tensor, log_scale: Tensor) -> Tensor:
    along, across = shift_factor(rotation, log_scale)
    scale = torch.exp(log_scale)
    return _turned(
        scale * torch.cos(rotation), scale * torch.sin(rotation), along * x + across * y, along * y - across * x
    )


def _affine(a: Tensor, b: Tensor, c: Tensor, d: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """exp of [[a, b, x], [c, d, y], [0, 0, 0]].

    With L = m I + N, N traceless, N^2 = -D I (Cayley-Hamilton): exp(tL) = exp(tm) (cos(tq) I + sin(tq) / q N), q the
    root of D; cosh and sinh where D < 0. The shift is (int_0^1 exp(tL) dt) (x, y): the quotient (exp L - I) L^-1
    without its cancellation, and without its poles where an eigenvalue vanishes.
    """
    mean, difference = (a + d) / 2, (a - d) / 2
    discriminant = -(difference**2 + b * c)

    time = torch.tensor([*_NODES, 1.0]).to(mean)
    cos, sinc = _cos_and_sinc_of_root(discriminant[:, None] * time**2)
    growth = torch.exp(mean[:, None] * time)
    of_unit, of_turning = growth * cos, growth * sinc * time
    weights = torch.tensor(_WEIGHTS).to(mean)
    unit, turning = of_unit[:, -1], of_turning[:, -1]
    unit_shift, turning_shift = of_unit[:, :-1] @ weights, of_turning[:, :-1] @ weights
    return _matrix(
        unit + turning * difference,
        turning * b,
        unit_shift * x + turning_shift * (difference * x + b * y),
        turning * c,
        unit - turning * difference,
        unit_shift * y + turning_shift * (c * x - difference * y),
    )


# --- functions with removable singularities ---------------------------------------------------------------------------


def _sinc(x: Tensor) -> Tensor:
    """sin(x) / x"""
    near = x.abs() < _NEAR
    far = torch.where(near, 1.0, x)
    square = x * x
    return torch.where(near, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), torch.sin(far) / far)


def _cos_and_sinc_of_root(square: Tensor) -> tuple[Tensor, Tensor]:
    """cos(sqrt(s)) and sin(sqrt(s)) / sqrt(s), cosh and sinh where s < 0: entire functions of s.

    cosh and sinh are written with exp: ONNX Runtime has no CUDA kernels for them.
    """
    near, positive = square.abs() < _NEAR, square > 0
    root = torch.sqrt(torch.where(near, 1.0, square.abs()))
    # Each branch is spared the other's arguments: exp of a large angle would overflow into the gradient.
    angle, rapidity = torch.where(positive, root, 1.0), torch.where(positive, 1.0, root)
    growth = torch.exp(rapidity)
    cos = torch.where(positive, torch.cos(angle), (growth + 1 / growth) / 2)
    sinc = torch.where(positive, torch.sin(angle) / angle, (growth - 1 / growth) / (2 * rapidity))
    small = torch.where(near, square, 0.0)
    cos_series: Tensor | float = 1.0
    sinc_series: Tensor | float = 1.0
    for cos_quotient, sinc_quotient in zip(_COS_QUOTIENTS, _SINC_QUOTIENTS, strict=True):
        cos_series, sinc_series = 1 - small / cos_quotient * cos_series, 1 - small / sinc_quotient * sinc_series
    return torch.where(near, cos_series, cos), torch.where(near, sinc_series, sinc)


def _complex_sinhc(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """sinh(z) / z of z = real + i imaginary: its real and imaginary part."""
    norm = real * real + imaginary * imaginary
    near = norm < _NEAR
    norm = torch.where(near, 1.0, norm)
    growth = torch.exp(real)
    sinh_real = (growth - 1 / growth) / 2 * torch.cos(imaginary)
    sinh_imaginary = (growth + 1 / growth) / 2 * torch.sin(imaginary)
    quotient_real = (sinh_real * real + sinh_imaginary * imaginary) / norm
    quotient_imaginary = (sinh_imaginary * real - sinh_real * imaginary) / norm
    square_real = torch.where(near, real * real - imaginary * imaginary, 0.0)
    square_imaginary = torch.where(near, 2 * real * imaginary, 0.0)
    series_real, series_imaginary = 1 + square_real / _SINC_QUOTIENTS[0], square_imaginary / _SINC_QUOTIENTS[0]
    for quotient in _SINC_QUOTIENTS[1:]:
        product_real = square_real * series_real - square_imaginary * series_imaginary
        product_imaginary = square_real * series_imaginary + square_imaginary * series_real
        series_real, series_imaginary = 1 + product_real / quotient, product_imaginary / quotient
    return torch.where(near, series_real, quotient_real), torch.where(near, series_imaginary, quotient_imaginary)
