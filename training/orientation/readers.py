"""Readers of turned pictures that models of poses are held against: augmentation alone, and a learned canonicaliser.

    augmented   `small_cnn` as it is, which sees every training picture under a new turn each time
    lifted      n copies of the picture, turned back by 0, 360/n, ... degrees; an energy net shared by them scores each,
                and a CNN reads the best one (Kaba et al. 2023, with the discrete group C_n): whatever the energy net
                learns, a turn by 360/n degrees changes nothing but the order of the copies

Both are trained on the classes alone, under the same turns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from training.lie import resample
from training.orientation.views import rotation_matrices
from training.probes import fit_classifier, seeded, small_cnn
from training.turned import move, similarity, uniform

__all__ = ["LiftedReader", "fit_reader"]


class Turned(nn.Module):
    """Pictures [N,C,S,S] each turned by U(+-degrees) in training, as they are in evaluation."""

    def __init__(self, degrees: float) -> None:
        super().__init__()
        self.degrees = degrees

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        angle = uniform(len(images), math.radians(self.degrees), generator)
        return move(images, similarity(angle).to(images.device))


class LiftedReader(nn.Module):
    """Logits of the class read from the best of n turned copies: [N,C,S,S] -> [N,K]"""

    angles: Tensor

    def __init__(self, channels: int, side: int, num_classes: int, copies: int) -> None:
        super().__init__()
        self.register_buffer("angles", 360.0 * torch.arange(copies) / copies)
        self.energy = small_cnn(channels, side, 1)
        self.reader = small_cnn(channels, side, num_classes)

    def scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [N,n], the highest the best, and the copies [N,n,C,S,S]."""
        count, copies = len(images), len(self.angles)
        matrices = rotation_matrices(self.angles).to(images.device).repeat(count, 1, 1)
        flat = resample(images.repeat_interleave(copies, 0), matrices)
        return self.energy(flat).view(count, copies), flat.view(count, copies, *images.shape[1:])

    def forward(self, images: Tensor) -> Tensor:
        energies, copies = self.scores(images)
        soft = torch.softmax(energies, 1)
        best = torch.zeros_like(soft).scatter(1, energies.argmax(1, keepdim=True), 1.0)
        weights = best + soft - soft.detach()  # the best copy alone, with the gradient of the mixture
        return self.reader((weights[:, :, None, None, None] * copies).sum(1))

    def degrees(self, images: Tensor) -> Tensor:
        """The turn that the best copy undoes: [N]"""
        return self.angles[self.scores(images)[0].argmax(1)]


def fit_reader(network: nn.Module, images: Tensor, labels: Tensor, degrees: float, steps: int, seed: int) -> nn.Module:
    """Train on upright pictures uint8 [N,C,S,S], each turned anew by U(+-degrees); `network` itself comes back."""
    with seeded(seed):
        generator = torch.Generator().manual_seed(seed)
        fit_classifier(nn.Sequential(Turned(degrees), network), images, labels, steps=steps, generator=generator)
    return network
