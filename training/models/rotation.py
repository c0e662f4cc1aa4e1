"""A posterior over the rotation as one probability a bin of the circle: its modes, its spread, its prior.

Angles are in radians, counter-clockwise; bin j of B stands for the angle 2 pi j / B.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["COVERAGE", "bin_angles", "calibrated", "deviation", "find_modes", "range_prior", "wrapped"]

# Half width of the Hann window that smooths the posterior and refines a mode.
WINDOW = math.radians(30)
# What lies nearer to a mode than this belongs to it and cannot be another mode.
BASIN = math.radians(45)
ROUNDS = 4
COVERAGE = 0.683  # of the errors lie within one standard deviation
FLAT = math.pi / math.sqrt(3)  # deviation of the uniform posterior
KNEE = math.radians(20)  # a posterior this wide is more than noise about one angle


def bin_angles(bins: int) -> Tensor:
    """[B] in [0, 2 pi)"""
    return 2 * math.pi * torch.arange(bins) / bins


def wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return angle - 2 * math.pi * torch.floor(angle * (0.5 / math.pi) + 0.5)


def range_prior(angle: Tensor, limit: float, spread: float) -> Tensor:
    """Probability that an upright picture turned within +-limit is seen at `angle`, 1 in the middle of the range.

    The range's edges are as soft as upright pictures themselves lean: a Gaussian of deviation `spread`. A limit of pi
    leaves no edge.
    """
    if limit >= math.pi:
        return torch.ones_like(angle)
    return torch.sigmoid(1.702 * (limit - wrapped(angle).abs()) / spread)


def find_modes(posterior: Tensor, count: int, ranked: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best `count` modes: [N,B] -> angles [N,count] in [-pi, pi), weights [N,count] that sum to 1, best first.

    The highest bin of the smoothed posterior is refined to the mean of the posterior in a window around it, moved along
    until it rests (mean shift): a hundredth of a bin. Then its basin is taken away, and so on. A posterior with fewer
    modes fills up with weights of 0.

    Args:
        ranked: [N,B], the posterior under a prior, by which the modes are chosen and weighted. A prior that falls off
            would draw them to one side: it does not take part in refining them.
    """
    angles = bin_angles(posterior.shape[1]).to(posterior)
    smoothing = _hann(wrapped(angles[:, None] - angles))
    left = posterior if ranked is None else ranked
    found, weights = [], []
    for _ in range(count):
        smooth = left @ smoothing
        height, best = smooth.max(1)
        mode = _refined(posterior, angles, angles[best])
        found.append(mode)
        weights.append(height)
        outside = (wrapped(angles - mode[:, None]).abs() > BASIN).to(left)
        left, posterior = left * outside, posterior * outside
    weight = torch.stack(weights, 1)
    return torch.stack(found, 1), weight / weight.sum(1, keepdim=True).clamp_min(1e-12)


def _hann(difference: Tensor) -> Tensor:
    """Twice the window's value: 1 + cos(pi d / WINDOW) within it, and nothing beyond."""
    return 1 + torch.cos((difference.abs() * (math.pi / WINDOW)).clamp_max(math.pi))


def _refined(posterior: Tensor, angles: Tensor, start: Tensor) -> Tensor:
    """Mean shift from `start` [N]; differentiable through the last mean."""
    mode = start
    for _ in range(ROUNDS):
        difference = wrapped(angles - mode.detach()[:, None])
        weights = posterior * _hann(difference)
        mode = mode.detach() + (weights * difference).sum(1) / weights.sum(1).clamp_min(1e-12)
    return wrapped(mode)


def deviation(posterior: Tensor, mode: Tensor) -> Tensor:
    """Root mean square wrapped deviation from a mode over the whole posterior: [N,B], [N] -> [N], at most 1.81 or so.

    The uniform posterior has pi / sqrt 3, 103.9 degrees.
    """
    difference = wrapped(bin_angles(posterior.shape[1]).to(posterior) - mode[:, None])
    return torch.sqrt((posterior * difference**2).sum(1))


def calibrated(std: Tensor, factor: Tensor) -> Tensor:
    """A deviation times the factor fitted to posteriors about one angle, which fades out towards the flat posterior:
    that one says what it means.
    """
    share = ((std - KNEE) / (FLAT - KNEE)).clamp(0, 1)
    return std * factor ** (1 - share)
