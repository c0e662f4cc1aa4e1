"""Rotation by a group lifting over two ways up: one convolutional net, shared, on the picture along its main axis.

    picture --second moments of the ink--> main axis, modulo 180 degrees
    picture, axis --resample--> lying picture --+-- as it is -----> net --> log-odds of the angles within +-90 degrees
                                                +-- upside down --> net --> log-odds of the other half of the circle

A turn of the picture turns its axis exactly, and which end of the axis comes first only swaps the two copies (the group
C_2): the whole is equivariant to every rotation by construction, up to interpolation. The net is left with what only
shapes tell: which way is up, and the angle between the axis and the line of a text or the upright of a digit. About the
ink's centroid and in units of its radius it is equivariant to shifts and scales too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.lie import compose, exponential, resample
from training.models.lifted_config import LiftedConfig
from training.moments import Moments, moments
from training.networks import ResidualConv, exactly, he_initialise, strided_sides

__all__ = ["DRAWS", "Lifted"]

DRAWS = 6  # of one picture's distortion: axis, width, height, slant, x, y


class Lifted(nn.Module):
    """Log posterior of the rotation: [N,C,S,S] -> log q [N,B], origin [N]; bin j stands for origin + 2 pi j / B."""

    def __init__(self, config: LiftedConfig, channels: int, side: int) -> None:
        super().__init__()
        self.config = config
        self.above = side // 6  # rows that are cut off: a square in the frame's circle reaches 0.71 of its radius
        layers, inputs = [], channels
        for outputs, stride in zip(config.filters, config.strides, strict=True):
            layers.append(ResidualConv(inputs, outputs, config.kernel, stride))
            inputs = outputs
        self.body = nn.Sequential(*layers)
        height, width = (strided_sides(size, config.strides)[-1] for size in (side - 2 * self.above, side))
        self.head = nn.Linear(inputs * height * width, config.bins // 2)
        he_initialise(self)
        nn.init.zeros_(self.head.weight)

    def forward(
        self, images: Tensor, turns: Tensor | None = None, draws: Tensor | None = None, found: Moments | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            turns: [N] in radians, where the pictures' rotation is known. draws: [N,DRAWS] in [-1,1]; with both the
                pictures are distorted as the configuration says, in the one resampling that there is.
            found: the moments of the ink, where they are not simply those of the picture.
        """
        with exactly(images):
            if found is None:
                found = moments(images.sum(1))
            axis = found.axis
            matrix = exponential("SO2", axis[:, None])
            if turns is not None and draws is not None:
                axis = axis + math.radians(self.config.jitter_degrees) * draws[:, 0]
                upright, back = exponential("SO2", turns[:, None]), exponential("SO2", (axis - turns)[:, None])
                matrix = compose(compose(upright, self._distortion(draws)), back)
            lying = resample(images, self._about_ink(matrix, found))
            lying = lying[:, :, self.above : images.shape[3] - self.above]
        # The kernels for this layout are faster on the CPU.
        both = torch.cat([lying, lying.flip(2, 3)]).contiguous(memory_format=torch.channels_last)
        logits = self.head(self.body(both).flatten(1)).float()
        ahead, behind = logits.unflatten(0, (2, -1)).unbind()
        # Each copy reads -90 to 90 degrees of its own; the second one's lie at 90 to 270 of the first's.
        quarter = self.config.bins // 4
        around = torch.cat([ahead[:, quarter:], behind, ahead[:, :quarter]], 1)
        return torch.log_softmax(around, 1), axis

    def _about_ink(self, matrix: Tensor, found: Moments) -> Tensor:
        """The matrix about the ink's centroid and in units of its size, where the configuration asks for them."""
        if self.config.reach is not None:
            matrix = matrix * (self.config.reach * found.radius)[:, None, None]
        if self.config.centre == "frame":
            return matrix
        return torch.cat([matrix[:, :, :2], matrix[:, :, 2:] + found.centre[:, :, None]], 2)

    def _distortion(self, draws: Tensor) -> Tensor:
        """Wider or narrower, taller or lower, slanted and shifted letters, their line level: [N,DRAWS] -> [N,2,3]"""
        config = self.config
        width, height = torch.exp(config.stretch * draws[:, 1:3]).unbind(1)
        slant = height * math.tan(math.radians(config.slant_degrees)) * draws[:, 3]
        x, y = (2 * config.shift * draws[:, 4:6]).unbind(1)
        return torch.stack([torch.stack([width, slant, x], 1), torch.stack([torch.zeros_like(x), height, y], 1)], 1)
