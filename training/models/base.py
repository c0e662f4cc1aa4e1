"""What every model offers: to the loop that trains it (training/fit.py) and to the export of its graphs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from contract.manifest import InputSpec

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["Graph", "Model"]


class Model(nn.Module):
    """A model of one paper. Images are float32 [N,C,H,W] in [0,1] at every public method.

    protocol: in a few words, how the figures of `validate` are measured; the model folder repeats it.
    """

    protocol: ClassVar[tuple[str, ...]]
    input: InputSpec

    @abstractmethod
    def prepare(self, train: LabelledImages) -> None:
        """Take what the model needs to know of the training set before the first step.

        Raises:
            ValueError: the training set does not suffice; the message says why.
        """

    @abstractmethod
    def batch(self, data: LabelledImages, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What one step needs of the images `indices` [B], on the CPU; a function of the generator's state alone."""

    @abstractmethod
    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The scalar `loss` and its terms; `generator` lies on the batch's device, `progress` in [0,1]."""

    @abstractmethod
    def validate(self, train: LabelledImages, validation: LabelledImages) -> dict[str, float]:
        """Figures of the validation set in evaluation mode; their names are the config's `metrics`.

        Args:
            train: images of which what the figures are measured against, such as class means, is taken.
        """

    @abstractmethod
    def calibrate(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Fix what is served beside the weights; once, after the last step."""


class Graph(nn.Module):
    """One capability of a model: named inputs to named outputs, as the model folder has them."""

    inputs: ClassVar[tuple[str, ...]] = ("image",)
    noise: tuple[int, int] | None = None  # S and G of the input `noise` [N,S,G], standard normal, of a graph that draws
    outputs: tuple[str, ...]
