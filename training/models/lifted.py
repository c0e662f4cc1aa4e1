"""Rotation by a group lifting over two ways up: one convolutional net, shared, on the picture along its main axis.

    picture --second moments of the ink--> main axis, modulo 180 degrees
    picture, axis --resample--> lying picture --+-- as it is -----> net --> log-odds of the angles within +-90 degrees
                                                +-- upside down --> net --> log-odds of the other half of the circle

A turn of the picture turns its axis exactly, and which end of the axis comes first only swaps the two copies (the group
C_2): the whole is equivariant to every rotation by construction, up to interpolation. The net is left with what only
letters tell, which way is up, and with the few degrees between the axis and the line of the text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.lie import compose, exponential, resample
from training.models.upright_config import LiftedConfig
from training.networks import ResidualConv, he_initialise, strided_sides

__all__ = ["DRAWS", "Lifted", "arctan2", "main_axis"]

DRAWS = 6  # of one picture's distortion: axis, width, height, slant, x, y
# of arctan(t) / t, in t squared
_ARCTAN = (
    *(1.0, -0.3333314528, 0.1999355085, -0.1420889944, 0.1065626393),
    *(-0.0752896400, 0.0429096138, -0.0161657367, 0.0028662257),
)
FAINT = 1e-6  # of a pixel of full ink: a picture with less has no axis


def main_axis(images: Tensor) -> Tensor:
    """Angle in [-pi/2, pi/2], counter-clockwise as seen, of the axis along which the ink spreads most: [N,C,S,S] -> [N]

    The larger principal axis of the second central moments.
    """
    side = images.shape[3]
    centres = ((2 * torch.arange(side, device=images.device) + 1) / side - 1).to(images)
    ink = images.sum(1)
    mass = ink.sum((1, 2)).clamp_min(FAINT)
    columns, rows = ink.sum(1), ink.sum(2)
    x, y = (columns @ centres) / mass, (rows @ centres) / mass
    xx, yy = (columns @ centres**2) / mass - x**2, (rows @ centres**2) / mass - y**2
    xy = ((ink @ centres) @ centres) / mass - x * y
    # y points down, so that a positive xy is an axis that falls to the right.
    return -0.5 * arctan2(2 * xy, xx - yy)


def arctan2(y: Tensor, x: Tensor) -> Tensor:
    """torch.atan2, within 1e-6, of operators that ONNX Runtime has CUDA kernels for: of Atan it has none.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 4.4.49 (error 2e-8 over [0, 1]).
    """
    above, beside = y.abs(), x.abs()
    ratio = torch.minimum(above, beside) / torch.maximum(above, beside).clamp_min(torch.finfo(y.dtype).tiny)
    square, series = ratio * ratio, torch.zeros_like(ratio)
    for coefficient in reversed(_ARCTAN):
        series = series * square + coefficient
    angle = ratio * series
    angle = torch.where(above > beside, math.pi / 2 - angle, angle)
    angle = torch.where(x < 0, math.pi - angle, angle)
    return torch.where(y < 0, -angle, angle)


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
        self, images: Tensor, turns: Tensor | None = None, draws: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            turns: [N] in radians, where the pictures' rotation is known. draws: [N,DRAWS] in [-1,1]; with both the
                pictures are distorted as the configuration says, in the one resampling that there is.
        """
        with torch.autocast(images.device.type, enabled=False):
            axis = main_axis(images)
            matrix = exponential("SO2", axis[:, None])
            if turns is not None and draws is not None:
                axis = axis + math.radians(self.config.jitter_degrees) * draws[:, 0]
                upright, back = exponential("SO2", turns[:, None]), exponential("SO2", (axis - turns)[:, None])
                matrix = compose(compose(upright, self._distortion(draws)), back)
            lying = resample(images, matrix)[:, :, self.above : images.shape[3] - self.above]
        # The kernels for this layout are faster on the CPU.
        both = torch.cat([lying, lying.flip(2, 3)]).contiguous(memory_format=torch.channels_last)
        logits = self.head(self.body(both).flatten(1)).float()
        ahead, behind = logits.unflatten(0, (2, -1)).unbind()
        # Each copy reads -90 to 90 degrees of its own; the second one's lie at 90 to 270 of the first's.
        quarter = self.config.bins // 4
        around = torch.cat([ahead[:, quarter:], behind, ahead[:, :quarter]], 1)
        return torch.log_softmax(around, 1), axis

    def _distortion(self, draws: Tensor) -> Tensor:
        """Wider or narrower, taller or lower, slanted and shifted letters, their line level: [N,DRAWS] -> [N,2,3]"""
        config = self.config
        width, height = torch.exp(config.stretch * draws[:, 1:3]).unbind(1)
        slant = height * math.tan(math.radians(config.slant_degrees)) * draws[:, 3]
        x, y = (2 * config.shift * draws[:, 4:6]).unbind(1)
        return torch.stack([torch.stack([width, slant, x], 1), torch.stack([torch.zeros_like(x), height, y], 1)], 1)
