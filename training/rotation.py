"""A posterior over the rotation as one probability a bin of the circle: its modes, its spread, its prior.

Angles are in radians, counter-clockwise; bin j of B stands for the angle 2 pi j / B.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["bin_angles", "calibrated", "coverage_factor", "deviation", "find_modes", "range_prior", "wrapped"]

# Half width of the Hann window that smooths the posterior and refines a mode, as a share of a turn.
WINDOW = 30 / 360
# What lies nearer to a mode than this share of a turn belongs to it and cannot be another mode.
BASIN = 45 / 360
ROUNDS = 4
COVERAGE = 0.683  # of the errors lie within one standard deviation
UNIFORM_STD = math.pi / math.sqrt(3)  # deviation of the uniform posterior
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
    # In turns, so that a difference wraps by three operations, each of which an exported graph has for every round.
    places = torch.arange(posterior.shape[1]).to(posterior) / posterior.shape[1]
    smoothing = _hann(_shortest(places[:, None] - places))
    left = posterior if ranked is None else ranked
    found: list[Tensor] = []
    weights: list[Tensor] = []
    for _ in range(count):
        if found:
            outside = (_shortest(places - found[-1]).abs() > BASIN).to(left)
            left, posterior = left * outside, posterior * outside
        height, best = (left @ smoothing).max(1, keepdim=True)
        found.append(_refined(posterior, places, places[best]))
        weights.append(height)
    weight = torch.cat(weights, 1)
    return wrapped(2 * math.pi * torch.cat(found, 1)), weight / weight.sum(1, keepdim=True).clamp_min(1e-12)


def _shortest(turns: Tensor) -> Tensor:
    """The same turn in [-1/2, 1/2)."""
    return turns - torch.floor(turns + 0.5)


def _hann(turns: Tensor) -> Tensor:
    """Twice the window's value: 1 + cos(pi d / WINDOW) within it, and nothing beyond."""
    return 1 + torch.cos((turns * (math.pi / WINDOW)).clamp(-math.pi, math.pi))


def _refined(posterior: Tensor, places: Tensor, start: Tensor) -> Tensor:
    """Mean shift from `start` [N,1], in turns as `places` [B]; differentiable through the last mean."""
    mode, known = start, posterior.detach()
    for index in range(ROUNDS):
        difference = _shortest(places - mode)
        weights = (posterior if index == ROUNDS - 1 else known) * _hann(difference)
        mode = mode + (weights * difference).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1e-12)
    return mode


def deviation(posterior: Tensor, mode: Tensor) -> Tensor:
    """Root mean square wrapped deviation from a mode over the whole posterior: [N,B], [N] -> [N], radians.

    The uniform posterior has `UNIFORM_STD`, 103.9 degrees; two opposite modes of equal weight have more, pi / sqrt 2.
    """
    difference = wrapped(bin_angles(posterior.shape[1]).to(posterior) - mode[:, None])
    return torch.sqrt((posterior * difference**2).sum(1))


def coverage_factor(errors: Tensor, stds: Tensor) -> Tensor:
    """What standard deviations [N] are to be multiplied with, for 68.3 % of the errors [N] to lie within one of them.

    Args:
        errors: absolute, in the unit of `stds`, one at least.
    Returns:
        [], in [0.001, 10]
    """
    return (errors / stds.clamp_min(1e-6)).quantile(COVERAGE).clamp(1e-3, 10)


def calibrated(std: Tensor, factor: Tensor) -> Tensor:
    """Deviations as calibration corrects them, radians.

    `factor` was fitted to posteriors about one angle, and multiplies their deviations. A flat posterior says truly that
    nothing is known of the angle: towards its deviation the factor fades out.
    """
    share = ((std - KNEE) / (UNIFORM_STD - KNEE)).clamp(0, 1)
    return std * factor ** (1 - share)
