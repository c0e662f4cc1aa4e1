"""The graphs of a model with poses, of either recipe."""

from __future__ import annotations

from torch import Tensor

from training.models.base import Graph
from training.models.mcevae import MCEVAE
from training.models.mcevae_paper import MCEVAEPaper

__all__ = ["Canonicalize", "Embed", "Transform"]

POSE = ("coefficients", "coefficients_std", "matrix", "modes", "weights")


class _MCEVAEGraph(Graph):
    model: MCEVAE | MCEVAEPaper

    def __init__(self, model: MCEVAE | MCEVAEPaper) -> None:
        super().__init__()
        self.model = model


class Transform(_MCEVAEGraph):
    outputs = POSE

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.pose(image))


class Canonicalize(_MCEVAEGraph):
    outputs = (*POSE, "canonical", "rectified")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pose, canonical, rectified = self.model.canonicalize(image)
        return (*pose, canonical, rectified)


class Embed(_MCEVAEGraph):
    outputs = ("embedding",)

    def forward(self, image: Tensor) -> Tensor:
        return self.model.embed(image)
