"""What a pose and a clustering are held against: no model at all, moments of the ink, k-means, a plain VAE."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from training.evaluation.probes import seeded
from training.evaluation.views import ink, rotation_matrices
from training.latent import kl_per_dimension, sample
from training.minimise import minimise
from training.mixture import matched_accuracy
from training.moments import moments
from training.networks import DenseDecoder, dense, he_initialise

__all__ = ["identity", "k_means_accuracy", "principal_axis", "vae_features"]

VAE_LATENT, VAE_WIDTHS = 10, (512, 256)
STARTS = 5


def identity(images: Tensor) -> Tensor:
    """The canonicaliser that leaves every picture as it is: [N,C,S,S] -> matrices [N,2,3]"""
    return rotation_matrices(torch.zeros(len(images)))


def principal_axis(images: Tensor) -> Tensor:
    """The long axis of the ink's second moments, taken for vertical: [N,C,S,S] -> matrices [N,2,3]

    An axis has no direction: the angle lies in [-90,90).
    """
    level, falling = moments(ink(images.double())).elongation.unbind(1)
    # A vertical bar turned by t has falling = m sin 2t, level = -m cos 2t; -level of no ink would be -0, half a turn.
    return rotation_matrices(torch.rad2deg(torch.atan2(falling, 0 - level) / 2).float())


def k_means_accuracy(features: Tensor, labels: Tensor, clusters: int, seed: int) -> float:
    """Accuracy (%) of k-means on features [N,...], clusters matched to classes one to one; best of 5 starts."""
    points = features.flatten(1).numpy()
    found = KMeans(clusters, n_init=STARTS, random_state=seed).fit_predict(points)
    return 100 * matched_accuracy(torch.from_numpy(found.astype(np.int64)), labels)


class _VAE(nn.Module):
    """Dense layers to a Gaussian latent and back, the decoder that EquiVAE uses: the plain model of the pixels."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), *dense(channels * side * side, *VAE_WIDTHS))
        self.mean = nn.Linear(VAE_WIDTHS[-1], VAE_LATENT)
        self.log_variance = nn.Linear(VAE_WIDTHS[-1], VAE_LATENT)
        self.decoder = DenseDecoder(VAE_LATENT, channels, side, VAE_WIDTHS[::-1])
        he_initialise(self)

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        hidden = self.encoder(images)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden).clamp(-10, 10)
        pixels = self.decoder(sample(mean, log_variance, generator))
        nats = F.binary_cross_entropy_with_logits(pixels, images, reduction="none").flatten(1).sum(1)
        return (nats + kl_per_dimension(mean, log_variance).sum(1)).mean()


def vae_features(train: Tensor, images: Tensor, seed: int, steps: int) -> Tensor:
    """Train a plain VAE on pictures [M,C,S,S] and take the means of q(z|x): [N,C,S,S] -> [N,10]; both in [0,1]."""
    with seeded(seed):
        network = _VAE(train.shape[1], train.shape[-1])
        generator = torch.Generator().manual_seed(seed)

        def loss(step: int) -> Tensor:
            chosen = torch.randint(len(train), (min(128, len(train)),), generator=generator)
            return network.loss(train[chosen], generator)

        minimise(torch.optim.AdamW(network.parameters(), 1e-3), steps, loss)
    with torch.no_grad():
        return torch.cat([network.mean(network.encoder(part)) for part in torch.split(images, 1000)])
