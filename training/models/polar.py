"""A picture's rotation as a shift: polar sampling, and a net of circular convolutions over the angle.

    picture [N,C,S,S] --about a centre--> polar map [N,C*R,A] --circular convolutions--> logits [N,A/2]

Turning the picture by one step of the angle shifts the map, and so the logits, by one place: the net is equivariant by
construction, and what is left of an error between two views is interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.networks import Residual

__all__ = ["AngleNet", "CircularConv", "PolarSampler"]

# Standard deviation of the Gaussian before sampling, for 28 pixels across the circle: it keeps what 128 samples a
# circle can hold and takes away the pixels' grid.
BLUR_OF_28 = 0.6


class PolarSampler(nn.Module):
    """Samples on circles about a centre: [N,C,S,S], centre [N,2], radius [N] -> [N,C*R,A]

    Args:
        side: S, pixels.
        reach: the largest circle's radius for a radius of 1, as a share of S / 2.
    """

    kernel: Tensor
    points: Tensor

    def __init__(self, side: int, reach: float, radii: int, angles: int) -> None:
        super().__init__()
        sigma = BLUR_OF_28 * side * reach / 28
        half = max(1, math.ceil(3 * sigma))
        taps = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
        radius = reach * (torch.arange(radii) + 0.5) / radii
        angle = 2 * math.pi * torch.arange(angles) / angles
        # Counter-clockwise as seen: y points down.
        points = torch.stack([radius[:, None] * torch.cos(angle), -radius[:, None] * torch.sin(angle)], 2)
        self.shape = (radii, angles, 2)
        self.register_buffer("kernel", taps / taps.sum(), persistent=False)
        self.register_buffer("points", F.pad(points.flatten(0, 1), (0, 1), value=1.0), persistent=False)  # (x, y, 1)

    def forward(self, images: Tensor, centre: Tensor, radius: Tensor | None = None) -> Tensor:
        one = 0 * centre[:, :1] + 1 if radius is None else radius[:, None]
        # One product with a constant, as `lie.grid` has it; ONNX Runtime takes four times as long to add the centre.
        stretch = torch.stack([torch.cat([one, 0 * one], 1), torch.cat([0 * one, one], 1), centre], 1)
        where = (self.points @ stretch).reshape(-1, *self.shape)
        sampled = F.grid_sample(self._blurred(images), where, mode="bicubic", align_corners=False)
        return sampled.flatten(1, 2)

    def _blurred(self, images: Tensor) -> Tensor:
        channels, half = images.shape[1], len(self.kernel) // 2
        taps = self.kernel.expand(channels, 1, -1)
        images = F.conv2d(images, taps[:, :, :, None], padding=(half, 0), groups=channels)
        return F.conv2d(images, taps[:, :, None], padding=(0, half), groups=channels)


class CircularConv(Residual):
    """A residual convolution over a circle.

    The circle is the second of two axes: of a convolution over one, ONNX Runtime can neither use its blocked layout nor
    join what follows to it, and takes a quarter longer.

    Shape: [N,inputs,1,A] -> [N,outputs,1,A/stride]
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, stride: int = 1) -> None:
        super().__init__(nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, bias=False))
        self.reach = dilation * (kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        # Written out, since circular padding has no operator at opset 18.
        around = torch.cat([x[..., -self.reach :], x, x[..., : self.reach]], -1)
        one = self.convolution
        y = F.conv2d(around, one.weight[:, :, None], one.bias, (1, *one.stride), dilation=(1, *one.dilation))
        y = self.norm(y)
        return F.relu(x + y if self.skip else y)


class AngleNet(nn.Module):
    """Logits of the rotation from a polar map: [N,inputs,A] -> [N,A/2]"""

    def __init__(self, inputs: int, width: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            CircularConv(inputs, width, 7, stride=2),
            *(CircularConv(width, width, kernel, dilation) for dilation in dilations),
            nn.Conv1d(width, width, 1),
            nn.ReLU(),
            nn.Conv1d(width, 1, 1),
        )

    def forward(self, polar: Tensor) -> Tensor:
        features = self.layers[:-3](polar.unsqueeze(2)).squeeze(2)
        return self.layers[-3:](features).squeeze(1)
