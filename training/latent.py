"""Terms of an objective on the posterior N(mean, diag exp(log_variance)) of a latent v."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["class_mean_energy", "kl_per_dimension"]


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
