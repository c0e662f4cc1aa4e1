"""Squared distances to class means, and what is served from them: a temperature and the share of nearer images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ENOUGH",
    "ClassMeans",
    "batch_means",
    "class_quantiles",
    "fit_temperature",
    "leave_one_out_distances",
    "log_distances",
    "prototypes_of",
    "share_below",
    "spaced_quantiles",
    "squared_distances",
]

ENOUGH = 200  # fewest values from which a 99th percentile can be estimated
LEAST = 1e-12  # of a squared distance that is told from 0: those of embeddings near 1 are rounded by as much
KNOTS = 101  # quantiles of the distances kept for each class: whole per cents, 99 among them


class ClassMeans(nn.Module):
    """The classifier by distance: prototypes r_y [K,D], a temperature, and for novelty the distances [K,Q] at which the
    known images of each class lie, as quantiles of their logarithms.
    """

    prototypes: Tensor
    temperature: Tensor
    distance_knots: Tensor

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(num_classes, dim))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("distance_knots", torch.linspace(0, 1, KNOTS).repeat(num_classes, 1))

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N,D] -> squared distances [N,K], probabilities [N,K] and novelty [N] in [0,1]; after `fit`.

        Novelty is the share of the known images of the nearest class that lie nearer to it.
        """
        distances = squared_distances(embeddings, self.prototypes)
        probabilities = torch.softmax(-distances / self.temperature, 1)
        nearest, label = distances.min(1)
        return distances, probabilities, share_below(log_distances(nearest), self.distance_knots[label])

    def fit(self, prototypes: Tensor, embeddings: Tensor, labels: Tensor, known: Sequence[Tensor] = ()) -> None:
        """Take the prototypes [K,D]; the temperature of least negative log-likelihood over the validation images, whose
        `embeddings` [N,D] and `labels` [N] these are; and the quantiles of these and of other `known` ones, each [M,D].
        """
        self.prototypes.copy_(prototypes)
        distances = squared_distances(embeddings, self.prototypes).cpu()
        self.temperature.fill_(fit_temperature(distances, labels))
        found = [distances.min(1), *(squared_distances(each, self.prototypes).cpu().min(1) for each in known)]
        nearest, predicted = (torch.cat(values) for values in zip(*found, strict=True))
        self.distance_knots.copy_(class_quantiles(log_distances(nearest), predicted, len(self.prototypes), KNOTS))


def prototypes_of(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """r_y [K,D], the mean of each class's embeddings [N,D].

    Raises:
        ValueError: a class has no image.
    """
    if not bool(torch.bincount(labels, minlength=num_classes).all()):
        raise ValueError("a class has no image among those that the class means are taken of")
    return batch_means(embeddings, labels.to(embeddings.device), num_classes)


def squared_distances(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """[N,D], [K,D] -> [N,K]"""
    return ((embeddings[:, None] - prototypes[None]) ** 2).sum(2)


def log_distances(distances: Tensor) -> Tensor:
    """Of squared distances, finite at 0 too: pictures that are all alike lie on their class's mean."""
    return torch.log(distances.clamp_min(LEAST))


def batch_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Class means [K,D] of embeddings [B,D]; 0 for a class that the batch lacks."""
    members = F.one_hot(labels, num_classes).to(embeddings.dtype)
    return members.T @ embeddings / members.sum(0).clamp_min(1)[:, None]


def leave_one_out_distances(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Squared distances [N,K] to the class means of the first B = len(labels) rows, each row left out of its own.

    A class that the batch lacks is infinitely far; one of a single row is at 0 from that row, which has no others.
    """
    members = F.one_hot(labels, num_classes).to(embeddings.dtype)
    counts = members.sum(0)
    means = batch_means(embeddings[: len(labels)], labels, num_classes)
    distances = squared_distances(embeddings, means).masked_fill(counts == 0, torch.inf)
    # Without x the mean is (n mean - x) / (n - 1), and x lies from it n / (n - 1) times as far as from the whole one.
    factor = (counts / (counts - 1).clamp_min(1)) ** 2
    known = distances[: len(labels)]
    return torch.cat([torch.where(members.bool(), known * factor, known), distances[len(labels) :]])


def fit_temperature(distances: Tensor, labels: Tensor) -> float:
    """The T in e^-7..e^7 of least mean cross-entropy of softmax(-distances / T)."""
    from scipy.optimize import minimize_scalar  # slow to import, and only a finished training asks for it

    distances = distances.double()

    def nats(log_temperature: float) -> float:
        return float(F.cross_entropy(-distances / math.exp(log_temperature), labels))

    return math.exp(minimize_scalar(nats, bounds=(-7.0, 7.0), method="bounded").x)


def class_quantiles(values: Tensor, labels: Tensor, num_classes: int, count: int) -> Tensor:
    """Quantiles [K,Q] of each class's `values` [N].

    A class of fewer than `ENOUGH` has no 99th percentile of its own: it takes the spread about the median that all
    classes have together, moved to its median (to everybody's, where it has no value at all).
    """
    medians = torch.stack(
        [values[labels == k].median() if bool((labels == k).any()) else values.median() for k in range(num_classes)]
    )
    pooled = spaced_quantiles(values - medians[labels], count)
    rows = []
    for k in range(num_classes):
        own = values[labels == k]
        rows.append(spaced_quantiles(own, count) if len(own) >= ENOUGH else pooled + medians[k])
    return torch.stack(rows)


def spaced_quantiles(values: Tensor, count: int, gap: float = 1e-3) -> Tensor:
    """`count` quantiles [Q] of `values` [N] at equal steps of probability, at least `gap` apart."""
    knots = torch.quantile(values.double(), torch.linspace(0, 1, count, dtype=torch.float64))
    apart = gap * torch.arange(count, dtype=torch.float64)
    return (torch.cummax(knots - apart, 0).values + apart).float()


def share_below(values: Tensor, knots: Tensor) -> Tensor:
    """The distribution function with quantiles `knots` [N,Q] at `values` [N], linear between them; in [0,1]."""
    low, high = knots[:, :-1], knots[:, 1:]
    return ((values[:, None] - low) / (high - low)).clamp(0, 1).mean(1)
