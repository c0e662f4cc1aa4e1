"""Known transforms of upright pictures, and the error of the pose a model finds in them.

Matrices [N,2,3] are those of training/lie.py: canonical frame -> observed picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from training.lie import compose, inverse, resample
from training.models.pose import Pose
from training.rotation import wrapped

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = [
    "FLIP_DEGREES",
    "PROBE_DEGREES",
    "RelativeError",
    "error_figures",
    "move",
    "move_by_two",
    "relative_error",
    "require_upright",
    "similarity",
    "uniform",
]

PROBE_DEGREES = 60.0  # pictures are turned by up to this for the figures named _60, whatever the model's range
FLIP_DEGREES = 90.0  # an error above this is a flip

Interpolation = Literal["bilinear", "bicubic"]


def require_upright(data: LabelledImages, what: str) -> None:
    """
    Raises:
        ValueError: the pictures are turned already, which `what` would take for upright.
    """
    if data.turns is not None:
        raise ValueError(f"{what} needs upright pictures: these are turned already")


def uniform(count: int, limit: float, generator: torch.Generator, columns: int = 1) -> Tensor:
    """[count] in +-limit, or [count,columns]"""
    drawn = (2 * torch.rand((count, columns), generator=generator) - 1) * limit
    return drawn[:, 0] if columns == 1 else drawn


def similarity(rotation: Tensor, shift: Tensor | None = None, scale: Tensor | float = 1.0) -> Tensor:
    """Rotation [N] counter-clockwise in radians, shift [N,2] in normalised units (None: no shift), scale [N] or one ->
    matrix [N,2,3]
    """
    if shift is None:
        shift = rotation.new_zeros(len(rotation), 2)
    cos, sin = scale * torch.cos(rotation), scale * torch.sin(rotation)
    linear = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    return torch.cat([linear, shift[:, :, None]], 2)


def move(images: Tensor, matrix: Tensor, background: Tensor | float = 0.0, mode: Interpolation = "bilinear") -> Tensor:
    """What an upright picture looks like under the matrix: [N,C,S,S], [N,2,3] -> [N,C,S,S] in [0,1]

    Args:
        background: [N,C,1,1] or one value for all, of what comes in from outside the frame.
    """
    return (resample(images - background, inverse(matrix), mode) + background).clamp(0, 1)


def move_by_two(images: Tensor, matrix: Tensor, bicubic: Tensor, background: Tensor | float = 0.0) -> Tensor:
    """`move`, each picture with one of two interpolations: the pixels of one kernel would tell the turn.

    Args:
        bicubic: bool [N], which picture is interpolated so; the others are bilinear.
    """
    moved = torch.empty_like(images)
    parts: list[tuple[Tensor, Interpolation]] = [(bicubic, "bicubic"), (~bicubic, "bilinear")]
    for part, mode in parts:
        level = background[part] if isinstance(background, Tensor) else background
        moved[part] = move(images[part], matrix[part], level, mode)
    return moved


class RelativeError(NamedTuple):
    """Of N pictures and the same pictures turned on: the error of the angle between both [N] and both standard
    deviations [N,2], in degrees, and the error of the middle [N,2] in normalised units.
    """

    degrees: Tensor
    stds: Tensor
    middle: Tensor


def relative_error(
    pose: Callable[[Tensor], Pose],
    images: Tensor,
    limit: float,
    source: torch.Generator,
    background: Tensor | float = 0.0,
) -> RelativeError:
    """Turn pictures [N,C,S,S] by U(+-limit), in radians, and compare what `pose` finds before and after."""
    rotation = uniform(len(images), limit, source).to(images)
    known = similarity(rotation)
    before, after = pose(images), pose(move(images, known, background, "bicubic"))
    gap = wrapped(after.coefficients[:, 0] - before.coefficients[:, 0] - rotation)
    stds = torch.stack([before.coefficients_std[:, 0], after.coefficients_std[:, 0]], 1)
    middle = (after.matrix - compose(known, before.matrix))[:, :, 2]
    return RelativeError(gap * (180 / math.pi), stds * (180 / math.pi), middle)


def error_figures(errors: Tensor, name: str, probe: str = "") -> dict[str, float]:
    """Of errors of the angle [N] in degrees the mean, as `name`_error, the median, and as _flips the share above 90
    degrees in %; `probe` ends each name.
    """
    errors = errors.abs().cpu()
    return {
        f"{name}_error{probe}": float(errors.mean()),
        f"{name}_median{probe}": float(errors.median()),
        f"{name}_flips{probe}": 100 * float((errors > FLIP_DEGREES).float().mean()),
    }
