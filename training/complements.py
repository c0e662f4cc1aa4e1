"""The complements of an image, other images of its class: r_y of EquiVAE is made of them (Feige 2019, Eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Grouped", "draw_complements", "in_batch_weights"]


class Grouped:
    """The rows of a data set, class by class: all that drawing complements needs to know of its labels int64 [N].

    order: rows [N] of class 0, 1, ..., ascending. position [N]: of each row among those of its class.
    counts, starts: of each class in order [K].
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.order = torch.argsort(labels, stable=True)
        self.counts = torch.bincount(labels)
        self.starts = torch.cumsum(self.counts, 0) - self.counts
        self.position = torch.empty_like(self.order)
        self.position[self.order] = torch.arange(len(labels)) - self.starts[labels[self.order]]
        self.smallest = int(self.counts[self.counts > 0].min())


def draw_complements(data: Grouped, indices: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Rows [B,m] of the data: for each of `indices` [B], m others of its class, none of them twice.

    m ~ U{1..limit} is one draw for the whole batch; it never exceeds the others that the smallest class has.
    """
    limit = min(limit, data.smallest - 1)
    m = int(torch.randint(1, limit + 1, (1,), generator=generator))
    own = data.labels[indices]
    size, position = data.counts[own], data.position[indices]
    # Floyd's sampling: m distinct numbers below size - 1, a repetition replaced by the largest that the step may draw.
    chosen = torch.full((len(indices), m), -1)
    for step in range(m):
        top = size - 1 - m + step
        drawn = (torch.rand(len(indices), generator=generator, dtype=torch.float64) * (top + 1)).long()
        repeated = (chosen == drawn[:, None]).any(1)
        chosen[:, step] = torch.where(repeated, top, drawn)
    chosen += chosen >= position[:, None]  # step over x itself
    return data.order[data.starts[own][:, None] + chosen]


def in_batch_weights(labels: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """W [B,B] of R = W H: each row averages m random other members of its class, m ~ U{1..limit} for each row.

    Where the batch has fewer than m others of the class, all of them are taken.

    Raises:
        ValueError: an image is alone in its class.
    """
    count = len(labels)
    others = (labels[:, None] == labels[None]) & ~torch.eye(count, dtype=torch.bool)
    available = others.sum(1)
    if not bool(available.all()):
        raise ValueError("an image is alone of its class in the batch: complements in the batch need balanced order")
    m = torch.randint(1, limit + 1, (count,), generator=generator).minimum(available)
    scores = torch.rand((count, count), generator=generator) + others
    most = int(m.max())
    shares = (torch.arange(most) < m[:, None]).float() / m[:, None]
    return torch.zeros((count, count)).scatter_(1, scores.topk(most, 1).indices, shares)
