"""The graphs of the symmetry-transformation models that other kinds lack."""

from __future__ import annotations

from torch import Tensor

from training.lie import DIMENSIONS
from training.models import mcevae_graphs
from training.models.base import Graph
from training.models.symmetry import Symmetry
from training.models.symmetry_two_stage import SymmetryTwoStage

__all__ = ["Augment", "Whole"]


class _DrawingGraph(Graph):
    inputs = ("image", "noise")

    def __init__(self, model: Symmetry | SymmetryTwoStage) -> None:
        super().__init__()
        self.model = model
        self.noise = model.config.samples, DIMENSIONS[model.config.group]


class Augment(_DrawingGraph):
    """Variants of a picture, drawn from p(eta|x^): the noise is an input."""

    outputs = ("matrices",)

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        return self.model.augment(image, noise)


class Whole(_DrawingGraph):
    """Everything that the others give."""

    def __init__(self, model: Symmetry | SymmetryTwoStage) -> None:
        super().__init__(model)
        poses = mcevae_graphs.Whole if isinstance(model, Symmetry) else mcevae_graphs.Canonicalize
        self.outputs = (*poses.outputs, *Augment.outputs)

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        (pose, *found), matrices = self.model.everything(image, noise)
        return (*pose, *(value for value in found if value is not None), matrices)
