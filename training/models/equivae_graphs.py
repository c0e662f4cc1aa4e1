"""The graphs of an EquiVAE."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from training.models.base import Graph
from training.models.equivae import EquiVAE

__all__ = ["Classify", "Embed", "Recombine"]


class _EquiVAEGraph(Graph):
    model: EquiVAE

    def __init__(self, model: EquiVAE) -> None:
        super().__init__()
        self.model = model


class Embed(_EquiVAEGraph):
    outputs = ("embedding",)

    def forward(self, image: Tensor) -> Tensor:
        return self.model.invariant(image)


class Classifying(Protocol):
    """A model that knows the means of its classes."""

    def classify(self, images: Tensor) -> tuple[Tensor, ...]: ...


class Classify(Graph):
    outputs = ("embedding", "distances", "probabilities", "novelty")

    def __init__(self, model: Classifying) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.model.classify(image)


class Recombine(_EquiVAEGraph):
    """`EquiVAE.recombine` with one pass of f_inv over both pictures.

    Two passes would share their weights, and a weight used twice keeps its batch norm as a node of its own.
    """

    inputs = ("content", "style")
    outputs = ("image",)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        both = torch.stack([content, style], 1).reshape(-1, *content.shape[1:])
        content_r, style_r = self.model.invariant(both).reshape(content.shape[0], 2, -1).unbind(1)
        style_v, _ = self.model.covariant(style_r, style)
        return self.model.decode(content_r, style_v)
