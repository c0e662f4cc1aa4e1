"""The graphs of a model with poses, of any recipe."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from training.models.base import Graph
from training.models.equivae_graphs import Classify
from training.models.fixed_pose import FixedPoseModel
from training.models.mcevae import MCEVAE
from training.models.pose import Canonical, Pose

__all__ = ["Canonicalize", "Embed", "Transform", "Whole", "WholeWithClasses"]

POSE = ("coefficients", "coefficients_std", "matrix", "modes", "weights")


class Posed(Protocol):
    """A model that finds poses, with a decoder or without."""

    def pose(self, images: Tensor) -> Pose: ...

    def canonicalize(self, images: Tensor) -> Canonical: ...


class _PoseGraph(Graph):
    def __init__(self, model: Posed) -> None:
        super().__init__()
        self.model = model


class Transform(_PoseGraph):
    outputs = POSE

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.pose(image))


class Canonicalize(_PoseGraph):
    outputs = (*POSE, "canonical", "rectified")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pose, canonical, rectified, _ = self.model.canonicalize(image)
        return (*pose, canonical, rectified)


class Embed(Graph):
    outputs = ("embedding",)

    def __init__(self, model: MCEVAE | FixedPoseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.embed(image)


class Whole(_PoseGraph):
    """Everything that the others give."""

    outputs = (*Canonicalize.outputs, *Embed.outputs)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pose, canonical, rectified, embedding = self.model.canonicalize(image)
        assert embedding is not None
        return (*pose, canonical, rectified, embedding)


class WholeWithClasses(Graph):
    """The same of a model that knows the means of its classes."""

    outputs = (*Whole.outputs, *(name for name in Classify.outputs if name not in Embed.outputs))

    def __init__(self, model: MCEVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pose, canonical, rectified, embedding = self.model.canonicalize(image)
        assert embedding is not None and self.model.classes is not None
        return (*pose, canonical, rectified, embedding, *self.model.classes(embedding))
