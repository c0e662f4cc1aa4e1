"""Parts of the symmetry-transformation models: invariant encoder, likelihood of every rotation at once, variants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from contract.geometry import Group
from training.lie import compose, exponential, inverse
from training.models.polar import CircularConv, PolarSampler
from training.models.pose import Pose
from training.models.symmetry_config import PolarEncoderConfig
from training.networks import dense
from training.rotation import coverage_factor
from training.turned import relative_error

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["Correlator", "InvariantEncoder", "fit_smoothing", "variants"]

CHUNK = 500  # images a forward pass where no gradient is kept
CALIBRATION = 2000  # images that it is fitted to
SMOOTHINGS = (1.0, 4.0, 16.0, 64.0, 256.0)  # temperatures of the likelihood that are tried


class InvariantEncoder(nn.Module):
    """q(z|x) from a polar map: circular convolutions, then mean and maximum over the angle, which no rotation
    changes.

    Shape: [N,inputs,A] -> mean and log variance, both [N,dim]
    """

    def __init__(self, inputs: int, dim: int, config: PolarEncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.layers = nn.Sequential(
            CircularConv(inputs, width, 7, stride=2),
            *(CircularConv(width, width, config.kernel, dilation) for dilation in config.dilations),
        )
        self.hidden = dense(2 * width, config.hidden)
        self.out = nn.Linear(config.hidden, 2 * dim)

    def forward(self, polar: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(polar.unsqueeze(2)).squeeze(2)
        pooled = torch.cat([features.mean(2), features.amax(2)], 1)
        mean, log_variance = self.out(self.hidden(pooled)).float().chunk(2, 1)
        return mean, log_variance.clamp(-10, 10)


class Correlator(nn.Module):
    """Squared distance of a picture to a prototype turned by every bin's angle, from their polar maps.

    sum over the circle's pixels of (x - T_b x^)^2 = |x|^2 + |x^|^2 - 2 <x, T_b x^>, and the last term of all bins is a
    circular correlation: a product in the Fourier domain, with the transform as two matrices, since the operator has no
    kernel at opset 18 on every device.
    """

    cosine: Tensor
    sine: Tensor
    back_cosine: Tensor
    back_sine: Tensor
    area: Tensor

    def __init__(self, side: int, radii: int, angles: int, channels: int) -> None:
        super().__init__()
        self.sampler = PolarSampler(side, 1.0, radii, angles)
        self.pixels = channels * math.pi * side**2 / 4
        edges = torch.arange(radii + 1) / radii * side / 2
        rings = math.pi * (edges[1:] ** 2 - edges[:-1] ** 2) / angles  # pixels that a sample of each radius stands for
        frequency, angle = torch.arange(angles // 2 + 1), torch.arange(angles)
        phase = 2 * math.pi * ((angle[:, None] * frequency) % angles) / angles
        twice = torch.full((len(frequency), 1), 2.0)  # all but the first and the last frequency come in pairs
        twice[0] = twice[-1] = 1.0
        for name, value in {
            "cosine": torch.cos(phase),
            "sine": torch.sin(phase),
            "back_cosine": twice * torch.cos(phase).T / angles,
            "back_sine": twice * torch.sin(phase).T / angles,
            "area": rings.repeat(channels)[:, None],
        }.items():
            self.register_buffer(name, value, persistent=False)

    def polar(self, pictures: Tensor, centre: Tensor | None = None) -> Tensor:
        """[N,C,S,S] -> [N,C*R,A], about the middle of the frame or another centre [N,2]."""
        return self.sampler(pictures, 0 * pictures[:, 0, 0, :2] if centre is None else centre)

    def forward(self, picture: Tensor, prototype: Tensor) -> Tensor:
        """Polar maps [N,C*R,A] twice -> [N,A]; bin b turns the prototype by 2 pi b / A, counter-clockwise."""
        real, imaginary = picture @ self.cosine, picture @ self.sine
        other_real, other_imaginary = prototype @ self.cosine, prototype @ self.sine
        product_real = ((real * other_real + imaginary * other_imaginary) * self.area).sum(1)
        product_imaginary = ((imaginary * other_real - real * other_imaginary) * self.area).sum(1)
        inner = product_real @ self.back_cosine + product_imaginary @ self.back_sine
        squares = ((picture**2 + prototype**2) * self.area).sum((1, 2))
        return (squares[:, None] - 2 * inner).clamp_min(0)


def variants(found: Tensor, drawn: Tensor, group: Group) -> Tensor:
    """A(x) A^-1 for every A drawn: matrices [N,2,3], coefficients [N,S,G] -> [N,S,2,3]

    The picture sampled with it is the picture as it lies under A.
    """
    count, dimensions = drawn.shape[1:]
    new = exponential(group, drawn.reshape(-1, dimensions))
    # Written out, since expanding to the shape of another tensor exports as a subgraph of shapes.
    repeated = (found[:, None] + 0 * drawn[:, :, :1, None]).reshape(-1, 2, 3)
    return compose(repeated, inverse(new)).reshape(-1, count, 2, 3)


class Smoothed(Protocol):
    """A model whose posterior over the rotation comes from a likelihood divided by `smoothing`, its deviation times
    `std_factor`.
    """

    smoothing: Tensor
    std_factor: Tensor

    def pose(self, images: Tensor) -> Pose: ...


def fit_smoothing(model: Smoothed, data: LabelledImages, limit: float) -> None:
    """Fit two served constants: the temperature of the likelihood and the factor of the standard deviation.

    Pixels of a picture are not independent, so that the plain posterior lies on one bin and its mode, a mean over the
    bins, is no finer than they are. The smoothing is the one with the least mean error between views turned by
    U(+-limit), flips apart; of those errors 68.3 % then lie within one deviation. Where there is nothing but flips, the
    deviation stays as it is.
    """
    model.std_factor.fill_(1.0)
    part = data.subset(torch.arange(min(len(data), CALIBRATION)))

    def errors(smoothing: float) -> tuple[Tensor, Tensor]:
        model.smoothing.fill_(smoothing)
        source = torch.Generator().manual_seed(1)
        chunks = part.chunks(CHUNK, model.smoothing.device)
        found = [relative_error(model.pose, images, limit, source) for images, _ in chunks]
        error, stds = torch.cat([one.degrees.abs() for one in found]), torch.cat([one.stds for one in found])
        same = error < 45
        return error[same], stds[same].norm(dim=1)

    # The mean of no errors is not a number.
    best = min(SMOOTHINGS, key=lambda value: float(errors(value)[0].mean().nan_to_num(math.inf)))
    error, std = errors(best)
    if len(error):
        model.std_factor.copy_(coverage_factor(error, std))
