"""The graphs of an EquiVAE."""

from __future__ import annotations

from typing import Protocol

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
    inputs = ("content", "style")
    outputs = ("image",)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        return self.model.recombine(content, style)
