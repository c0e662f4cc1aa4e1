"""Moments of the ink in a picture: where it is, how large it is, and along which axis it lies.

They turn, move and grow with the picture exactly, without anything to learn. Coordinates are normalised ([-1,1], x
right, y down); the weight of a pixel is how much of it is ink.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Moments", "arctan2", "moments"]

FAINT = 1e-6  # of a pixel of full ink: a picture with less has no axis
SHORT = 1e-18  # of a vector; of an axis, in squared normalised coordinates, rounding is some 1e-8
# of arctan(t) / t, in t squared
_ARCTAN = (
    *(1.0, -0.3333314528, 0.1999355085, -0.1420889944, 0.1065626393),
    *(-0.0752896400, 0.0429096138, -0.0161657367, 0.0028662257),
)


class Moments(NamedTuple):
    """Of N pictures: mass [N] in full pixels, centroid [N,2], root mean square radius [N], and how much more the ink
    spreads along x than along y, and along the diagonal that falls to the right than along the other: [N,2].
    """

    mass: Tensor
    centre: Tensor
    radius: Tensor
    elongation: Tensor

    @property
    def axis(self) -> Tensor:
        """The angle [N] of the main axis, along which the ink spreads most, in [-pi/2, pi/2], counter-clockwise.

        Only on demand: its arctan2 is a third of the work, and most nets do without it.
        """
        level, falling = self.elongation.unbind(1)
        return -0.5 * arctan2(falling, level)


def moments(weight: Tensor) -> Moments:
    """Up to the second central moments: [N,S,S] -> Moments. Without ink: the middle, a radius of about 0, level."""
    side = weight.shape[2]
    centres = ((2 * torch.arange(side, device=weight.device) + 1) / side - 1).to(weight)
    mass = weight.sum((1, 2))
    some = mass.clamp_min(FAINT)
    columns, rows = weight.sum(1), weight.sum(2)
    x, y = (columns @ centres) / some, (rows @ centres) / some
    xx, yy = (columns @ centres**2) / some - x**2, (rows @ centres**2) / some - y**2
    xy = ((weight @ centres) @ centres) / some - x * y
    radius = torch.sqrt((xx + yy).clamp_min(1e-12))
    # y points down, so that a positive xy is an axis that falls to the right.
    return Moments(mass, torch.stack([x, y], 1), radius, torch.stack([xx - yy, 2 * xy], 1))


def arctan2(y: Tensor, x: Tensor) -> Tensor:
    """torch.atan2, within 1e-6, of operators that ONNX Runtime has CUDA kernels for: of Atan it has none. What is
    shorter than `SHORT` has no direction, and its angle a gradient that does not overflow.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 4.4.49 (error 2e-8 over [0, 1]).
    """
    above, beside = y.abs(), x.abs()
    steep = above > beside
    ratio = torch.where(steep, beside, above) / torch.where(steep, above, beside).clamp_min(SHORT)
    square, series = ratio * ratio, torch.zeros_like(ratio)
    for coefficient in reversed(_ARCTAN):
        series = series * square + coefficient
    angle = ratio * series
    angle = torch.where(steep, math.pi / 2 - angle, angle)
    angle = torch.where(x < 0, math.pi - angle, angle)
    return torch.where(y < 0, -angle, angle)
