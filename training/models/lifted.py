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

from training.lie import exponential, resample
from training.models.upright_config import LiftedConfig
from training.networks import ConvBody, he_initialise

__all__ = ["Lifted", "main_axis"]

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
    return -0.5 * torch.atan2(2 * xy, xx - yy)


class Lifted(nn.Module):
    """Log posterior of the rotation: [N,C,S,S] -> log q [N,B], origin [N]; bin j stands for origin + 2 pi j / B."""

    def __init__(self, config: LiftedConfig, channels: int, side: int) -> None:
        super().__init__()
        self.jitter = math.radians(config.jitter_degrees)
        self.bins = config.bins
        self.body = ConvBody(channels, side, config.filters, config.strides, config.kernel, norm=True)
        self.head = nn.Linear(self.body.out_features, config.bins // 2)
        he_initialise(self)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor, jitter: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            jitter: [N] in [-1,1], of the random turn of the axis in training.
        """
        with torch.autocast(images.device.type, enabled=False):
            axis = main_axis(images)
            if jitter is not None:
                axis = axis + self.jitter * jitter
            lying = resample(images, exponential("SO2", axis[:, None]))
        logits = self.head(self.body(torch.cat([lying, lying.flip(2, 3)]))).float()
        ahead, behind = logits.unflatten(0, (2, -1)).unbind()
        # Each copy reads -90 to 90 degrees of its own; the second one's lie at 90 to 270 of the first's.
        quarter = self.bins // 4
        around = torch.cat([ahead[:, quarter:], behind, ahead[:, :quarter]], 1)
        return torch.log_softmax(around, 1), axis
