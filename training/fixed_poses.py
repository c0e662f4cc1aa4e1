"""One transform an image, drawn once and kept: a data set turned beforehand, without the file.

MCE-VAE's reference code (data/gen_mnist.py) turns and moves every MNIST image once with torchvision's RandomAffine and
saves the arrays; there is no augmentation after that. Here row i of a data set has its transform by the seed, i and how
many rows there are. RandomAffine rounds shifts to whole pixels, turns first, and takes the nearest pixel; so does this.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from training.lie import exponential, inverse, resample

__all__ = ["draw_fixed_poses", "pose_images"]


@lru_cache(maxsize=4)
def draw_fixed_poses(count: int, side: int, rotation_degrees: float, shift: float, seed: int) -> Tensor:
    """Matrices [count,2,3], canonical -> observed.

    Args:
        side: of the images, pixels.
        rotation_degrees: angles are uniform within +- this.
        shift: x and y are uniform within +- this share of the side, then rounded to whole pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    angle = (2 * torch.rand((count, 1), generator=generator) - 1) * math.radians(rotation_degrees)
    pixels = torch.round((2 * torch.rand((count, 2), generator=generator) - 1) * shift * side)
    matrix = exponential("SO2", angle)
    return torch.cat([matrix[:, :, :2], (2 * pixels / side).unsqueeze(2)], 2)


def pose_images(images: Tensor, matrix: Tensor) -> Tensor:
    """Upright images [N,C,H,W] as observed under canonical -> observed matrices [N,2,3]; nearest pixel, 0 outside."""
    return resample(images, inverse(matrix), mode="nearest")
