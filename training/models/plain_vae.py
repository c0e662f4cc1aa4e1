"""VAEs that MCE-VAE is compared with, on its data: one z, and three answers to what becomes of the transform.

    beta      none: z has to say it (beta-VAE, Higgins et al. 2017; no pose is found)
    affine    tau found by a deterministic net, undone before q(z|x) and done again after the decoder: a VAE behind a
              spatial transformer (Jaderberg et al. 2015)
    spatial   q(tau|x) beside q(z|x); the decoder maps z and a pixel's coordinates, moved by tau, to that pixel
              (spatial-VAE, Bepler et al. 2019)

    loss = CE(x, mean of p(x|z, tau)) + beta KL_z + KL_tau (spatial alone)        nats an image

tau holds the coefficients of `matrix` (training/lie.py), its prior is N(0,I) as in MCE-VAE's code, and the layer that
finds it begins at 0. Widths are alike where there is something to be alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from contract.manifest import InputSpec
from training.latent import kl_per_dimension, sample
from training.lie import DIMENSIONS, exponential, grid, inverse, resample
from training.models.fixed_pose import FixedPoseModel, cross_entropy, one_mode
from training.models.plain_vae_config import PlainVAEConfig
from training.models.pose import Canonical, Pose
from training.networks import DenseDecoder, dense, he_initialise

__all__ = ["PlainVAE"]

WIDTHS = (512, 256)
COORDINATE_UNITS = 128


class Posterior(NamedTuple):
    """Means and log variances of z [N,Z] and tau [N,G]; tau's log variance is None where tau is certain."""

    z: Tensor
    z_log_variance: Tensor
    tau: Tensor
    tau_log_variance: Tensor | None


class CoordinateDecoder(nn.Module):
    """z [N,Z] and where each pixel lies in the canonical frame [N,S,S,2] -> logits [N,C,S,S]"""

    def __init__(self, z_dim: int, channels: int) -> None:
        super().__init__()
        self.from_z = nn.Linear(z_dim, COORDINATE_UNITS)
        self.from_place = nn.Linear(2, COORDINATE_UNITS, bias=False)
        self.layers = nn.Sequential(
            nn.Tanh(),
            nn.Linear(COORDINATE_UNITS, COORDINATE_UNITS),
            nn.Tanh(),
            nn.Linear(COORDINATE_UNITS, channels),
        )

    def forward(self, z: Tensor, places: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.from_place(places) + self.from_z(z)[:, None, None])
        return logits.permute(0, 3, 1, 2)


class PlainVAE(FixedPoseModel):
    """Images are float32 [N,C,S,S] in [0,1] at every public method."""

    def __init__(self, config: PlainVAEConfig, input: InputSpec, num_classes: int) -> None:
        super().__init__()
        self.config, self.input = config, input
        self.side = input.height
        pixels = input.channels * self.side**2
        self.encoder = nn.Sequential(nn.Flatten(), *dense(pixels, *WIDTHS))
        self.z = nn.Linear(WIDTHS[-1], 2 * config.z_dim)
        if config.method == "spatial":
            self.decoder: nn.Module = CoordinateDecoder(config.z_dim, input.channels)
        else:
            self.decoder = DenseDecoder(config.z_dim, input.channels, self.side, WIDTHS[::-1])
        if config.method == "affine":
            self.transformer = nn.Sequential(nn.Flatten(), *dense(pixels, *WIDTHS))
        he_initialise(self)
        if config.method != "beta":
            # Half of it is tau's log variance, which the certain tau of `affine` does without.
            self.tau = nn.Linear(WIDTHS[-1], 2 * DIMENSIONS[config.group])
            nn.init.zeros_(self.tau.weight)
            nn.init.zeros_(self.tau.bias)
        self.register_buffer("centroids", torch.zeros(config.clusters, config.z_dim))

    def posterior(self, images: Tensor) -> Posterior:
        """q(z|x) and tau, which `affine` undoes before it encodes, and which is 0 for `beta`: of [N,C,S,S]"""
        method, features = self.config.method, None
        if method == "spatial":
            features = self.encoder(images)
            tau, tau_log_variance = self.tau(features).chunk(2, 1)
        elif method == "affine":
            tau, tau_log_variance = self.tau(self.transformer(images)).chunk(2, 1)[0], None
            images = resample(images, exponential(self.config.group, tau))
        else:
            # Not len(), which the exporter takes for a constant; so below.
            tau, tau_log_variance = images.new_zeros(images.shape[0], DIMENSIONS[self.config.group]), None
        z, log_variance = self.z(self.encoder(images) if features is None else features).chunk(2, 1)
        return Posterior(z, log_variance, tau, tau_log_variance)

    def decode_under(self, matrix: Tensor, z: Tensor) -> Tensor:
        """The mean of p(x|z, tau): [N,2,3], [N,Z] -> [N,C,S,S] in [0,1]"""
        back = inverse(matrix)
        if self.config.method == "spatial":
            return torch.sigmoid(self.decoder(z, grid(back, self.side)))
        return resample(torch.sigmoid(self.decoder(z)), back)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """The canonical picture of z, which `latents` gives in both places: [N,Z] twice -> [N,C,S,S] in [0,1]"""
        upright = torch.eye(2, 3, dtype=style.dtype, device=style.device).expand(style.shape[0], 2, 3)
        return self.decode_under(upright, style)

    # --- one step of training -------------------------------------------------------------------------------------

    def loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The mean of the objective over the batch, in nats an image: loss, reconstruction, kl (unweighted)."""
        x = batch["observed"]
        q = self.posterior(x)
        z = sample(q.z, q.z_log_variance, generator)
        tau = q.tau if q.tau_log_variance is None else sample(q.tau, q.tau_log_variance, generator)
        rebuilt = self.decode_under(exponential(self.config.group, tau), z)
        reconstruction = cross_entropy(x, rebuilt).mean()
        kl_z, kl_tau = (value.mean() for value in _kl(q))
        loss = reconstruction + self.config.beta * kl_z + kl_tau
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl_z + kl_tau}

    # --- what is measured -----------------------------------------------------------------------------------------

    def pose(self, images: Tensor) -> Pose:
        """[N,C,S,S] -> the transform of each image; the identity for `beta`."""
        return self._pose(self.posterior(images))

    def _pose(self, q: Posterior) -> Pose:
        std = torch.zeros_like(q.tau) if q.tau_log_variance is None else torch.exp(0.5 * q.tau_log_variance)
        return one_mode(self.config.group, q.tau, std)

    def canonicalize(self, images: Tensor) -> Canonical:
        """[N,C,S,S] -> pose, z decoded without a transform, the input resampled through the pose, and z."""
        q = self.posterior(images)
        pose = self._pose(q)
        return Canonical(pose, self.decode(q.z, q.z), resample(images, pose.matrix), q.z)

    def embed(self, images: Tensor) -> Tensor:
        """z: [N,C,S,S] -> [N,Z]"""
        return self.posterior(images).z

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """z in both places: there is no z_c of its own."""
        z = self.embed(images)
        return z, z

    def rebuild(self, images: Tensor) -> tuple[Tensor, Tensor]:
        q = self.posterior(images)
        return self.decode_under(exponential(self.config.group, q.tau), q.z), torch.stack(_kl(q)).sum(0)


def _kl(q: Posterior) -> tuple[Tensor, Tensor]:
    """KL to the prior of z and of tau: [N], [N]"""
    of_z = kl_per_dimension(q.z, q.z_log_variance).sum(1)
    if q.tau_log_variance is None:
        return of_z, torch.zeros_like(of_z)
    return of_z, kl_per_dimension(q.tau, q.tau_log_variance).sum(1)
