"""Upright pictures under known transforms: the ranges they are drawn from, and what a model is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.turned import move, similarity, uniform

__all__ = ["Limits", "even_degrees", "ink", "limits_of", "lost_ink", "observe", "rotation_matrices"]

CHUNK = 1000


@dataclass(frozen=True)
class Limits:
    """A range of transforms, each number drawn uniformly in +- its limit.

    degrees: of the rotation. shift: of each axis, as a share of the frame's side. scale: of the logarithm.
    """

    degrees: float
    shift: float = 0.0
    scale: float = 0.0

    def draw(self, count: int, seed: int) -> Tensor:
        """Matrices [count,2,3] of observed pictures."""
        generator = torch.Generator().manual_seed(seed)
        rotation = uniform(count, math.radians(self.degrees), generator)
        shift = 2 * uniform(count, self.shift, generator, columns=2)
        return similarity(rotation, shift, torch.exp(uniform(count, self.scale, generator)))

    def __str__(self) -> str:
        parts = [f"+-{self.degrees:g} degrees"]
        parts += [f"shifts of +-{100 * self.shift:.3g} % of the width"] if self.shift else []
        parts += [f"log scales of +-{self.scale:g}"] if self.scale else []
        return ", ".join(parts)


def limits_of(config: Any) -> Limits:
    """The range of a model's training pictures, from its configuration (see `pose_models.PoseModel`)."""
    shift = config.shift if config.group != "SO2" else 0.0
    return Limits(config.rotation_degrees, shift, config.scale if config.group == "SIM2" else 0.0)


def rotation_matrices(degrees: Tensor) -> Tensor:
    """Matrices of pictures turned about the middle of the frame: [N] -> [N,2,3]"""
    return similarity(torch.deg2rad(degrees))


def even_degrees(limit: float, count: int) -> Tensor:
    """`count` angles evenly over +-limit; -180 and 180 are one angle."""
    if limit >= 180:
        return 360 * torch.arange(count) / count - 180
    return torch.linspace(-limit, limit, count)


def ground(images: Tensor) -> Tensor:
    """Mean of every picture's outermost pixels: [N,C,S,S] -> [N,C,1,1]"""
    ring = torch.ones(images.shape[-2:], dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    return images[:, :, ring].mean(2)[:, :, None, None]


def ink(images: Tensor) -> Tensor:
    """What differs from the ground, light or dark: [N,C,S,S] -> [N,S,S], the sum over the channels"""
    return (images - ground(images)).abs().sum(1)


def observe(images: Tensor, matrices: Tensor) -> Tensor:
    """Upright pictures as seen under the matrices, bicubic: [N,C,S,S] in [0,1], [N,2,3] -> [N,C,S,S] in [0,1]

    What comes in from outside the frame is the picture's own ground.
    """
    parts = zip(
        torch.split(images, CHUNK), torch.split(matrices, CHUNK), torch.split(ground(images), CHUNK), strict=True
    )
    return torch.cat([move(part, matrix, level, "bicubic") for part, matrix, level in parts])


def lost_ink(images: Tensor, matrices: Tensor) -> Tensor:
    """Share of each picture's ink that the matrix carries out of the frame: [N,C,S,S], [N,2,3] -> [N] in [0,1]"""
    side = images.shape[-1]
    wide = F.pad(ink(images)[:, None], [side // 2] * 4)
    # In a frame of twice the side (side + 2 (side // 2)) a shift is a smaller share of it.
    smaller = matrices.clone()
    smaller[:, :, 2] *= side / wide.shape[-1]
    seen = move(wide, smaller)
    inside = seen[:, :, side // 2 : side // 2 + side, side // 2 : side // 2 + side]
    whole = seen.flatten(1).sum(1).clamp_min(1e-12)
    return (1 - inside.flatten(1).sum(1) / whole).clamp(0, 1)
