"""Rotated digits as RotNet draws them (github.com/d4nst/RotNet, utils.py and train_mnist.py), for a like-for-like line.

A digit is turned by a whole number of degrees on a canvas large enough for the turned frame, and that is resized to the
frame: at 45 degrees a digit is 0.71 of its size. So the size tells the angle modulo 90, which a digit of fixed size
does not. Then pixels of a tenth of full brightness and more become 1, all others 0.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

__all__ = ["THRESHOLD", "as_rotnet_draws", "rotnet_digits"]

THRESHOLD = 0.1


def rotnet_digits(images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Every digit once, turned by 0 to 359 degrees counter-clockwise.

    Args:
        images: uint8 [N,1,S,S]
    Returns:
        float32 [N,1,S,S] of 0 and 1, and degrees [N]
    """
    degrees = torch.from_numpy(np.random.default_rng(seed).integers(360, size=len(images))).float()
    return as_rotnet_draws(images, degrees), degrees


def as_rotnet_draws(images: Tensor, degrees: Tensor) -> Tensor:
    """Digits uint8 [N,1,S,S] turned by whole degrees [N]: float32 [N,1,S,S] of 0 and 1"""
    pictures = np.empty(images.shape, np.uint8)
    for picture, image, angle in zip(pictures[:, 0], images[:, 0].numpy(), degrees.tolist(), strict=True):
        picture[:] = _turned(image, angle)
    return torch.from_numpy(pictures >= THRESHOLD * 255).float()


def _turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """One uint8 picture [S,S], canvas enlarged and resized back, both bilinear and in 8 bits."""
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), degrees, 1.0)
    canvas = int(side * (abs(matrix[0, 0]) + abs(matrix[0, 1])))
    matrix[:, 2] += int(canvas / 2 - side / 2)
    turned = cv2.warpAffine(image, matrix, (canvas, canvas), flags=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(turned, (side, side)))
