"""Encoder and decoder of an MCE-VAE: canonical window <-> z_c and z."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.mcevae_config import DecoderConfig, EncoderConfig
from training.networks import ConvBody, dense, he_initialise

__all__ = ["Decoder", "Encoder"]

Gaussian = tuple[Tensor, Tensor]  # mean and log variance, both [N,D]


class Encoder(nn.Module):
    """One body, linear layers for all means and log variances: [N,C,w,w] -> a Gaussian for each of `dims`."""

    def __init__(self, channels: int, side: int, config: EncoderConfig, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.body = ConvBody(channels, side, config.filters, config.strides, 3, norm=True)
        self.hidden = dense(self.body.out_features, config.hidden)
        he_initialise(self)
        self.dims = dims
        self.mean = nn.Linear(config.hidden, sum(dims))
        self.log_variance = nn.Linear(config.hidden, sum(dims))

    def forward(self, pictures: Tensor) -> tuple[Gaussian, ...]:
        hidden = self.hidden(self.body(pictures))
        means = self.mean(hidden).float().split(self.dims, 1)
        log_variances = self.log_variance(hidden).float().clamp(-10, 10).split(self.dims, 1)
        return tuple(zip(means, log_variances, strict=True))


class Decoder(nn.Module):
    """Latents [N,D] -> the canonical window before the sigmoid [N,C,w,w]."""

    def __init__(self, dim: int, channels: int, side: int, config: DecoderConfig) -> None:
        super().__init__()
        first, second, third = config.filters
        self.side, self.start = side, math.ceil(side / 4)
        self.units = first
        self.dense = dense(dim, config.hidden, first * self.start**2)
        self.layers = nn.Sequential(
            *_doubling(first, second),
            *_doubling(second, third),
            nn.Conv2d(third, channels, 3, padding=1),
        )
        he_initialise(self)

    def forward(self, latent: Tensor) -> Tensor:
        start = self.dense(latent).unflatten(1, (self.units, self.start, self.start))
        *body, last = self.layers
        features = start.contiguous(memory_format=torch.channels_last)
        for layer in body:
            features = layer(features)
        return _summed(features, last)[:, :, : self.side, : self.side]


def _doubling(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _summed(features: Tensor, last: nn.Module) -> Tensor:
    """A 3 x 3 convolution to one channel as a convolution of every channel by itself, and their sum.

    ONNX Runtime's blocked kernels would compute sixteen channels for the one, ten times its time.
    """
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    if last.out_channels > 1:
        return last(features)
    taps = last.weight.transpose(0, 1)
    return F.conv2d(features, taps, padding=1, groups=last.in_channels).sum(1, keepdim=True) + last.bias
