"""p(eta|x^): a conditional normalising flow over the coefficients of a group, the rotation on a circle (zuko).

    features of x^ --NCSF (circular splines)--> density of the rotation, periodic in 2 pi
    features, cos and sin of the rotation --NSF (autoregressive splines)--> density of shift and scale, standardised

Rezende et al. (2020) have the circular spline, Durkan et al. (2019) the spline; both are inverted in closed form, so
that the inverse exports to ONNX: counted comparisons, gathers and one root.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import zuko
from torch import Tensor, nn
from zuko.flows import NCSF, NSF

from training.rotation import wrapped

__all__ = ["PoseDensity", "PoseFlow", "WrappedNormal"]

WRAPS = 2  # turns either way that a wrapped normal is summed over: the rest is below float32 for deviations up to pi
LEAST_DEVIATION, MOST_DEVIATION = math.radians(1), math.pi


class PoseDensity(Protocol):
    """A density over the coefficients of a group, the rotation first, in radians."""

    def log_prob(self, context: Tensor, coefficients: Tensor) -> Tensor:
        """In nats: context [N,F], coefficients [...,N,G] -> [...,N]"""


class PoseFlow(nn.Module):
    """The density for the coefficients of a group, the rotation first, in radians.

    Args:
        dimensions: G. context: F, features of the prototype; 0 makes it one density for all of them.
        hidden: widths of the nets that give the splines' knots. bins: knots a spline. transforms: splines in a row.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, dimensions: int, context: int, hidden: tuple[int, ...], bins: int, transforms: int) -> None:
        super().__init__()
        self.dimensions, self.context = dimensions, context
        shape = {"hidden_features": hidden, "bins": bins, "transforms": transforms}
        self.rotation = NCSF(1, context=context, **shape)
        # Coupling: two passes invert it, however many coefficients there are.
        self.rest = NSF(dimensions - 1, context=context + 2, passes=2, **shape) if dimensions > 1 else None
        self.register_buffer("centre", torch.zeros(dimensions - 1))
        self.register_buffer("spread", torch.ones(dimensions - 1))

    def standardise(self, coefficients: Tensor) -> None:
        """Take mean and deviation of shift and scale from examples [N,G]: the splines reach over +-5 of them."""
        if self.dimensions > 1:
            self.centre.copy_(coefficients[:, 1:].mean(0))
            self.spread.copy_(coefficients[:, 1:].std(0).clamp_min(1e-3))

    def log_prob(self, context: Tensor, coefficients: Tensor) -> Tensor:
        """log p(eta|x^) in nats, radians and normalised units: context [N,F], coefficients [...,N,G] -> [...,N]"""
        rotation = wrapped(coefficients[..., :1])
        density: Tensor = self.rotation(self._given(context)).log_prob(rotation)
        if self.rest is None:
            return density
        others = (coefficients[..., 1:] - self.centre) / self.spread
        rest = self.rest(self._with_rotation(context, rotation)).log_prob(others)
        return density + rest - torch.log(self.spread).sum()

    def transform(self, context: Tensor, noise: Tensor) -> Tensor:
        """The inverse flow: context [N,F], standard normal noise [S,N,G] -> coefficients [S,N,G] drawn from p(eta|x^).

        The angle's noise becomes uniform on the circle through the normal distribution function.
        """
        uniform = math.pi * torch.erf(noise[..., :1] / math.sqrt(2))
        rotation = wrapped(self.rotation(self._given(context)).transform.inv(uniform))
        if self.rest is None:
            return rotation
        rest = self.rest(self._with_rotation(context, rotation)).transform.inv(noise[..., 1:])
        return torch.cat([rotation, rest * self.spread + self.centre], -1)

    def _given(self, context: Tensor) -> Tensor | None:
        return context if self.context else None

    def _with_rotation(self, context: Tensor, rotation: Tensor) -> Tensor:
        turn = torch.cat([torch.cos(rotation), torch.sin(rotation)], -1)
        return torch.cat([context.expand(*turn.shape[:-1], -1), turn], -1) if self.context else turn


class WrappedNormal(nn.Module):
    """What the flow is held against: one Gaussian on the circle, its mean and deviation from the prototype's features.

    Of the rotation alone, as `PoseFlow` with one dimension.
    """

    def __init__(self, context: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.net = zuko.nn.MLP(context, 3, hidden)

    def log_prob(self, context: Tensor, coefficients: Tensor) -> Tensor:
        """log p(eta|x^) in nats, radians: context [N,F], coefficients [...,N,1] -> [...,N]"""
        x, y, width = self.net(context).unbind(1)
        deviation = LEAST_DEVIATION + (MOST_DEVIATION - LEAST_DEVIATION) * torch.sigmoid(width)
        gap = wrapped(coefficients[..., 0] - torch.atan2(y, x + 1e-6))
        turns = 2 * math.pi * torch.arange(-WRAPS, WRAPS + 1).to(gap)
        normal = -0.5 * ((gap[..., None] + turns) / deviation[:, None]) ** 2
        return torch.logsumexp(normal, -1) - torch.log(deviation) - 0.5 * math.log(2 * math.pi)
