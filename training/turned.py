"""Training pictures of a model of orientation: each upright picture moved by a known transform, and undone.

Matrices [N,2,3] are those of training/lie.py: canonical frame -> observed picture.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from training.lie import inverse, resample

__all__ = ["move", "similarity", "uniform"]


def uniform(count: int, limit: float, generator: torch.Generator, columns: int = 1) -> Tensor:
    """[count] in +-limit, or [count,columns]"""
    drawn = (2 * torch.rand((count, columns), generator=generator) - 1) * limit
    return drawn[:, 0] if columns == 1 else drawn


def similarity(rotation: Tensor, shift: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Rotation [N] counter-clockwise in radians, shift [N,2] in normalised units, scale [N] or one -> matrix [N,2,3]"""
    cos, sin = scale * torch.cos(rotation), scale * torch.sin(rotation)
    linear = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    return torch.cat([linear, shift[:, :, None]], 2)


def move(
    images: Tensor, matrix: Tensor, background: Tensor | float = 0.0, mode: Literal["bilinear", "bicubic"] = "bilinear"
) -> Tensor:
    """What an upright picture looks like under the matrix: [N,C,S,S], [N,2,3] -> [N,C,S,S] in [0,1]

    Args:
        background: [N,C,1,1] or one value for all, of what comes in from outside the frame.
    """
    return (resample(images - background, inverse(matrix), mode) + background).clamp(0, 1)
