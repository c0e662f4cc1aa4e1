"""Terms of an objective: of the posterior N(mean, diag exp(log_variance)) of a latent v, of a Gaussian likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVE_NATS", "HALF_LOG_2_PI", "class_mean_energy", "gaussian_nats", "kl_per_dimension", "sample"]

ACTIVE_NATS = 0.1  # a dimension of a latent counts as used above this mean KL
HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def sample(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None) -> Tensor:
    """One draw of v, differentiable in both [N,V] (the reparametrisation of Kingma and Welling 2014, sec. 2.4).

    Args:
        generator: on the device of `mean`; None: torch's own.
    """
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return mean + torch.exp(0.5 * log_variance) * noise


def gaussian_nats(target: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """-log N(target; mean, sigma^2 I) in nats [N] of pictures [N,...]; one log sigma [] for all, clamped to [-4, 2]."""
    log_sigma = log_sigma.clamp(-4, 2)
    nats = 0.5 * ((target - mean) * torch.exp(-log_sigma)) ** 2 + log_sigma + HALF_LOG_2_PI
    return nats.flatten(1).sum(1)


def kl_per_dimension(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL[N(mean, diag exp(log_variance)) || N(0,I)] by dimension [N,V], in nats."""
    return 0.5 * (mean**2 + torch.exp(log_variance) - 1 - log_variance)


def class_mean_energy(mean: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Squared length of the class means of mu(v), averaged over the classes; without bias from the batch's size.

    Each class of n members gives the mean of mu_i . mu_j over its n (n - 1) pairs of different members.

    Args:
        mean: [B,V]; labels: [B], every class in it with two members at least
    """
    members = F.one_hot(labels, num_classes).to(mean.dtype)
    counts = members.sum(0)
    sums = members.T @ mean
    pairs = (sums**2).sum(1) - members.T @ (mean**2).sum(1)
    present = counts > 1
    return (pairs[present] / (counts * (counts - 1))[present]).mean()
