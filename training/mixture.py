"""A mixture prior N(m_k, I) of equal weights on a latent: assignment, KL, mutual information, accuracy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["matched_accuracy", "mixture_kl", "mutual_information", "responsibilities"]


def responsibilities(mean: Tensor, components: Tensor) -> Tensor:
    """p(k | z) at z = mean: [N,D], component means [K,D] -> [N,K]"""
    return torch.softmax(mean @ components.T - 0.5 * (components**2).sum(1), 1)


def mixture_kl(mean: Tensor, log_variance: Tensor, assignment: Tensor, components: Tensor) -> Tensor:
    """KL[q(z)q(k) || p(z|k)p(k)] [N] in nats, q(z) = N(mean, diag exp(log_variance)), q(k) = assignment [N,K].

    VaDE's closed form (Jiang et al. 2017, eq. 12): the mean over k of the Gaussians' KL, and KL of q(k) to 1/K.
    """
    squares = ((mean[:, None] - components) ** 2).sum(2)
    gaussian = 0.5 * ((assignment * squares).sum(1) + (torch.exp(log_variance) - 1 - log_variance).sum(1))
    entropy = -(assignment * torch.log(assignment.clamp_min(1e-12))).sum(1)
    return gaussian + math.log(len(components)) - entropy


def mutual_information(one: Tensor, other: Tensor) -> Tensor:
    """I(k; k') in nats of the clusters of two views, over a batch: [B,K], [B,K] -> scalar.

    Ji, Henriques and Vedaldi (2019), eq. 3: large where the views agree and all clusters are used.
    """
    joint = one.T @ other / len(one)
    joint = ((joint + joint.T) / 2).clamp_min(1e-9)
    rows = joint.sum(1, keepdim=True)
    return (joint * (torch.log(joint) - torch.log(rows) - torch.log(rows.T))).sum()


def matched_accuracy(assigned: Tensor, labels: Tensor) -> float:
    """Share in [0,1] that the best one-to-one matching of clusters and classes gets right (Hungarian algorithm)."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and training does without

    size = int(max(assigned.max(), labels.max())) + 1
    counts = torch.bincount(assigned * size + labels, minlength=size**2).reshape(size, size).numpy()
    rows, columns = linear_sum_assignment(-counts)
    return float(counts[rows, columns].sum() / len(labels))
