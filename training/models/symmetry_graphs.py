"""The graph of the symmetry-transformation models that other kinds lack."""

from __future__ import annotations

from torch import Tensor

from training.lie import DIMENSIONS
from training.models.base import Graph
from training.models.symmetry import Symmetry
from training.models.symmetry_two_stage import SymmetryTwoStage

__all__ = ["Augment"]


class Augment(Graph):
    """Variants of a picture, drawn from p(eta|x^): the noise is an input."""

    inputs = ("image", "noise")
    outputs = ("matrices",)

    def __init__(self, model: Symmetry | SymmetryTwoStage) -> None:
        super().__init__()
        self.model = model
        self.noise = model.config.samples, DIMENSIONS[model.config.group]

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        return self.model.augment(image, noise)
