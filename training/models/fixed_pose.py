"""Models whose training images are turned and moved once and for all: a data set turned beforehand, without the file.

MCE-VAE's reference code (data/gen_mnist.py) turns and moves every MNIST image once with torchvision's RandomAffine and
saves the arrays; there is no augmentation after that. Here row i of a data set has its transform by the seed, i and how
many rows there are.
RandomAffine rounds shifts to whole pixels, turns first, and takes the nearest pixel; so does this.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contract.geometry import Group
from training.lie import exponential, inverse, resample
from training.models.base import Model
from training.models.pose import Pose
from training.rotation import UNIFORM_STD
from training.turned import require_upright

if TYPE_CHECKING:
    from training.datasets import LabelledImages

__all__ = ["FixedPoseModel", "cross_entropy", "draw_fixed_poses", "one_mode", "pose_images"]

LEAST = 1e-5  # images are clamped to [LEAST, 1 - LEAST] in the cross-entropy
CHUNK = 500  # images a forward pass where no gradient is kept


class FixedPoseModel(Model):
    """Images [N,C,S,S] are shown once turned by +-config.rotation_degrees and, in SE2, moved; clusters are k-means'.

    config: group, rotation_degrees, shift, pose_seed, clusters.
    """

    protocol = (
        "every image turned, and in SE(2) moved, once within the training range; every latent at its mean",
        "reconstruction (cross-entropy) and kl in nats an image, mse a pixel",
    )

    config: Any
    side: int
    centroids: Tensor

    def prepare(self, train: LabelledImages) -> None:
        """Nothing of the training set is needed beforehand.

        Raises:
            ValueError: its images are not upright, or fewer than the clusters.
        """
        require_upright(train, f"model.kind: {self.config.kind}")
        if len(train) < self.config.clusters:
            raise ValueError(f"{len(train)} training images for {self.config.clusters} clusters")

    def batch(self, data: LabelledImages, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Upright and observed images [B,C,S,S] of `indices` [B], each always under the same transform.

        The generator is not used: there is no augmentation.
        """
        upright = data.images[indices].float() / 255
        return {"upright": upright, "observed": pose_images(upright, self._fixed_poses(len(data))[indices])}

    def _fixed_poses(self, count: int) -> Tensor:
        config = self.config
        shift = config.shift if config.group == "SE2" else 0.0
        return draw_fixed_poses(count, self.side, config.rotation_degrees, shift, config.pose_seed)

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """What the clusters are found in: [N,C,S,S] -> [N,D]"""

    def clusters(self, images: Tensor) -> Tensor:
        """[N,C,S,S] -> [N,K], 1 for the nearest centroid of `calibrate`'s k-means and 0 for the others."""
        nearest = torch.cdist(self.embed(images), self.centroids).argmin(1)
        return F.one_hot(nearest, self.config.clusters).to(images.dtype)

    @abstractmethod
    def rebuild(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[N,C,S,S] -> the mean of p(x|latents at their means) [N,C,S,S], and the closed-form KL of all latents [N]"""

    @torch.no_grad()
    def validate(self, train: LabelledImages, validation: LabelledImages) -> dict[str, float]:
        """Figures of the validation images, each under a transform of the training range, in evaluation mode.

        Returns:
            reconstruction (nats an image), mse (a pixel) and kl, the latents at their means; reconstruction_drawn, the
            objective's own reconstruction, one draw of the latents.
        """
        was_training = self.training
        self.eval()
        sums = dict.fromkeys(("reconstruction", "mse", "kl", "reconstruction_drawn"), 0.0)
        device = self.centroids.device
        generator = torch.Generator(device).manual_seed(self.config.pose_seed)
        for rows in torch.split(torch.arange(len(validation)), CHUNK):
            batch = {name: value.to(device) for name, value in self.batch(validation, rows, torch.Generator()).items()}
            images = batch["observed"]
            rebuilt, kl = self.rebuild(images)
            sums["reconstruction_drawn"] += len(rows) * float(self.loss(batch, generator)["reconstruction"])
            sums["reconstruction"] += float(cross_entropy(images, rebuilt).sum())
            sums["mse"] += float(((images - rebuilt) ** 2).flatten(1).mean(1).sum())
            sums["kl"] += float(kl.sum())
        self.train(was_training)
        return {name: total / len(validation) for name, total in sums.items()}

    @torch.no_grad()
    def calibrate(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Find the clusters: k-means on the embeddings of the training images as they are shown, best of ten starts."""
        from sklearn.cluster import KMeans  # slow to import, and the other models do without

        self.eval()
        embeddings = torch.cat([self.embed(images) for images in self._observed(train)]).cpu().double().numpy()
        found = KMeans(self.config.clusters, n_init=10, random_state=self.config.pose_seed).fit(embeddings)
        self.centroids.copy_(torch.from_numpy(found.cluster_centers_))

    def _observed(self, data: LabelledImages) -> Iterator[Tensor]:
        """Every image under its own transform, `CHUNK` at a time: [N,C,S,S]"""
        poses = self._fixed_poses(len(data))
        for start in range(0, len(data), CHUNK):
            rows = slice(start, start + CHUNK)
            yield pose_images(data.images[rows].float() / 255, poses[rows]).to(self.centroids.device)


@lru_cache(maxsize=4)
def draw_fixed_poses(count: int, side: int, rotation_degrees: float, shift: float, seed: int) -> Tensor:
    """Matrices [count,2,3], canonical -> observed.

    Args:
        side: of the images, pixels.
        rotation_degrees: angles are uniform within +- this.
        shift: x and y are uniform within +- this share of the side, then rounded to whole pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    angle = (2 * torch.rand((count, 1), generator=generator) - 1) * math.radians(rotation_degrees)
    pixels = torch.round((2 * torch.rand((count, 2), generator=generator) - 1) * shift * side)
    matrix = exponential("SO2", angle)
    return torch.cat([matrix[:, :, :2], (2 * pixels / side).unsqueeze(2)], 2)


def pose_images(images: Tensor, matrix: Tensor) -> Tensor:
    """Upright images [N,C,H,W] as observed under canonical -> observed matrices [N,2,3]; nearest pixel, 0 outside."""
    return resample(images, inverse(matrix), mode="nearest")


def one_mode(group: Group, coefficients: Tensor, std: Tensor) -> Pose:
    """The pose whose posterior is a Gaussian on the coefficients: [N,G] twice. No angle deviates by more than a uniform
    one does.
    """
    std = torch.cat([std[:, :1].clamp_max(UNIFORM_STD), std[:, 1:]], 1)
    matrix = exponential(group, coefficients)
    return Pose(coefficients, std, matrix, matrix.unsqueeze(1), torch.ones_like(coefficients[:, :1]))


def cross_entropy(target: Tensor, image: Tensor) -> Tensor:
    """Of grey values taken as probabilities, summed over the pixels: [N,C,S,S] twice -> nats [N]"""
    target, image = target.float().clamp(LEAST, 1 - LEAST), image.float().clamp(LEAST, 1 - LEAST)
    return -(target * torch.log(image) + (1 - target) * torch.log1p(-image)).flatten(1).sum(1)
